"""Prepared volumes: decoded, oriented, resampled and measured once, then mapped from disk by every process and run.

A prepared volume keeps its values (HU stay HU, in the smallest type that holds them); windows and percentiles apply to a
patch when it is cut, so one file serves every intensity setting. Files lie in ``OMNIVAE_CACHE``/volumes under a hash of the
source's content and the settings; their names and contents tell of no patient.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from omnivae.data.cache import SHARE
from omnivae.data.downloads import cache_folder
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes.values import LEAST_HU
from omnivae.files import CannotWrite, remove_leftovers, replace_atomic, write_atomic
from omnivae.volume import Volume

#: Changes whenever the same source and settings would be prepared otherwise.
_VERSION = 1
#: Edge of the blocks in which foreground is counted.
BLOCK = 8
#: HU above which a voxel is foreground: air and most of the lung lie below.
FOREGROUND_HU = -500.0


@dataclass(frozen=True)
class Facts:
    """What is known of a prepared volume without its voxels.

    Attributes:
        shape: channels and the size along the three axes.
        dtype: of the kept values.
        spacing: voxel size along the three axes, mm of a patient, micrometres on a stage.
        orientation: of a patient, "" otherwise.
        unit: "HU" or "arbitrary".
        channels: names, empty where there are none.
        least: lowest value of each channel.
        most: highest value of each channel.
        mean: of each channel.
        std: standard deviation of each channel.
        percentiles: values at the configured percentiles, a pair a channel.
        integral: whether every value is a whole number.
        below_air: voxels below -1024.
        foreground: share of the voxels above the threshold.
        problems: what is unusual, a sentence each.
        reach: of a pair, the three rows of the matrix from its indices to those of the follow-up as it is stored, and the size of
            the latter; empty of a volume on its own.
    """

    shape: tuple[int, int, int, int]
    dtype: str
    spacing: tuple[float, float, float]
    orientation: str
    unit: str
    channels: tuple[str, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    percentiles: tuple[tuple[float, float], ...]
    integral: bool
    below_air: int
    foreground: float
    problems: tuple[str, ...] = field(default_factory=tuple)
    reach: tuple[tuple[float, ...], ...] = field(default_factory=tuple)

    @property
    def size(self) -> tuple[int, int, int]:
        """Size along the three axes."""
        return self.shape[1], self.shape[2], self.shape[3]

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Facts:
        """Return what ``asdict`` and JSON made lists of."""
        tuples = {name: _tuples(value) for name, value in values.items()}
        return cls(**tuples)  # type: ignore[arg-type]


@dataclass
class Prepared:
    """A prepared volume.

    Attributes:
        facts: what is known without the voxels.
        blocks: foreground share of each block of 8 x 8 x 8 voxels, 0 to 255, uint8.
        file: the values ``[C, I, J, K]`` as ``.npy``; None where there was no room, then ``make`` makes them again.
        make: reads and prepares the values.
    """

    facts: Facts
    blocks: np.ndarray
    file: Path | None
    make: Callable[[], np.ndarray]

    def values(self) -> np.ndarray:
        """Return the values ``[C, I, J, K]``: mapped from the cache, or prepared anew."""
        if self.file is not None:
            try:
                return np.load(self.file, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                pass  # another run needed the room
        return self.make()


class Store:
    """The folder of prepared volumes, bounded in size.

    Args:
        folder: where; ``OMNIVAE_CACHE``/volumes by default.
        limit: bytes that all files together may take; by default a quarter of what is free, and what they already take.

    Example:
        >>> import tempfile
        >>> Store(Path(tempfile.mkdtemp()), limit=0).room(1)
        False
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() / "volumes" if folder is None else folder
        self.used: set[str] = set()
        if limit is None:
            here = next(p for p in (self.folder, *self.folder.parents) if p.exists())
            limit = int(SHARE * shutil.disk_usage(here).free) + sum(self._files().values())
        self.limit = limit
        remove_leftovers(self.folder)

    def get(self, digest: str) -> tuple[Facts, np.ndarray, Path | None] | None:
        """Return a volume's facts, foreground and file (None: only its facts are kept), or None for an unknown one."""
        try:
            facts = Facts.from_dict(json.loads((self.folder / f"{digest}.json").read_text()))
            blocks = np.load(self.folder / f"{digest}.blocks.npy", allow_pickle=False)
        except (FileNotFoundError, ValueError, TypeError):
            return None  # not there, or damaged: made again
        file = self.folder / f"{digest}.npy"
        self.used.add(file.name)
        expected = int(np.prod(facts.shape)) * np.dtype(facts.dtype).itemsize
        if not file.is_file() or not expected < file.stat().st_size < expected + 4096:
            return facts, blocks, None
        os.utime(file)  # the last one to be removed
        return facts, blocks, file

    def put(self, digest: str, facts: Facts, blocks: np.ndarray, values: np.ndarray) -> Path | None:
        """Keep a volume; return its file, or None where there is no room for the values."""
        self.used.add(f"{digest}.npy")
        try:
            file = self.folder / f"{digest}.npy"
            kept = self.room(values.nbytes)
            if kept:
                replace_atomic(file, lambda beside: _save(beside, values))
            replace_atomic(self.folder / f"{digest}.blocks.npy", lambda beside: _save(beside, blocks))
            write_atomic(self.folder / f"{digest}.json", json.dumps(asdict(facts)).encode())
        except CannotWrite:
            return None  # a cache that cannot be written to is none; the volume is decoded when it is needed
        return file if kept else None

    def room(self, nbytes: int) -> bool:
        """Make room by removing what was not used for longest; return whether there is enough.

        Args:
            nbytes: of the values to come.
        """
        files = self._files()
        total = sum(files.values())
        removable = sorted((f for f in files if f.name not in self.used), key=_last_used)
        while total + nbytes > self.limit and removable:
            oldest = removable.pop(0)
            total -= files[oldest]
            oldest.unlink(missing_ok=True)
        return total + nbytes <= self.limit

    def _files(self) -> dict[Path, int]:
        """Return the kept values and their sizes."""
        found = {}
        for path in self.folder.glob("*.npy"):
            if not path.name.endswith(".blocks.npy"):
                try:
                    found[path] = path.stat().st_size
                except FileNotFoundError:
                    continue  # removed by another run
        return found


def digest_of(fingerprint: str, config: VolumeConfig) -> str:
    """Return the name under which a prepared volume is kept.

    Args:
        fingerprint: of the source's content.
        config: of which only what changes the kept values and facts counts.
    """
    settings = [config.orientation, config.steps, config.level, config.channel_names, config.unit, config.percentiles]
    return hashlib.sha256(json.dumps([_VERSION, fingerprint, settings]).encode()).hexdigest()[:40]


def prepare(
    fingerprint: str,
    load: Callable[[], Volume],
    config: VolumeConfig,
    store: Store | None = None,
    *,
    measured: Callable[[Volume, np.ndarray, VolumeConfig], tuple[Facts, np.ndarray]] | None = None,
) -> Prepared:
    """Prepare a volume, or take it from the store.

    Args:
        fingerprint: of the source's content.
        load: reads the volume, oriented and resampled.
        config: the settings.
        store: where prepared volumes are kept; None keeps none.
        measured: measures it, :func:`measure` by default.

    Returns:
        The prepared volume.

    Raises:
        ValueError: for values that cannot be trained on.
    """
    digest = digest_of(fingerprint, config)
    make = partial(_values, load)
    if store is not None and (known := store.get(digest)) is not None:
        facts, blocks, file = known
        if file is None and store.room(int(np.prod(facts.shape)) * np.dtype(facts.dtype).itemsize):
            file = store.put(digest, facts, blocks, make())
        return Prepared(facts, blocks, file, make)
    volume = load()
    values = narrowed(volume.array)
    facts, blocks = (measured or measure)(volume, values, config)
    file = None if store is None else store.put(digest, facts, blocks, values)
    return Prepared(facts, blocks, file, make)


def _values(load: Callable[[], Volume]) -> np.ndarray:
    return narrowed(load().array)


def narrowed(array: np.ndarray) -> np.ndarray:
    """Return values in the smallest usual type that holds them exactly: int16 for CT, float32 at most.

    Args:
        array: any real numbers.

    Returns:
        The same values; 64-bit floats are rounded to 32 bits.

    Raises:
        ValueError: for values that are not finite.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind == "f":
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise ValueError(f"{bad} of {array.size} voxels are NaN or infinite: mend or remove it")
        whole = array.size > 0 and bool((array == np.rint(array)).all())
        if not whole:
            return np.ascontiguousarray(array, dtype=np.float32)
    low, high = array.min(), array.max()
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(array, dtype=dtype)
    return np.ascontiguousarray(array, dtype=np.float32)


def measure(volume: Volume, values: np.ndarray, config: VolumeConfig) -> tuple[Facts, np.ndarray]:
    """Measure what patches and intensities need.

    Args:
        volume: oriented and resampled.
        values: its values as they are kept.
        config: unit and percentiles.

    Returns:
        The facts, and the foreground share of each block.
    """
    flat = values.reshape(len(values), -1)
    least, most = flat.min(axis=1).astype(float), flat.max(axis=1).astype(float)
    integral = values.dtype.kind in "iu"
    mean = flat.mean(axis=1, dtype=np.float64)
    mask = np.zeros(values.shape[1:], dtype=bool)
    for channel in values:
        mask |= channel > (FOREGROUND_HU if volume.unit == "HU" else otsu(channel))
    pairs = np.percentile(flat, config.percentiles, axis=1).T
    c, i, j, k = values.shape
    facts = Facts(
        shape=(c, i, j, k),
        dtype=values.dtype.name,
        spacing=volume.spacing,
        orientation=volume.orientation,
        unit=volume.unit,
        channels=tuple(volume.channels),
        least=tuple(least.tolist()),
        most=tuple(most.tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(flat.std(axis=1, dtype=np.float64).tolist()),
        percentiles=tuple((float(a), float(b)) for a, b in pairs),
        integral=integral,
        below_air=int((values < LEAST_HU).sum()) if volume.unit == "HU" else 0,
        foreground=float(mask.mean()),
        problems=tuple(volume.problems),
    )
    return facts, block_shares(mask)


def otsu(values: np.ndarray) -> float:
    """Return the threshold that best separates two classes of values (Otsu, A Threshold Selection Method, 1979).

    Args:
        values: any real numbers.

    Returns:
        A value: foreground lies above it.

    Example:
        >>> 1 <= otsu(np.array([0, 1, 0, 1, 9, 10, 9, 10])) < 9
        True
    """
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = counts.sum() - below
    moment = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (moment / below - (moment[-1] - moment) / above) ** 2
    # Between two peaks with nothing between them every threshold is as good: the middle one.
    between = np.nan_to_num(between[:-1])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1:][best[len(best) // 2]])


def block_shares(mask: np.ndarray) -> np.ndarray:
    """Return the share of true voxels in each block of 8 x 8 x 8, those at the far ends smaller, 0 to 255.

    Args:
        mask: ``[I, J, K]`` bool.

    Example:
        >>> block_shares(np.ones((9, 8, 8), dtype=bool)).tolist()
        [[[255]], [[255]]]
    """
    sums, counts = mask.astype(np.uint16), np.ones((1, 1, 1))
    for axis, length in enumerate(mask.shape):
        starts = np.arange(0, length, BLOCK)
        sums = np.add.reduceat(sums, starts, axis=axis)
        lengths = np.diff(np.append(starts, length)).reshape([-1 if a == axis else 1 for a in range(3)])
        counts = counts * lengths
    # Rounded up: a block with any foreground is not without.
    return np.ceil(255 * sums / counts).astype(np.uint8)


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
