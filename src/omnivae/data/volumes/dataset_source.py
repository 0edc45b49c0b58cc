"""Volumes as a source of a data set: listed, named, prepared, with the intensity range that they share."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.component import suggestion
from omnivae.data.sources import ImageSource, Split, file_fingerprint
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes.dataset_cache import LEAST_HU, Facts, Prepared, Store, prepare
from omnivae.data.volumes.geometry import Orient, Resample
from omnivae.data.volumes.transforms import Pipeline, Transform
from omnivae.data.volumes.values import guess_unit
from omnivae.volume import Volume

log = logging.getLogger(__name__)
#: Formats that state no unit: what looks like Hounsfield units in them must be said to be.
UNITLESS = ("nifti", "nrrd", "mha", "tiff", "")
#: Files of a folder whose bytes its fingerprint looks at; of the others it takes name and size.
_LOOKED_AT = 3


@dataclass(frozen=True)
class Entry:
    """One volume that has not been read yet.

    Attributes:
        key: stable name.
        load: reads it as it is stored.
        fingerprint: short text that changes with its content.
        content_hash: SHA-256 of all that is stored.
        group: what it belongs to, such as a patient; volumes of a group are never split. Not shown.
        split: "train", "val" or "test" where the data say so by other means than folders.
    """

    key: str
    load: Callable[[], Volume]
    fingerprint: Callable[[], str]
    content_hash: Callable[[], str]
    group: str | None = field(default=None, repr=False)
    split: Split | None = None


@dataclass(frozen=True)
class Intensity:
    """What values become: the contract between volumes and a model, kept in its statistics.

    Attributes:
        unit: "HU" or "arbitrary".
        kind: "window", "percentiles" or "zscore".
        numbers: the window in HU, the percentiles, or the standard deviations on each side of the mean.
        range: what the ends become.
        orientation: of the axes, or "stored".
        spacing: voxel size that volumes are resampled to, or None.
        clip: whether values beyond the ends are cut off.
    """

    unit: str
    kind: str
    numbers: tuple[float, ...]
    range: tuple[float, float]
    orientation: str = "RAS"
    spacing: tuple[float, ...] | None = None
    clip: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return what ``statistics.json`` keeps.

        Example:
            >>> Intensity("HU", "window", (-1000.0, 1000.0), (0.0, 1.0)).to_dict()["window"]
            [-1000.0, 1000.0]
        """
        numbers: Any = self.numbers[0] if self.kind == "zscore" else list(self.numbers)
        facts = {"unit": self.unit, self.kind: numbers, "range": list(self.range), "clip": self.clip}
        facts |= {"orientation": self.orientation} if self.orientation != "stored" else {}
        return facts | ({"spacing": list(self.spacing)} if self.spacing is not None else {})

    def ends(self, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of a volume that become the lowest and the highest, ``[C]`` each.

        Args:
            facts: of the volume.
        """
        if self.kind == "window":
            pairs = [self.numbers] * len(facts.least)
        elif self.kind == "percentiles":
            pairs = list(facts.percentiles)
        else:
            (d,) = self.numbers
            pairs = [(m - d * s, m + d * s) for m, s in zip(facts.mean, facts.std, strict=True)]
        low, high = np.array(pairs, dtype=np.float64).T
        return low, high

    def scaled(self, patch: np.ndarray, facts: Facts) -> np.ndarray:
        """Put a part of a volume into the range.

        Args:
            patch: values ``[C, I, J, K]``.
            facts: of the whole volume.

        Returns:
            float32 of the same shape.
        """
        low, high = self.ends(facts)
        black, white = self.range
        factor = (white - black) / (high - low)
        shape = (-1, 1, 1, 1)
        out = patch.astype(np.float32)
        out *= factor.astype(np.float32).reshape(shape)
        out += (black - low * factor).astype(np.float32).reshape(shape)
        return np.clip(out, black, white, out=out) if self.clip else out


class VolumeSource(ImageSource):
    """Volumes by number.

    Args:
        name: of the data set.
        entries: the volumes.
        config: how they are prepared.
        store: where prepared volumes are kept; None keeps none.
        on_error: "skip" leaves unusable ones out, see ``skipped``.

    Raises:
        ValueError: for volumes that cannot be read or used together.
    """

    def __init__(
        self,
        name: str,
        entries: Sequence[Entry],
        config: VolumeConfig,
        *,
        store: Store | None,
        on_error: str = "stop",
    ) -> None:
        self.name, self.config = name, config
        self.skipped: list[tuple[str, str]] = []
        self.kept: list[int] = []
        self.entries: list[Entry] = []
        self.prepared: list[Prepared] = []
        self._last: tuple[int, np.ndarray] | None = (
            None  # what is not cached stays for the next patch of the same volume
        )
        said = time.monotonic()
        for number, entry in enumerate(entries):
            try:
                prepared = self._prepare(entry, store)
                check_facts(prepared.facts, config)
            except (ValueError, OSError, EOFError) as error:
                reason = " ".join(str(error).split())
                if on_error != "skip":
                    raise ValueError(f"{entry.key}: {reason} (data.on_error skip leaves such volumes out)") from error
                self.skipped.append((entry.key, reason))
                continue
            self.kept.append(number)
            self.entries.append(entry)
            self.prepared.append(prepared)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                log.info("%s: %d of %d volumes prepared", name, number + 1, len(entries))
        if not self.entries:
            raise ValueError(f"{name}: none of {len(entries)} volumes can be used, e.g. {self.skipped[0]}")
        self._check_alike()
        facts = [p.facts for p in self.prepared]
        self.sizes = np.array([f.size for f in facts])
        self.channels = np.array([f.shape[0] for f in facts])
        self.dtypes = np.array([f.dtype for f in facts])
        self.bit_depth = max(8 * np.dtype(f.dtype).itemsize for f in facts)
        self._tell()

    def _prepare(self, entry: Entry, store: Store | None) -> Prepared:
        return prepare(entry.fingerprint(), partial(loaded, entry, self.config), self.config, store)

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        """See :meth:`ImageSource.key`."""
        return self.entries[index].key

    def facts(self, index: int) -> Facts:
        """Return what is known of a volume."""
        return self.prepared[index].facts

    def values(self, index: int) -> np.ndarray:
        """Return a prepared volume ``[C, I, J, K]``, in its kept type; mapped from the cache where it is there."""
        prepared = self.prepared[index]
        if prepared.file is not None:
            return prepared.values()
        if self._last is None or self._last[0] != index:
            self._last = index, prepared.values()
        return self._last[1]

    def read(self, index: int) -> np.ndarray:
        """Return a prepared volume, channels last, ``[I, J, K, C]``."""
        return np.moveaxis(self.values(index), 0, -1)

    def content_hash(self, index: int) -> str:
        """See :meth:`ImageSource.content_hash`."""
        return self.entries[index].content_hash()

    def fingerprint(self, index: int) -> str:
        """See :meth:`ImageSource.fingerprint`."""
        return self._fingerprints[index]

    @cached_property
    def _fingerprints(self) -> list[str]:
        return [entry.fingerprint() for entry in self.entries]

    def intensity(self, value_range: tuple[float, float]) -> Intensity:
        """Return what the values become.

        Args:
            value_range: lowest and highest value that the model takes.

        Returns:
            The contract.

        Raises:
            ValueError: for a window asked of values that are no HU.
        """
        facts, config = self.prepared[0].facts, self.config
        kind = config.intensity
        if kind == "auto":
            kind = "window" if facts.unit == "HU" else "percentiles"
        if kind == "window" and facts.unit != "HU":
            raise ValueError(
                f"got data.volume.intensity=window and {self.name} holds values of an arbitrary unit: set data.volume.unit to "
                "HU if they are, or intensity to percentiles or zscore"
            )
        numbers = {"window": config.window, "percentiles": config.percentiles, "zscore": (config.deviations,)}[kind]
        return Intensity(
            facts.unit,
            kind,
            numbers,
            value_range,
            config.orientation if facts.orientation else "stored",
            config.steps,
            config.clip,
        )

    def _check_alike(self) -> None:
        """Refuse volumes of several units or channels."""
        first = self.prepared[0].facts
        for entry, prepared in zip(self.entries, self.prepared, strict=True):
            facts = prepared.facts
            for what, a, b in (
                ("values in", first.unit, facts.unit),
                ("the number of channels", first.shape[0], facts.shape[0]),
                (
                    "the channels",
                    ", ".join(first.channels) or "without names",
                    ", ".join(facts.channels) or "without names",
                ),
            ):
                if a != b:
                    raise ValueError(
                        f"{self.entries[0].key} has {what} {a} and {entry.key} {b}: put them into folders of their own"
                        + ("" if what == "values in" else ", or choose channels with data.volume.channel_names")
                    )

    def _tell(self) -> None:
        """Log what is unusual about the volumes."""
        below = [(e.key, p.facts) for e, p in zip(self.entries, self.prepared, strict=True) if p.facts.below_air]
        if below:
            key, facts = below[0]
            log.warning(
                "%d of %d volumes hold values below %d HU (%s: %d voxels, the lowest %g): taken for air",
                len(below), len(self), LEAST_HU, key, facts.below_air, min(facts.least),
            )  # fmt: skip
        odd = [(e.key, p.facts.problems) for e, p in zip(self.entries, self.prepared, strict=True) if p.facts.problems]
        for key, problems in odd[:5]:
            log.warning("%s: %s", key, "; ".join(problems))
        if len(odd) > 5:
            log.warning("and %d more volumes with something unusual: see omnivae inspect", len(odd) - 5)


def loaded(entry: Entry, config: VolumeConfig) -> Volume:
    """Read a volume, with the channels, orientation and voxel size that are asked for.

    Args:
        entry: the volume.
        config: the settings.

    Returns:
        The volume, its values untouched but for what resampling does.

    Raises:
        ValueError: for a channel that is not there, and values that look like HU where nobody says so.
    """
    return moved(chosen(entry, config), config)


def chosen(entry: Entry, config: VolumeConfig) -> Volume:
    """Read a volume with the channels and the unit that are asked for, on its own grid.

    Args:
        entry: the volume.
        config: the settings.

    Returns:
        The volume.

    Raises:
        ValueError: as :func:`loaded`.
    """
    volume = entry.load()
    if config.channel_names:
        volume = with_channels(volume, config.channel_names)
    if config.unit == "auto" and volume.format in UNITLESS and guess_unit(volume) != volume.unit:
        raise ValueError(
            "its values look like Hounsfield units, which such a file cannot say: set data.volume.unit to HU if they are, or to "
            "arbitrary if not"
        )
    if config.unit == "arbitrary" and volume.unit != "arbitrary":
        volume = volume.with_array(volume.array, unit="arbitrary")
    return volume


def moved(volume: Volume, config: VolumeConfig) -> Volume:
    """Bring a volume to the orientation and voxel size that are asked for.

    Args:
        volume: on its own grid.
        config: the settings.

    Returns:
        The volume, its values untouched but for what resampling does.
    """
    steps: list[Transform] = []
    if config.orientation != "stored" and volume.space == "patient":
        steps.append(Orient(config.orientation))
    if config.steps is not None:
        steps.append(Resample(config.steps))
        if volume.unit == "HU" and volume.array.min() < LEAST_HU:
            # What the scanner did not see would run into the body.
            below = int((volume.array < LEAST_HU).sum())
            problem = f"{below} voxels below {LEAST_HU} HU taken for air before resampling"
            volume = volume.with_array(np.maximum(volume.array, LEAST_HU), problems=(*volume.problems, problem))
    return Pipeline(steps)(volume).volume


def with_channels(volume: Volume, names: Sequence[str]) -> Volume:
    """Return a volume with some of its channels.

    Args:
        volume: with named channels.
        names: of the channels, in the order that is wanted.

    Returns:
        The volume.

    Raises:
        ValueError: for names that are not there; lists those that are.
    """
    for name in names:
        if name not in volume.channels:
            known = f"it has {', '.join(volume.channels)}" if volume.channels else "its channels have no names"
            raise ValueError(f"there is no channel {name!r}{suggestion(name, volume.channels)}; {known}")
    chosen = [volume.channels.index(name) for name in names]
    return volume.with_array(volume.array[chosen], channels=tuple(names))


def check_facts(facts: Facts, config: VolumeConfig) -> None:
    """Raise ``ValueError`` for a volume that cannot be brought into an intensity range.

    Args:
        facts: of the volume.
        config: the settings.
    """
    for channel, (low, high) in enumerate(zip(facts.least, facts.most, strict=True)):
        named = facts.channels[channel] if facts.channels else str(channel)
        which = f"channel {named}" if len(facts.least) > 1 else "the volume"
        if low == high:
            raise ValueError(f"{which} holds the same value {low:g} everywhere: leave it out")
        first, last = facts.percentiles[channel]
        if facts.unit != "HU" and config.intensity in ("auto", "percentiles") and first == last:
            raise ValueError(
                f"{which} has the value {first:g} at both percentiles {config.percentiles}: set data.volume.percentiles wider"
            )
    if config.unit == "HU" and facts.unit != "HU":
        raise ValueError("its file says that the values are no Hounsfield units: set data.volume.unit to auto")


def file_entry(path: Path, key: str, load: Callable[[], Volume]) -> Entry:
    """Return the entry of a volume in one file, or in a folder of files.

    Args:
        path: the file or folder.
        key: its name.
        load: reads it.
    """
    return Entry(key, load, partial(path_fingerprint, path), partial(path_hash, path))


def path_fingerprint(path: Path) -> str:
    """Return a short text that changes when a file does, or a folder's files do.

    Args:
        path: file or folder.
    """
    if path.is_file():
        return file_fingerprint(path)
    files = _files(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\t{file.stat().st_size}\n".encode())
    for number in sorted({round(i * (len(files) - 1) / (_LOOKED_AT - 1)) for i in range(_LOOKED_AT)}) if files else ():
        digest.update(file_fingerprint(files[number]).encode())
    return f"{len(files):x}-{digest.hexdigest()[:16]}"


def path_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder and their names, in hexadecimal.

    Args:
        path: file or folder.
    """
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else _files(path):
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\n".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest() if file != path else opened.read())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
