"""Volumes in a posterior store: which ones, what tells that they changed, and what it takes to give them back."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data import load_data
from omnivae.data.config import VOLUMES
from omnivae.data.latents import PosteriorStore
from omnivae.data.volumes.dataset_loading import find_volumes
from omnivae.data.volumes.dataset_source import Entry, path_hash, with_channels
from omnivae.data.volumes.listing import VolumeEntry
from omnivae.data.volumes.transforms import geometry_of
from omnivae.jobs.file_list import FileItem
from omnivae.jobs.images import Part
from omnivae.jobs.run_data import data_for, run_data
from omnivae.jobs.volumes import OnGaps, bare_name
from omnivae.jobs.volumes_codec import Seen, VolumeCodec
from omnivae.jobs.volumes_work import names_of, read_for, volumes_at
from omnivae.volume import Stored, Unit, Volume

#: Headers whose voxels lie in other files.
_DETACHED = (".nhdr", ".mhd")


def volumes_of_paths(
    codec: VolumeCodec,
    paths: Sequence[str | Path],
    output: Path,
    *,
    series: str | None,
    time: int | None,
    unit: Unit | None,
    on_gaps: OnGaps,
) -> list[FileItem]:
    """List volumes under the names that ``omnivae reconstruct`` gives them.

    Args:
        codec: of the model that will see them.
        paths: files, folders, archives of DICOM.
        output: of the command.
        series: number of one DICOM series.
        time: which of several time points.
        unit: of the values of formats that state none.
        on_gaps: what to do about missing slices of a DICOM series.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for a place without volumes, and equal names.
    """
    entries = volumes_at(paths, series, output=output)
    return [
        FileItem(
            name,
            partial(read_for, codec.unit, entry, unit=unit, time=time, on_gaps=on_gaps),
            partial(content_of, entry),
            str(entry.path),
        )
        for entry, name in zip(entries, names_of(entries, output), strict=True)
    ]


def volumes_of_run(
    codec: VolumeCodec, directory: Path, path: str | None, part: Part
) -> tuple[list[FileItem], dict[str, Any]]:
    """List the volumes of a run, or those of a split of any data, as training finds and names them.

    Args:
        codec: of the model that will see them.
        directory: of the model.
        path: of the data; the run's own by default.
        part: which split, or "all".

    Returns:
        The volumes, and the resolution level and channels that are read of them.

    Raises:
        ValueError: when neither a path nor a run is known, or a split has no volumes.
    """
    config = data_for(codec.model, path, run_data(directory))
    if path is not None and codec.unit == "HU":
        # The model says that its values are HU, and reading checks that these can be.
        config = replace(config, volume=replace(config.volume, unit="HU", intensity="auto"))
    if part == "all":
        entries = find_volumes(config)[1]
    else:
        chosen: Any = getattr(load_data(config, value_range=codec.model.value_range), part)
        entries = [chosen.source.entries[int(i)] for i in np.unique(chosen.indices)]
    if not entries:
        raise ValueError(f"{config.path} has no volumes in the split {part!r}")
    names = config.volume.channel_names
    items = [FileItem(bare_name_of(entry.key), partial(_load, entry, names), entry.content_hash) for entry in entries]
    return items, {"level": config.volume.level, "channels": list(names)}


def is_named_data(paths: Sequence[str | Path]) -> bool:
    """Return whether a path is the name of a data set of volumes, such as phantoms.

    Args:
        paths: of volumes.
    """
    return len(paths) == 1 and str(paths[0]) in VOLUMES


def content_of(entry: VolumeEntry) -> str:
    """Return the SHA-256 of a volume as it is stored: of its file or files, whatever order or names DICOM's have.

    Args:
        entry: the volume.
    """
    if entry.series is not None:
        frames: dict[Any, list[int]] = {}
        for frame in entry.series.frames:
            frames.setdefault(frame.item, []).append(frame.index)
        parts = []
        for item, indices in frames.items():
            with item.open() as file:
                parts.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()} {sorted(indices)}")
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()
    if entry.path.is_dir():
        return path_hash(entry.path / entry.position if entry.position else entry.path)
    files = [entry.path, *(_voxel_files(entry.path) if entry.path.suffix.lower() in _DETACHED else ())]
    digests = []
    for path in files:
        with path.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return digests[0] if len(files) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def describe_volume(volume: Volume, seen: Seen) -> dict[str, Any]:
    """Return what it takes to give a volume back from its latent, ready for JSON; nothing that tells of a person.

    Args:
        volume: as it was read.
        seen: as the model sees it.

    Returns:
        Geometry, type, unit and origin of the volume; ``window``, ``limits`` and ``outside`` of its values; ``seen``: affine and
        orientation in the model's frame.
    """
    stored = volume.stored
    description = {
        "size": list(volume.size),
        "num_channels": len(volume.array),
        "channels": list(volume.channels),
        "affine": volume.affine.tolist(),
        "space": volume.space,
        "unit": volume.unit,
        "dtype": volume.array.dtype.name,
        "stored": None if stored is None else [stored.dtype, stored.slope, stored.intercept],
        "format": volume.format,
        "origin": dict(volume.origin),
        "window": seen.applied.facts["window"],
        "limits": list(seen.limits),
        "outside": [seen.below, seen.above],
        "seen": {"affine": seen.applied.volume.affine.tolist(), "orientation": seen.applied.volume.orientation},
    }
    return json.loads(json.dumps(description))


def volume_like(description: Mapping[str, Any]) -> Volume:
    """Return the geometry, type and origin that :func:`describe_volume` described, without values.

    Args:
        description: of a volume.
    """
    stored = description["stored"]
    volume = Volume(
        np.broadcast_to(np.zeros((), description["dtype"]), (description["num_channels"], *description["size"])),
        np.array(description["affine"]),
        unit=description["unit"],
        space=description["space"],
        channels=tuple(description["channels"]),
        stored=None if stored is None else Stored(*stored),
        format=description["format"],
        origin=description["origin"],
    )
    return geometry_of(volume)


def said_of_clipping(path: Path) -> str | None:
    """Return a sentence about voxels outside of the model's window, or None where there are none.

    Args:
        path: of a store of volumes.
    """
    store = PosteriorStore(path)
    shares = {}
    for i, key in enumerate(store.keys):
        volume = (store.file(i) or {})["volume"]
        outside = sum(volume["outside"])
        if outside:
            shares[key] = outside / (math.prod(volume["size"]) * volume["num_channels"])
    if not shares:
        return None
    key = max(shares, key=shares.__getitem__)
    return (
        f"{len(shares)} of {len(store)} volumes have values outside of the model's window, which were clipped: at most "
        f"{shares[key]:.2%} of the voxels ({key})"
    )


def bare_name_of(key: str) -> str:
    """Return a name without the suffix of its format.

    Args:
        key: of a volume.
    """
    return bare_name(VolumeEntry(key, Path(key), ""))


# -- inside


def _load(entry: Entry, names: tuple[str, ...]) -> Volume:
    volume = entry.load()
    return with_channels(volume, names) if names else volume


def _voxel_files(header: Path) -> list[Path]:
    """Return the files that a header names, in the order in which it does."""
    found: dict[Path, None] = {}
    for line in header.read_bytes()[:65536].decode("latin-1").splitlines():
        for name in {line.strip(), re.split(r"[:=]", line, maxsplit=1)[-1].strip()}:
            if not name or name in (".", ".."):
                continue
            # A pattern such as "slice%03d.raw 1 20 1", or a name.
            pattern = re.sub(r"%\d*d", "*", name.split()[0]) if "%" in name else ""
            files = sorted(header.parent.glob(pattern)) if pattern else [header.parent / name]
            found |= dict.fromkeys(file for file in files if file.is_file() and file != header)
    return list(found)
