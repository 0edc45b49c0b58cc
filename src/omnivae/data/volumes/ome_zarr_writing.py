"""OME-Zarr written with zarr alone: images and plates, NGFF 0.4 (zarr 2) or 0.5 (zarr 3), five axes t, c, z, y, x."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnivae.data.volumes.ome_zarr_metadata import OWN, is_ome_zarr
from omnivae.data.volumes.values import need, to_stored
from omnivae.files import CannotWrite
from omnivae.volume import Volume

Version = Literal["0.4", "0.5"]
_COLOURS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")
_CHUNK = 256


def write_ome_zarr(
    volume: Volume,
    path: str | Path,
    *,
    version: Version = "0.4",
    levels: int = 1,
    chunks: tuple[int, int, int] | None = None,
    shards: tuple[int, int, int] | None = None,
    clip: bool = False,
) -> Path:
    """Write a volume as an OME-Zarr image.

    A patient's volume is stored with axes z, y, x in millimetres; its affine, which OME-Zarr cannot hold, goes into an attribute of
    this library, by which it comes back exactly.

    Args:
        volume: of a patient or a stage.
        path: of the store; an OME-Zarr store that is there is replaced once the new one is whole.
        version: of the specification; 0.4 is what most programs read.
        levels: of resolution; each halves y and x by means of 2 x 2 voxels.
        chunks: voxels of a chunk along z, y, x; None: whole planes of at most 256 x 256.
        shards: voxels of a shard (a file of several chunks), a multiple of the chunks; version 0.5 only.
        clip: as :func:`omnivae.data.volumes.to_stored`.

    Returns:
        The path.

    Raises:
        ValueError: for videos, unknown versions, and more levels than the image can be halved.
        FileExistsError: when something else than OME-Zarr is at the path.
        CannotWrite: when the disk is full and the like.
    """
    _check(version, shards)
    path = Path(path)

    def fill(group: Any) -> None:
        _put(group, volume, version=version, levels=levels, chunks=chunks, shards=shards, clip=clip)

    return _replace_store(path, version, fill)


def write_plate(
    positions: Mapping[str, Volume] | Iterable[tuple[str, Volume]],
    path: str | Path,
    *,
    name: str = "plate",
    version: Version = "0.4",
    levels: int = 1,
    chunks: tuple[int, int, int] | None = None,
    shards: tuple[int, int, int] | None = None,
) -> Path:
    """Write a plate of a high-content screen (HCS): wells of fields of view.

    Args:
        positions: field of view, such as "A/1/0" (row, column, field), to its volume; one at a time is held in memory where an
            iterable yields them.
        path: as :func:`write_ome_zarr`.
        name: of the plate.
        version: as there.
        levels: as there.
        chunks: as there.
        shards: as there.

    Returns:
        The path.

    Raises:
        ValueError: for positions that are not row/column/field, and as :func:`write_ome_zarr`.
        FileExistsError: as there.
        CannotWrite: as there.
    """
    _check(version, shards)
    path = Path(path)

    def fill(group: Any) -> None:
        wells: dict[str, list[str]] = {}
        for position, volume in positions.items() if isinstance(positions, Mapping) else positions:
            parts = position.split("/")
            if len(parts) != 3 or not all(part.isalnum() for part in parts):
                raise ValueError(
                    f"got the position {position!r}; expected row/column/field of letters and digits, such as A/1/0"
                )
            row, column, field = parts
            fields = wells.setdefault(f"{row}/{column}", [])
            if field in fields:
                raise ValueError(f"got the position {position!r} twice")
            fields.append(field)
            image = group.require_group(row).require_group(column).require_group(field)
            _put(image, volume, version=version, levels=levels, chunks=chunks, shards=shards, clip=False)
        if not wells:
            raise ValueError("got no positions; expected at least one field of view")
        rows = sorted({well.split("/")[0] for well in wells})
        columns = sorted({well.split("/")[1] for well in wells}, key=lambda c: (len(c), c))
        for well, fields in wells.items():
            _set(group[well], version, "well", {"images": [{"path": field} for field in fields]})
        plate = {
            "name": name,
            "rows": [{"name": row} for row in rows],
            "columns": [{"name": column} for column in columns],
            "wells": [
                {
                    "path": well,
                    "rowIndex": rows.index(well.split("/")[0]),
                    "columnIndex": columns.index(well.split("/")[1]),
                }
                for well in wells
            ],
            "field_count": max(map(len, wells.values())),
        }
        _set(group, version, "plate", plate)

    return _replace_store(path, version, fill)


def _check(version: str, shards: tuple[int, int, int] | None) -> None:
    if version not in ("0.4", "0.5"):
        raise ValueError(f"got version {version!r} of OME-Zarr; expected '0.4' or '0.5'")
    if shards is not None and version != "0.5":
        raise ValueError(f"got shards for version {version}; expected version 0.5, whose zarr 3 has them")


def _put(
    group: Any,
    volume: Volume,
    *,
    version: Version,
    levels: int,
    chunks: tuple[int, int, int] | None,
    shards: tuple[int, int, int] | None,
    clip: bool,
) -> None:
    """Write one image into a group."""
    if volume.space == "video":
        raise ValueError("got frames of a video; OME-Zarr holds volumes of a patient or a stage: write a video file")
    raw, stored = to_stored(volume, clip=clip)
    if stored.slope != 1 or stored.intercept != 0:  # which OME-Zarr cannot say
        raw = volume.array
    patient = volume.space == "patient"
    affine = volume.affine
    off_axis = affine[:3, :3] - np.diag(np.diag(affine[:3, :3]))
    if not patient and (off_axis.any() or (np.diag(affine) <= 0).any()):
        raise ValueError("got a volume of a stage whose axes are turned; OME-Zarr holds spacing and position only")
    if patient:
        raw = raw.transpose(0, 3, 2, 1)
    z, y, x = volume.spacing[::-1] if patient else volume.spacing
    shift = [0.0] * 3 if patient else [float(t) for t in affine[:3, 3]]
    datasets, block = [], chunks or (1, min(_CHUNK, raw.shape[2]), min(_CHUNK, raw.shape[3]))
    for level in range(levels):
        if level:
            raw = _halved(raw)
        factor = 2**level
        _array(group, str(level), raw[None], version, block, shards)
        scale = [1.0, 1.0, z, y * factor, x * factor]
        # The first voxel of a coarser level lies in the middle of the fine ones that it stands for.
        moved = [0.0, 0.0, shift[0], shift[1] + y * (factor - 1) / 2, shift[2] + x * (factor - 1) / 2]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(moved):
            steps.append({"type": "translation", "translation": moved})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    unit = "millimeter" if patient else "micrometer"
    axes: list[dict[str, str]] = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": unit} for axis in "zyx"]
    # Of a patient's volume OME's own fields hold the spacing alone; the rest is ours.
    own: dict[str, Any] = {"space": volume.space, "unit": volume.unit}
    if patient:
        own["affine"] = affine.tolist()
    _set(group, version, "multiscales", [{"name": "image", "axes": axes, "datasets": datasets}])
    if volume.channels:
        low, high = float(volume.array.min()), float(volume.array.max())
        window = {"min": low, "max": high, "start": low, "end": high}
        listed = [
            {"label": label, "color": _COLOURS[n % len(_COLOURS)], "active": True, "window": window}
            for n, label in enumerate(volume.channels)
        ]
        _set(group, version, "omero", {"channels": listed})
    group.attrs[OWN] = own


def _array(
    group: Any,
    name: str,
    data: np.ndarray,
    version: str,
    block: tuple[int, int, int],
    shards: tuple[int, int, int] | None,
) -> None:
    sizes = [min(n, b) for n, b in zip(data.shape[2:], block, strict=True)]
    extra: dict[str, Any] = {"dimension_names": list("tczyx")} if version == "0.5" else {}
    extra["chunk_key_encoding"] = {"name": "default" if version == "0.5" else "v2", "separator": "/"}
    if shards is not None:
        extra["shards"] = (1, 1, *shards)
        sizes = list(block)
    array = group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=(1, 1, *sizes), **extra)
    array[...] = data


def _halved(array: np.ndarray) -> np.ndarray:
    """Return means of 2 x 2 voxels in y and x; the last row or column of odd sizes is left out."""
    y, x = array.shape[2] // 2, array.shape[3] // 2
    if min(y, x) < 1:
        raise ValueError(
            f"got more levels than planes of {array.shape[2]} x {array.shape[3]} voxels can be halved: ask for fewer"
        )
    mean = array[:, :, : 2 * y, : 2 * x].reshape(*array.shape[:2], y, 2, x, 2).mean((3, 5), dtype=np.float64)
    return (np.rint(mean) if array.dtype.kind in "iu" else mean).astype(array.dtype)


def _set(group: Any, version: str, key: str, value: Any) -> None:
    if version == "0.5":
        if key in ("plate", "well"):  # which name their version themselves, too
            value = {**value, "version": "0.5"}
        group.attrs["ome"] = {**dict(group.attrs.get("ome", {})), "version": "0.5", key: value}
        return
    if key == "multiscales":
        value = [{**value[0], "version": "0.4"}]
    elif isinstance(value, Mapping):
        value = {**value, "version": "0.4"}
    group.attrs[key] = value


def _replace_store(path: Path, version: str, fill: Any) -> Path:
    """Let a function fill a store beside its place, then put it there: a reader sees the old store or the whole new one."""
    zarr = need("zarr", "microscopy")
    if path.exists() and not (is_ome_zarr(path) or (path.is_dir() and not any(path.iterdir()))):
        raise FileExistsError(f"{path} is there and no OME-Zarr store: choose another name, or remove it")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        fill(zarr.open_group(str(beside), mode="w", zarr_format=3 if version == "0.5" else 2))
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except OSError as error:
        raise CannotWrite(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists():
            if not path.exists():
                old.rename(path)
            shutil.rmtree(old, ignore_errors=True)
    return path
