"""From a configuration to three data sets of volumes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omnivae.data.config import VOLUMES, DataConfig
from omnivae.data.sources import SPLITS, Split
from omnivae.data.volumes.dataset import Cutting, VolumeDataset, VolumeTransform
from omnivae.data.volumes.dataset_cache import Store
from omnivae.data.volumes.dataset_dicom import dicom_entries
from omnivae.data.volumes.dataset_source import Entry, VolumeSource, file_entry
from omnivae.data.volumes.listing import VolumeEntry, list_volumes
from omnivae.data.volumes.ome_zarr_metadata import is_ome_zarr
from omnivae.data.volumes.reading import read_volume
from omnivae.data.volumes.recognising import is_dicom, is_pairs
from omnivae.volume import Unit

if TYPE_CHECKING:
    from omnivae.data.loading import DataSplits

log = logging.getLogger(__name__)

#: Ends of the names of masks that lie beside their volumes.
MASKS = ("_seg", "_mask", "_masks", "_label", "_labels", "_segmentation")
#: Ends of the names of files that hold one volume each.
FILES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
TIFF = (".tif", ".tiff")
#: Settings of images that mean nothing for volumes, and what does their work.
_INSTEAD = {
    "image_size": "data.volume.patch_size",
    "channels": "data.volume.channel_names",
    "resolutions": "data.volume.patch_size",
    "binarize": None,
    "flip": "data.volume.flip_axes",
    "random_crop": "data.volume.patch_size",
    "input_range": "data.volume.window",
    "clip": "data.volume.clip",
    "channel_axis": None,
    "pages_as_channels": None,
    "image_column": None,
    "label_column": None,
    "cond": None,
    "labels_per_class": None,
}


def load_volumes(config: DataConfig, *, value_range: tuple[float, float], seed: int = 0) -> DataSplits:
    """Read a data set of volumes and split it.

    Folders train, val and test are used where they are; otherwise volumes are carved off by the SHA-256 rank of their name, or,
    where the data has three or more folders, of their folder's, so that a patient's scans stay together.

    Args:
        config: what to read.
        value_range: what the ends of the intensity range become.
        seed: of the random patches.

    Returns:
        Random patches for training, and fixed ones of other volumes for validation and test; ``test.whole()`` has whole volumes.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for volumes that cannot be read or used together, and settings that are for images.
    """
    refuse_image_settings(config)
    name, entries = find_volumes(config)
    source = VolumeSource(name, entries, config.volume, store=store_of(config), on_error=config.on_error)
    return split_up(source, config, value_range=value_range, seed=seed)


def store_of(config: DataConfig) -> Store | None:
    """Return where prepared volumes are kept.

    Args:
        config: says whether, and how many bytes at most.
    """
    if config.cache is False:
        return None
    return Store(limit=None if config.volume.cache_gb is None else int(config.volume.cache_gb * 1e9))


def split_up(
    source: VolumeSource,
    config: DataConfig,
    *,
    value_range: tuple[float, float],
    seed: int,
    kind: type[VolumeDataset] = VolumeDataset,
    volumes_per_item: int = 1,
) -> DataSplits:
    """Return the splits of a source.

    Args:
        source: the volumes.
        config: what to do with them.
        value_range: what the ends of the intensity range become.
        seed: of the random patches.
        kind: of data set.
        volumes_per_item: 2 where the source's channels are those of pairs.
    """
    from omnivae.data.loading import DataSplits, DataSummary

    name, settings = source.name, config.volume
    intensity = source.intensity(value_range)
    channels = int(source.channels[0]) // volumes_per_item
    patch = settings.patch or _common_size(source)
    parts = split_volumes(source, config)
    base = VolumeTransform(
        shape=(channels, *patch),
        intensity=intensity,
        cutting="random",
        patches_per_volume=settings.patches_per_volume,
        foreground=settings.foreground,
        flip_axes=settings.flip_axes,
        level=settings.level,
    )
    cutting: dict[Split, Cutting] = {"train": "random", "val": "fixed", "test": "fixed"}
    datasets = {
        split: kind(source, parts[split], split=split, transform=replace(base, cutting=cutting[split]), seed=seed)
        for split in SPLITS
    }
    sizes = source.sizes
    native = DataSummary(
        counts={split: len(parts[split]) for split in SPLITS},
        min_size=tuple(int(n) for n in sizes.min(axis=0)),
        median_size=tuple(int(n) for n in np.median(sizes, axis=0)),
        max_size=tuple(int(n) for n in sizes.max(axis=0)),
        channels=dict(Counter((source.channels // volumes_per_item).tolist())),
        bit_depth=source.bit_depth,
        dtypes=dict(Counter(source.dtypes.tolist())),
    )
    return DataSplits(
        train=datasets["train"],
        val=datasets["val"],
        test=datasets["test"],
        name=name,
        channels=channels,
        image_size=tuple(patch),
        value_range=value_range,
        classes=None,
        native=native,
        official_test="test" in _stated_splits(source.entries),
        skipped=list(source.skipped),
        intensity=intensity.to_dict(),
    )


def refuse_image_settings(config: DataConfig) -> None:
    """Raise ``ValueError`` for a setting of images that means nothing for volumes.

    Args:
        config: of volumes.
    """
    default = DataConfig(path=config.path)
    for name, instead in _INSTEAD.items():
        if getattr(config, name) != getattr(default, name):
            remedy = f"leave it out; volumes have {instead}" if instead else "leave it out"
            raise ValueError(
                f"got data.{name}={getattr(config, name)}, a setting of images, and {config.path} holds volumes: {remedy}"
            )


def find_volumes(config: DataConfig) -> tuple[str, list[Entry]]:
    """List the volumes of a configuration.

    Args:
        config: what to read.

    Returns:
        Name of the data set, and its volumes sorted by name; masks beside their volumes are left out.

    Raises:
        ValueError: for a place without volumes.
    """
    if config.path in VOLUMES:
        from omnivae.data.volumes.dataset_phantoms import phantom_entries

        return config.path, phantom_entries(config.path)
    path = Path(config.path).expanduser()
    if path.is_file() and is_pairs(path):
        from omnivae.data.volumes.dataset_pairs import member_entries

        return path.stem, member_entries(path, config)
    entries = _listed(path, config)
    masks = [entry for entry in entries if _is_mask(entry.key, {e.key for e in entries})]
    if masks:
        log.info("%d masks lie beside their volumes and are left out, e.g. %s", len(masks), masks[0].key)
    entries = [entry for entry in entries if entry not in masks]
    if not entries:
        raise ValueError(
            f"no volumes in {path}: expected NIfTI, NRRD, MetaImage, DICOM series or OME-Zarr in it or its subfolders"
        )
    return path.resolve().name, entries


def _listed(path: Path, config: DataConfig) -> list[Entry]:
    unit: Unit | None = "HU" if config.volume.unit == "HU" else None
    level = config.volume.level or None
    single = path.is_file() or is_ome_zarr(path)
    root = path.parent if single else path
    stores, files = ([path], []) if is_ome_zarr(path) else ([], [path.name]) if single else _walked(path)
    entries = [_store_entry(root, entry, level) for store in stores for entry in list_volumes(store)]
    # Stacks of TIFF pages are images unless they are said to be volumes.
    ends = (*FILES, *TIFF) if config.format == "volumes" else FILES
    plain = [file for file in files if file.lower().endswith(ends)]
    if level is not None and plain:
        raise ValueError(f"got data.volume.level={level} and {plain[0]}, which has one resolution: leave it out")
    entries += [file_entry(root / file, file, partial(read_volume, root / file, unit=unit)) for file in plain]
    others = (file for file in files if file not in set(plain))
    if any(file.lower().endswith((".dcm", ".dicom", ".zip")) or is_dicom(root / file) for file in others):
        entries += dicom_entries(path, unit=unit, on_error=config.on_error)
    return entries


def _walked(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the OME-Zarr stores of a folder, which are not entered, and the other files, relative to it."""
    stores: list[Path] = []
    files: list[str] = []
    for here, subfolders, names in os.walk(folder, followlinks=True):
        inside = [Path(here) / name for name in sorted(subfolders) if not name.startswith(".")]
        stores += [path for path in inside if is_ome_zarr(path)]
        subfolders[:] = [path.name for path in inside if not is_ome_zarr(path)]
        files += [(Path(here) / n).relative_to(folder).as_posix() for n in sorted(names) if not n.startswith(".")]
    return stores, sorted(files)


def _store_entry(root: Path, entry: VolumeEntry, level: int | None) -> Entry:
    # A field of view of a plate has a folder of its own.
    place = entry.path / entry.position if entry.position else entry.path
    name = place.relative_to(root).as_posix()
    # Fields of view of one well show neighbouring cells: they stay together.
    well = str(Path(name).parent) if entry.position else None
    return replace(file_entry(place, name, partial(entry.read, level=level)), group=well)


def split_volumes(source: VolumeSource, config: DataConfig) -> dict[Split, np.ndarray]:
    """Return the volumes of each split; those of one folder stay together where there are three or more.

    Args:
        source: all volumes.
        config: fractions, seed and limit.

    Returns:
        Numbers of volumes.
    """
    from omnivae.data.loading import _carve

    keys = [entry.key for entry in source.entries]
    given = _stated_splits(source.entries) or {"train": list(range(len(keys)))}
    used = [i for part in given.values() for i in part]
    groups = group_names([keys[i] for i in used])
    of = {i: source.entries[i].group or name for i, name in zip(used, groups, strict=True)}
    order: dict[Split, list[str]] = {}
    for split, part in given.items():
        names = sorted({of[i] for i in part})
        order[split] = sorted(names, key=lambda n: hashlib.sha256(f"{config.split_seed}:{n}".encode()).digest())
    numbers = {split: np.arange(len(names)) for split, names in order.items()}
    fractions: dict[Split, float] = {"val": config.val_fraction, "test": config.test_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if split not in numbers}
    carved = numbers | _carve(numbers["train"], missing)
    parts: dict[Split, np.ndarray] = {}
    for split in SPLITS:
        home: Split = split if split in order else "train"
        chosen = [order[home][int(n)] for n in carved[split]]
        rows = [i for name in chosen for i in given[home] if of[i] == name]
        parts[split] = np.array(rows[: config.limit], dtype=np.int64)
    return parts


def group_names(keys: list[str]) -> list[str]:
    """Return what each volume belongs to: its first folder where there are three or more of them, itself otherwise.

    Args:
        keys: names of volumes, with forward slashes.

    Example:
        >>> group_names(["p1/a", "p1/b", "p2/a", "p3/a"])
        ['p1', 'p1', 'p2', 'p3']
        >>> group_names(["ct/a", "mr/a"])
        ['ct/a', 'mr/a']
    """
    inner = [key.split("/", 1)[1] if key.split("/", 1)[0] in SPLITS and "/" in key else key for key in keys]
    first = [key.split("/", 1)[0] for key in inner]
    return first if len(set(first)) >= 3 and all("/" in key for key in inner) else keys


def _stated_splits(entries: Sequence[Entry]) -> dict[Split, list[int]]:
    """Return the volumes of each split that the data state, by a column of their listing or by folders."""
    stated = {split: [i for i, entry in enumerate(entries) if entry.split == split] for split in SPLITS}
    if not any(stated.values()):
        return _split_folders([entry.key for entry in entries])
    if not stated["train"]:
        raise ValueError("no row of the listing is for training according to its column 'split'")
    return {split: part for split, part in stated.items() if part}


def _split_folders(keys: list[str]) -> dict[Split, list[int]]:
    """Return the volumes in folders train, val and test; nothing where there is no folder train."""
    found: dict[Split, list[int]] = {
        split: [i for i, key in enumerate(keys) if key.startswith(f"{split}/")] for split in SPLITS
    }
    if not found["train"]:
        return {}
    outside = len(keys) - sum(map(len, found.values()))
    if outside:
        log.warning("there are split folders; %d volumes outside of them are not used", outside)
    return {split: part for split, part in found.items() if part}


def _is_mask(key: str, keys: set[str]) -> bool:
    stem, suffix = _stem(key)
    return any(
        stem.lower().endswith(end) and any(stem[: -len(end)] + s in keys for s in (suffix, *FILES)) for end in MASKS
    )


def _stem(key: str) -> tuple[str, str]:
    suffix = next((s for s in FILES if key.lower().endswith(s)), "")
    return key[: len(key) - len(suffix)], suffix


def _common_size(source: VolumeSource) -> tuple[int, ...]:
    sizes = np.unique(source.sizes, axis=0)
    if len(sizes) > 1:
        low, high = sizes.min(axis=0), sizes.max(axis=0)
        edge = min(64, 1 << (int(low.min()).bit_length() - 1))
        raise ValueError(
            f"the volumes have {len(sizes)} different sizes, {' x '.join(map(str, low))} to {' x '.join(map(str, high))} voxels: "
            f"set data.volume.patch_size to train on patches of them, e.g. {edge}"
        )
    return tuple(int(n) for n in sizes[0])
