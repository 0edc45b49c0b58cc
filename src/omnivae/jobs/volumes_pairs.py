"""``omnivae inspect`` on a listing of pairs: whether baseline and follow-up share a place, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omnivae.data.volumes.listing import VolumeEntry
from omnivae.data.volumes.pairs import LITTLE, Pair, meet, read_pairs
from omnivae.volume import Volume


@dataclass(frozen=True)
class PairFacts:
    """What is known of one pair.

    Attributes:
        name: of the pair.
        baseline: name of the first volume.
        followup: name of the second.
        patient: number among those of the listing, 1 first; pairs that share a patient, a folder or a file have one.
        split: "train", "val" or "test", where the listing says.
        overlap: share of the baseline's voxels that the follow-up reaches, 0 to 1; None where one of them has no geometry.
        problem: why they are no pair; empty where they are.
        note: what is unusual; empty for nothing.
    """

    name: str
    baseline: str
    followup: str
    patient: int
    split: str | None = None
    overlap: float | None = None
    problem: str = ""
    note: str = ""


def inspect_pairs(path: str | Path, looks: Mapping[str, str]) -> list[PairFacts]:
    """Look at the pairs of a listing; only headers are read.

    Args:
        path: of the listing.
        looks: name of each member to the unit that it has or that its values look like; "" where it cannot be used.

    Returns:
        The pairs, in the order of the listing.

    Raises:
        FileNotFoundError: as :func:`omnivae.data.volumes.read_pairs`.
        ValueError: as there.
    """
    pairs = read_pairs(path)
    patients = {group: number for number, group in enumerate(dict.fromkeys(pair.group for pair in pairs), 1)}
    return [_look(pair, patients[pair.group], looks) for pair in pairs]


def _look(pair: Pair, patient: int, looks: Mapping[str, str]) -> PairFacts:
    overlap, problem, note = None, "", ""
    members = {"baseline": pair.baseline, "followup": pair.followup}
    unusable = [which for which, member in members.items() if not looks.get(member.name)]
    if unusable:
        problem = f"its {' and its '.join(unusable)} cannot be used"
    else:
        try:
            overlap = float(meet(*map(_geometry, members.values())).mean())
        except (ValueError, OSError, EOFError) as error:
            problem = " ".join(str(error).split())
        units = [looks[member.name] for member in members.values()]
        if units[0] != units[1] and not problem:
            note = f"the baseline looks like {units[0]}, the followup like {units[1]}"
        elif overlap is not None and overlap < LITTLE:
            note = "little overlap"
    return PairFacts(pair.name, pair.baseline.name, pair.followup.name, patient, pair.split, overlap, problem, note)


def _geometry(entry: VolumeEntry) -> Volume:
    """Return a volume that has a file's geometry, and values that take no memory."""
    header = entry.header()
    values = np.broadcast_to(np.zeros((), np.uint8), header.shape)
    modality = "" if entry.series is None else entry.series.modality
    return Volume(
        values,
        header.affine,
        unit=header.unit,
        space=header.space,
        channels=header.channels,
        origin={"modality": modality} if modality else {},
    )
