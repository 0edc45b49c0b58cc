"""Metadata of OME-Zarr (NGFF 0.1 to 0.5): axes, units, scales, channels and plates, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.volumes.values import need

#: Unit of length -> micrometres.
_MICROMETRES = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "meter": 1e6,
    "inch": 25400.0,
}
#: Name of our own entry among an image's attributes: what OME-Zarr cannot say of a patient's volume.
OWN = "omnivae"


def is_ome_zarr(path: Path) -> bool:
    """Say whether a folder is a zarr store.

    Args:
        path: of the folder.
    """
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", ".zattrs", ".zarray", "zarr.json"))


def open_group(path: Path) -> Any:
    """Open a zarr group to read.

    Args:
        path: of the group.

    Returns:
        The group.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when it is no group.
    """
    zarr = need("zarr", "microscopy")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return zarr.open_group(str(path), mode="r")
    except Exception as error:
        raise ValueError(
            f"{path} is no OME-Zarr group ({type(error).__name__}); expected a folder with zarr.json, or .zgroup and .zattrs"
        ) from error


def attributes(group: Any) -> dict[str, Any]:
    """Return a group's OME attributes, wherever its version keeps them.

    Args:
        group: zarr's.
    """
    found = dict(group.attrs)
    return {**found, **found["ome"]} if isinstance(found.get("ome"), Mapping) else found


@dataclass(frozen=True)
class ImageAbout:
    """What the metadata say of one resolution level of an image.

    Attributes:
        axes: letters in lower case, as stored.
        dataset: path of the level's array.
        affine: from (z, y, x) to micrometres (mm of a patient).
        coarser: spacing along z, y and x over the finest level's.
        channels: names.
        levels: number of them.
        version: of the specification.
        own: this library's entry.
        problems: what is unusual.
    """

    axes: str
    dataset: str
    affine: np.ndarray
    coarser: tuple[float, float, float]
    channels: tuple[str, ...]
    levels: int
    version: str
    own: Mapping[str, Any]
    problems: tuple[str, ...]


def describe(group: Any, name: str, level: int) -> ImageAbout:
    """Read and check what a group says about an image.

    Args:
        group: zarr's.
        name: of the image, for errors.
        level: of resolution.

    Raises:
        ValueError: without ``multiscales``, and for axes, units and scales that are not understood.
    """
    about = attributes(group)
    scales = about.get("multiscales")
    if not scales:
        held = ", ".join(sorted(map(str, group.keys()))[:8]) or "nothing"
        raise ValueError(
            f"{name} is a zarr group without multiscales (it holds {held}); expected an OME-Zarr image: give the path of one, or "
            "write its metadata"
        )
    image, problems = scales[0], []
    if len(scales) > 1:
        problems.append(f"{len(scales)} images in one group; the first is read")
    datasets = image.get("datasets") or []
    if not 0 <= level < len(datasets):
        raise ValueError(
            f"{name} has {len(datasets)} resolution levels; got level {level}; expected 0 to {len(datasets) - 1}"
        )
    dataset = inside(str(datasets[level]["path"]), Path(name))
    shape = member(group, dataset, name).shape
    axes, units = _axes(image.get("axes"), len(shape), name)
    for axis, n in zip(axes, shape, strict=True):
        if axis not in "tczyx" and n != 1:
            raise ValueError(f"{name} has an axis {axis!r} of length {n}; expected t, c, z, y and x only")
        if n < 1:
            raise ValueError(f"{name} has no voxels along {axis}: its shape is {list(shape)}")
    finest, _ = _transformation(image, datasets[0], len(axes), name)
    scale, shift = _transformation(image, datasets[level], len(axes), name)
    affine = np.eye(4)
    own = dict(about.get(OWN) or {})
    for row, axis in enumerate("zyx"):
        if axis not in axes:
            problems.append(f"no axis {axis}: one plane, of thickness 1")
            continue
        at = axes.index(axis)
        unit = units[at]
        if unit is None and axis == "x":
            problems.append("no unit of length; micrometres are assumed")
        if unit is not None and unit not in _MICROMETRES:
            raise ValueError(f"{name} has the unit of length {unit!r}; expected one of {', '.join(_MICROMETRES)}")
        factor = _MICROMETRES.get(unit or "micrometer", 1.0) / (1000 if own.get("space") == "patient" else 1)
        affine[row, row], affine[row, 3] = scale[at] * factor, shift[at] * factor
        if not (math.isfinite(affine[row, row]) and affine[row, row] > 0):
            raise ValueError(
                f"{name} has a spacing of {scale[at]:g} along {axis}; expected a length above 0: repair its metadata"
            )
    labels = tuple(str(c.get("label", n)) for n, c in enumerate((about.get("omero") or {}).get("channels") or ()))
    count = shape[axes.index("c")] if "c" in axes else 1
    if labels and len(labels) != count:
        problems.append(f"{len(labels)} channel names for {count} channels; they are left out")
        labels = ()
    coarser = tuple(float(scale[axes.index(a)] / finest[axes.index(a)]) if a in axes else 1.0 for a in "zyx")
    version = str(about.get("version") or image.get("version") or "0.4")
    return ImageAbout(
        axes,
        dataset,
        affine,
        (coarser[0], coarser[1], coarser[2]),
        labels,
        len(datasets),
        version,
        own,
        tuple(problems),
    )


def _transformation(
    image: Mapping[str, Any], dataset: Mapping[str, Any], dimensions: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and translation of a level, those of the whole image applied after its own."""
    scale, shift = np.ones(dimensions), np.zeros(dimensions)
    for step in (*dataset.get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())):
        kind, value = step.get("type"), step.get(step.get("type", ""))
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or value is None or len(value) != dimensions:
            raise ValueError(
                f"{name} has the coordinate transformation {dict(step)}; expected scale or translation with {dimensions} numbers"
            )
        if kind == "scale":
            scale, shift = scale * value, shift * value
        else:
            shift = shift + value
    return scale, shift


def _axes(listed: Any, dimensions: int, name: str) -> tuple[str, list[str | None]]:
    """Return the axes' letters in lower case, and their units."""
    if listed is None:  # before 0.3 images had all five
        listed = list("tczyx")[-dimensions:] if dimensions != 5 else list("tczyx")
    names = [str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in listed]
    units = [axis.get("unit") if isinstance(axis, Mapping) else None for axis in listed]
    short = ["c" if n == "channel" else "t" if n == "time" else n for n in names]
    if len(short) != dimensions or len(set(short)) != dimensions or any(len(n) != 1 for n in short):
        raise ValueError(
            f"{name} has axes {', '.join(names)} for {dimensions} dimensions; expected one letter for each"
        )
    if "y" not in short or "x" not in short:
        raise ValueError(f"{name} has axes {', '.join(names)}; expected y and x among them")
    return "".join(short), units


def member(group: Any, path: str, name: str) -> Any:
    """Return an array that metadata name.

    Args:
        group: zarr's.
        path: of the array in it.
        name: of the image, for errors.

    Raises:
        ValueError: when it is not there.
    """
    try:
        array = group[path]
        _ = array.shape
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f"{name} lists the resolution level {path!r} but holds no such array: copy it again"
        ) from error
    return array


def inside(path: str, where: Path) -> str:
    """Return a path from metadata, checked to stay within its store.

    Args:
        path: as the metadata name it.
        where: the store, for errors.

    Raises:
        ValueError: when it leads elsewhere.
    """
    parts = path.strip("/").split("/")
    if not path.strip("/") or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise ValueError(f"{where} names the path {path!r} in its metadata; expected one inside the store")
    return "/".join(parts)
