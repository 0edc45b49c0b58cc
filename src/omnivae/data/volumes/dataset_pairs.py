"""Pairs of volumes as a data set: the same patch of a baseline and of its follow-up, on the baseline's grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnivae.data.config import DataConfig, check_value_range
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.data.volumes.dataset_cache import Facts, Prepared, Store, measure, narrowed, prepare
from omnivae.data.volumes.dataset_dicom import series_entry
from omnivae.data.volumes.dataset_source import UNITLESS, Entry, VolumeSource, chosen, file_entry, loaded, moved
from omnivae.data.volumes.listing import VolumeEntry
from omnivae.data.volumes.pairs import Pair, align, read_pairs, within
from omnivae.volume import Unit, Volume

if TYPE_CHECKING:
    from omnivae.data.loading import DataSplits

#: Changes with what is made of two volumes, so that no older pair is taken from the cache.
_VERSION = 1


@dataclass(frozen=True)
class PairEntry(Entry):
    """Two volumes that have not been read yet; ``load`` reads the baseline.

    Attributes:
        followup: the second.
    """

    followup: Entry = field(kw_only=True)


class PairSource(VolumeSource):
    """Pairs by number: a prepared pair is a volume with the channels of the baseline, then those of the follow-up."""

    def _prepare(self, entry: Entry, store: Store | None) -> Prepared:
        assert isinstance(entry, PairEntry)
        make = partial(_loaded_pair, entry, self.config)
        return prepare(entry.fingerprint(), make, self.config, store, measured=_measured)


class PairDataset(VolumeDataset):
    """One split of a data set of pairs; items are pure functions of (seed, epoch, index).

    An item is that of :class:`VolumeDataset`, ``x [C, I, J, K]`` being the baseline, and has ``followup [C, I, J, K]``, the same
    place of the second volume, each in its own volume's intensity contract, and ``mask [1, I, J, K]``: 1 where both were measured.
    Patches lie in the box of the baseline's grid that the follow-up reaches; a whole pair is that box.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        index %= len(self)
        facts = self.source.facts(int(self.indices[index]))
        corner, patch, flips = self.place(index)
        *rows, size = facts.reach
        mask = within(patch, np.array(rows), [int(n) for n in size], corner)
        mask &= within(patch, np.eye(4), facts.size, corner)
        if flips:
            mask = np.flip(mask, tuple(axis - 1 for axis in flips))
        baseline, followup = item["x"].chunk(2)
        both = torch.from_numpy(mask[None].astype(np.float32))
        return {**item, "x": baseline.clone(), "followup": followup.clone(), "mask": both}


def load_pairs(config: DataConfig, *, value_range: tuple[float, float] = (0.0, 1.0), seed: int = 0) -> DataSplits:
    """Read a listing of pairs as data sets of patches of both volumes.

    Each follow-up is interpolated once onto the grid of its baseline (which is oriented and resampled as ``config.volume``
    says), prepared pairs are kept in the cache of volumes, and no patient is in two splits.

    Args:
        config: its path is a listing (:func:`omnivae.data.volumes.read_pairs`).
        value_range: what the ends of the intensity range become.
        seed: of the random patches.

    Returns:
        Three :class:`PairDataset`; random patches for training, fixed ones for validation and test; ``test.whole()`` has whole
        pairs.

    Raises:
        FileNotFoundError: for the listing, or a volume that it names.
        ValueError: for listings that are none, volumes that cannot be read, or are no pair (:func:`omnivae.data.volumes.align`).
    """
    from omnivae.data.volumes.dataset_loading import refuse_image_settings, split_up, store_of

    refuse_image_settings(config)
    value_range = check_value_range(config.value_range or value_range)
    path = Path(config.path).expanduser()
    entries = [_pair_entry(pair, config) for pair in read_pairs(path)]
    source = PairSource(path.stem, entries, config.volume, store=store_of(config), on_error=config.on_error)
    return split_up(source, config, value_range=value_range, seed=seed, kind=PairDataset, volumes_per_item=2)


def member_entries(path: Path, config: DataConfig) -> list[Entry]:
    """Return the volumes of a listing of pairs, each once, as samples of their own; a pair is a group.

    Args:
        path: of the listing.
        config: unit and level.

    Returns:
        The volumes.
    """
    entries: dict[str, Entry] = {}
    for pair in read_pairs(path):
        for member in (pair.baseline, pair.followup):
            entry = replace(_entry(member, config), group=pair.group, split=pair.split)
            entries.setdefault(entry.key, entry)
    return list(entries.values())


# -- inside


def _pair_entry(pair: Pair, config: DataConfig) -> PairEntry:
    baseline, followup = _entry(pair.baseline, config), _entry(pair.followup, config)
    return PairEntry(
        pair.name,
        baseline.load,
        partial(_fingerprint, baseline, followup),
        partial(_content_hash, baseline, followup),
        pair.group,
        pair.split,
        followup=followup,
    )


def _entry(member: VolumeEntry, config: DataConfig) -> Entry:
    if member.series is not None:
        return series_entry(member.path, member.series)
    place = member.path / member.position if member.position else member.path
    unit: Unit | None = "HU" if config.volume.unit == "HU" and member.format in UNITLESS else None
    return file_entry(place, member.name, partial(member.read, unit=unit, level=config.volume.level or None))


def _fingerprint(baseline: Entry, followup: Entry) -> str:
    return f"pair-{_VERSION}-{baseline.fingerprint()}-{followup.fingerprint()}"


def _content_hash(baseline: Entry, followup: Entry) -> str:
    return hashlib.sha256(f"{baseline.content_hash()} {followup.content_hash()}".encode()).hexdigest()


def _loaded_pair(entry: PairEntry, config: VolumeConfig) -> Volume:
    """Return both volumes as channels of one, in the box of the baseline's grid that the follow-up reaches."""
    try:
        first = loaded(entry, config)
    except ValueError as error:
        raise ValueError(f"its baseline: {error}") from error
    try:
        raw = chosen(entry.followup, config)
    except ValueError as error:
        raise ValueError(f"its followup: {error}") from error
    pair = align(first, raw)
    second = pair.followup
    if second.array.shape == raw.array.shape and np.array_equal(first.array, second.array) and pair.reached.all():
        raise ValueError("baseline and followup hold the same voxels: one is a copy of the other, correct the listing")
    corners = [np.flatnonzero(pair.reached.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    start = [int(at[0]) for at in corners]
    box = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in corners)
    affine = first.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    names = first.channels or (("",) if len(first.array) == 1 else ())
    channels = tuple(f"{which} {name}".strip() for which in ("baseline", "followup") for name in names)
    # A contract is that of the whole volume, on the grid on which a model sees it alone.
    alone = moved(raw, config)
    return replace(
        first,
        array=np.concatenate([first.array[(slice(None), *box)], second.array[(slice(None), *box)]]),
        affine=affine,
        channels=channels,
        problems=(*first.problems, *second.problems),
        origin={
            "pair": [measure(volume, narrowed(volume.array), config)[0] for volume in (first, alone)],
            "reach": (*(np.linalg.inv(raw.affine) @ affine)[:3].tolist(), list(raw.size)),
        },
    )


def _measured(volume: Volume, values: np.ndarray, config: VolumeConfig) -> tuple[Facts, np.ndarray]:
    """Measure a pair: where its foreground lies, and of each volume what the intensity contract needs."""
    facts, blocks = measure(volume, values, config)
    parts: Sequence[Facts] = volume.origin["pair"]
    facts = replace(
        facts,
        least=tuple(value for part in parts for value in part.least),
        most=tuple(value for part in parts for value in part.most),
        mean=tuple(value for part in parts for value in part.mean),
        std=tuple(value for part in parts for value in part.std),
        percentiles=tuple(value for part in parts for value in part.percentiles),
        below_air=sum(part.below_air for part in parts),
        reach=tuple(map(tuple, volume.origin["reach"])),
    )
    return facts, blocks
