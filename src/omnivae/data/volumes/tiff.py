"""TIFF stacks through tifffile: axes and spacing as ImageJ and OME write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.header import damaged
from omnivae.data.tiff import TIFF_SIGNATURES, check_extent, open_series
from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.nifti import pick_time
from omnivae.data.volumes.values import check_samples, native
from omnivae.volume import Stored, Unit, Volume

SUFFIXES = (".tif", ".tiff")
#: Letters that writers give to axes they know nothing about: tifffile's own, and those of plain multi-page files.
_UNKNOWN = "QI"
_MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "\\u00b5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("inch", "in"), 25400.0),
}


def tiff_header(path: Path, *, axes: str | None = None) -> VolumeHeader:
    """Read what a TIFF stack says about its volume.

    Args:
        path: ``.tif`` or ``.tiff``.
        axes: names of the axes as stored, such as "ZCYX", where the file does not say them.

    Returns:
        The header, axes z, y, x on a stage.

    Raises:
        ValueError: for damaged files, several images in one, and axes that are not known.
    """
    with _open(path) as (tif, series):
        return _header(tif, series, path, axes)[0]


def read_tiff_stack(
    path: Path, *, time: int | None = None, axes: str | None = None, unit: Unit = "arbitrary"
) -> Volume:
    """Read a TIFF stack.

    Args:
        path: ``.tif`` or ``.tiff``.
        time: which of several time points.
        axes: as :func:`tiff_header`.
        unit: of the values.

    Returns:
        The volume, axes z, y, x on a stage, micrometres.

    Raises:
        ValueError: as :func:`tiff_header`, and for several time points without ``time``.
    """
    with _open(path) as (tif, series):
        about, order = _header(tif, series, path, axes)
        at = pick_time(about.times, time, str(path))
        try:
            array = native(series.asarray())
        except Exception as error:  # decoders raise what they like
            raise damaged(str(path), error) from error
    kept = [letter for letter in "TCZYX" if letter in order]
    array = array.reshape([n for letter, n in zip(order, series.shape, strict=True)])
    array = array.transpose(
        [order.index(letter) for letter in kept] + [n for n, o in enumerate(order) if o not in kept]
    )
    array = array.reshape(about.times, *about.shape)[at]
    return Volume(
        np.ascontiguousarray(array),
        about.affine,
        unit=unit,
        space="stage",
        channels=about.channels,
        stored=Stored(about.dtype),
        source=str(path),
        format="tiff",
        problems=about.problems,
    )


def is_stack(path: Path) -> bool:
    """Say whether a TIFF file holds a stack of slices, not one picture; damaged files count, so that reading names the damage.

    Args:
        path: of the file.
    """
    with path.open("rb") as file:
        if file.read(4) not in TIFF_SIGNATURES:
            return True
    try:
        return tiff_header(path).size[0] > 1
    except ValueError:
        return _pages(path) != 1


def _pages(path: Path) -> int:
    try:
        with path.open("rb") as file, open_series(file, str(path)) as (tif, _):
            return len(tif.pages)
    except ValueError:
        # A damaged file counts as a stack, so that it is listed, and reading it says what is wrong.
        return 0


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file, open_series(file, str(path)) as (tif, series):
        check_extent(series, str(path), path.stat().st_size)
        yield tif, series


def _header(tif: Any, series: Any, path: Path, axes: str | None) -> tuple[VolumeHeader, str]:
    """Return the header, and the letter of each stored axis."""
    order, problems = _order(series, path, axes)
    if series.dtype is None:
        raise ValueError(f"{path} holds pages of different types; expected one type: write the pages anew")
    check_samples(np.dtype(series.dtype), str(path))
    if series.keyframe.photometric in (3, 5, 6) or (series.keyframe.photometric == 2 and "C" not in order):
        raise ValueError(f"{path} holds colours by palette or by components; expected one number a voxel: convert it")
    sizes = dict(zip(order, series.shape, strict=True))
    affine = np.eye(4)
    said = _ome(tif) if tif.is_ome else _imagej(tif, series) if tif.is_imagej else {}
    for row, letter in enumerate("ZYX"):
        length = said.get(letter)
        if length is None:
            if sizes.get(letter, 1) > 1:
                problems.append(f"no spacing along {letter.lower()}; 1 micrometre is assumed")
            continue
        if not np.isfinite(length) or length <= 0:
            raise ValueError(f"{path} has a spacing of {length} along {letter.lower()}; expected a length above 0")
        affine[row, row] = length
    names = said.get("channels") or ()
    count = sizes.get("C", 1)
    header = VolumeHeader(
        (count, sizes.get("Z", 1), sizes["Y"], sizes["X"]),
        affine,
        np.dtype(series.dtype).name,
        space="stage",
        channels=tuple(names) if len(names) == count else (),
        times=sizes.get("T", 1),
        format="tiff",
        source=str(path),
        problems=tuple(problems),
    )
    return header, order


def _order(series: Any, path: Path, axes: str | None) -> tuple[str, list[str]]:
    shape, stored = series.shape, series.axes.upper()
    if axes is not None:
        given = axes.upper()
        if (
            len(given) != len(shape)
            or len(set(given)) != len(given)
            or set(given) - set("TCZYX")
            or not set("YX") <= set(given)
        ):
            raise ValueError(
                f"got the axes {axes!r} for {path} of shape {list(shape)}; expected one letter of T, C, Z, Y, X for each"
            )
        return given, []
    stored = stored.replace("S", "C") if "C" not in stored else stored
    unknown = [n for n, letter in enumerate(stored) if letter in _UNKNOWN and shape[n] > 1]
    letters, problems = list(stored), []
    if len(unknown) == 1 and "Z" not in stored:
        letters[unknown[0]] = "Z"
        problems.append("its pages have no named axis; they are taken for slices along z")
    odd = [n for n, letter in enumerate(letters) if letter not in "TCZYX"]
    if any(shape[n] > 1 for n in odd) or not {"Y", "X"} <= set(letters):
        raise ValueError(
            f"{path} holds axes {stored} of sizes {list(shape)}, whose meaning the file does not say: give axes, such as "
            f"{'ZCYX'[-len(shape) :]!r} (in Python: read_volume(path, axes=...)), or write it anew with its axes, as ImageJ and "
            "OME do"
        )
    for n in odd:
        letters[n] = chr(ord("a") + n)  # of length 1: any name will do
    return "".join(letters), problems


def _imagej(tif: Any, series: Any) -> dict[str, Any]:
    about = tif.imagej_metadata or {}
    factor = _MICROMETRES.get(str(about.get("unit", "")).strip().lower())
    if factor is None:  # "pixel", or nothing
        return {"channels": _labels(about, series)}
    said: dict[str, Any] = {"channels": _labels(about, series)}
    if about.get("spacing"):
        said["Z"] = abs(float(about["spacing"])) * factor
    for letter, tag in (("X", 282), ("Y", 283)):
        value = series.keyframe.tags.valueof(tag)
        if value and value[0] and value[1]:
            said[letter] = value[1] / value[0] * factor
    return said


def _labels(about: Mapping[str, Any], series: Any) -> tuple[str, ...]:
    """Return the channels' names where ImageJ labels each channel, not each slice."""
    labels = about.get("Labels") or []
    count = dict(zip(series.axes, series.shape, strict=True)).get("C", 1)
    return tuple(map(str, labels)) if len(labels) == count > 1 else ()


def _ome(tif: Any) -> dict[str, Any]:
    import tifffile

    try:
        image = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    except Exception:  # metadata that is no XML or has no image: as if there were none
        return {}
    said: dict[str, Any] = {}
    for letter in "XYZ":
        factor = _MICROMETRES.get(str(pixels.get(f"PhysicalSize{letter}Unit", "µm")).strip().lower())
        if f"PhysicalSize{letter}" in pixels and factor is not None:
            said[letter] = float(pixels[f"PhysicalSize{letter}"]) * factor
    channels = pixels.get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [str(channel.get("Name", "")) for channel in channels if isinstance(channel, Mapping)]
    said["channels"] = tuple(names) if all(names) else ()
    return said
