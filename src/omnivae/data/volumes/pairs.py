"""Pairs of volumes, baseline and follow-up: how they are listed, and how both come onto one grid."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from omnivae.component import suggestion
from omnivae.data.naming import SPLIT_WORDS
from omnivae.data.sources import Split
from omnivae.data.volumes.listing import VolumeEntry, bare, list_volumes, without_identifiers
from omnivae.data.volumes.recognising import column_name, is_pairs
from omnivae.data.volumes.resampling import Interpolation, resample
from omnivae.data.volumes.values import LEAST_HU
from omnivae.volume import Volume

COLUMNS = ("baseline", "followup", "name", "patient", "split", "baselineseries", "followupseries")
#: Voxels whose places are looked at together.
_SLAB = 1 << 22
#: Grids whose affines differ by less, mm or micrometres, are one grid.
_SAME_GRID = 1e-6
#: Share of the baseline that a follow-up should reach; below, it is said.
LITTLE = 0.5


@dataclass(frozen=True)
class Pair:
    """One row of a listing.

    Attributes:
        name: unique in the listing.
        baseline: the first volume.
        followup: the second.
        group: name of the first pair, in the order of names, of its patient; pairs of one group are never split. Not shown.
        split: "train", "val" or "test", where the listing says.
    """

    name: str
    baseline: VolumeEntry
    followup: VolumeEntry
    group: str = field(default="", repr=False)
    split: Split | None = None


@dataclass(frozen=True)
class VolumePair:
    """Two volumes on the grid of the first.

    Attributes:
        baseline: the first.
        followup: the second, interpolated at the voxels of the first.
        reached: which of these voxels lie within the second as it was measured, ``[I, J, K]`` bool; others have a stated value.
    """

    baseline: Volume
    followup: Volume
    reached: np.ndarray = field(repr=False)

    @property
    def overlap(self) -> float:
        """Share of the baseline's voxels that the follow-up reaches, 0 to 1."""
        return float(self.reached.mean())


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a listing of pairs: CSV or TSV with the columns ``baseline`` and ``followup``, paths relative to its folder.

    Further columns, all optional: ``name`` of the pair; ``patient``, any word that tells patients apart; ``split`` (train, val,
    test); ``baseline_series`` and ``followup_series``, numbers of DICOM series where a folder holds several. Other columns are
    not read. Pairs that share a file, or a DICOM patient, belong together; without ``patient`` so do those of one folder, where
    both members of every pair lie in the same one of three or more.

    Args:
        path: of the listing.

    Returns:
        The pairs, in its order.

    Raises:
        FileNotFoundError: for the listing, or a volume that it names.
        ValueError: for rows that name one volume twice, no volume or several; a pair that is there twice; a patient in two splits.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such listing of pairs: {path}")
    if not is_pairs(path):
        raise ValueError(f"{path} is no listing of pairs; expected CSV or TSV with the columns baseline and followup")
    rows = _rows(path)
    pairs: list[Pair] = []
    for number, row in rows:
        where = f"{path}, line {number}"
        baseline, followup = (_member(path.parent, row, which, where) for which in ("baseline", "followup"))
        if _identity(baseline) == _identity(followup):
            raise ValueError(f"{where}: baseline and followup are one volume, {row['baseline']}: correct the row")
        name = row.get("name") or f"{_called(baseline)} + {_called(followup)}"
        pairs.append(Pair(name, baseline, followup, split=_split(row, where)))
    seen: dict[object, int] = {}
    for (number, _), pair in zip(rows, pairs, strict=True):
        same = (_identity(pair.baseline), _identity(pair.followup))
        if same in seen:
            raise ValueError(f"{path}: lines {seen[same]} and {number} are the same pair: remove one")
        if pair.name in seen:
            raise ValueError(
                f"{path}: lines {seen[pair.name]} and {number} are called {pair.name}: give each a name in a column 'name'"
            )
        seen[same] = seen[pair.name] = number
    return _grouped(path, pairs, [row.get("patient", "") for _, row in rows])


def list_members(path: str | Path) -> list[VolumeEntry]:
    """Return the volumes of a listing of pairs, each once, in its order.

    Args:
        path: of the listing.

    Returns:
        The volumes.

    Raises:
        FileNotFoundError: as :func:`read_pairs`.
        ValueError: as :func:`read_pairs`.
    """
    members = {_identity(member): member for pair in read_pairs(path) for member in (pair.baseline, pair.followup)}
    return list(members.values())


def align(
    baseline: Volume, followup: Volume, *, interpolation: Interpolation = "linear", antialias: bool = True
) -> VolumePair:
    """Bring a follow-up onto the grid of its baseline, by their places in the world.

    Affines are believed: whoever wants the anatomy registered, too, does it before. Voxels that the follow-up does not reach become
    air (-1024 HU; its lowest value in arbitrary units). Equal grids are left untouched.

    Args:
        baseline: the first volume, on the grid that is wanted.
        followup: the second, on any grid of the same world.
        interpolation: as :func:`omnivae.data.volumes.resample`.
        antialias: whether a finer follow-up is smoothed first along axes where the baseline is coarser, as thicker slices
            average what thinner ones tell apart.

    Returns:
        Both.

    Raises:
        ValueError: for volumes of several units, modalities, channels or worlds, and such that share no place.

    Example:
        >>> first = Volume(np.zeros((1, 4, 4, 4)), np.eye(4))
        >>> second = Volume(np.ones((1, 2, 4, 4)), np.diag([1.0, 1.0, 1.0, 1.0]))
        >>> pair = align(first, second)
        >>> pair.followup.size, pair.overlap
        ((4, 4, 4), 0.5)
    """
    reached = meet(baseline, followup)
    problems = followup.problems
    if reached.mean() < LITTLE:
        problems = (*problems, f"little overlap: the followup reaches {100 * reached.mean():.2g} % of the baseline")
    if followup.size == baseline.size and np.allclose(followup.affine, baseline.affine, rtol=0, atol=_SAME_GRID):
        return VolumePair(baseline, followup.with_array(followup.array, affine=baseline.affine), reached)
    low = float(LEAST_HU) if followup.unit == "HU" else float(followup.array.min())
    if followup.unit == "HU" and followup.array.min() < LEAST_HU:
        # What the scanner did not see would run into the body.
        followup = followup.with_array(np.maximum(followup.array, LEAST_HU))
    moved = resample(followup, baseline.size, baseline.affine, interpolation=interpolation, antialias=antialias)
    array = np.where(reached, moved.array, np.asarray(low, moved.array.dtype))
    return VolumePair(baseline, moved.with_array(array, problems=problems), reached)


def meet(baseline: Volume, followup: Volume) -> np.ndarray:
    """Return which voxels of a baseline its follow-up reaches; values are not looked at.

    Args:
        baseline: the first volume.
        followup: the second.

    Returns:
        ``[I, J, K]`` bool, of the baseline's size; some are true.

    Raises:
        ValueError: as :func:`align`.
    """
    for said, a, b in (
        ("has values in", baseline.unit, followup.unit),
        ("is", baseline.origin.get("modality", ""), followup.origin.get("modality", "")),
        ("lies in the world of a", baseline.space, followup.space),
        ("has the channels", ", ".join(baseline.channels), ", ".join(followup.channels)),
        ("has as many channels as", len(baseline.array), len(followup.array)),
    ):
        if a != b and a != "" and b != "":
            raise ValueError(f"the baseline {said} {a}, the followup {b}: they are no pair to compare")
    reached = within(baseline.size, np.linalg.inv(followup.affine) @ baseline.affine, followup.size)
    if not reached.any():
        raise ValueError(
            f"baseline and followup share no place: the one covers {_box(baseline)}, the other {_box(followup)}: they are of "
            "different parts, or need to be registered first"
        )
    return reached


def within(
    size: Sequence[int], move: np.ndarray, other: Sequence[int], corner: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Return which voxels of a box lie within another grid.

    Args:
        size: of the box.
        move: from indices of the box's grid to those of the other, ``[4, 4]`` or its first three rows.
        other: size of the other grid.
        corner: index of the box's first voxel.

    Returns:
        ``[I, J, K]`` bool.
    """
    inside = np.ones(tuple(size), dtype=bool)
    axes = np.ogrid[tuple(slice(c, c + n) for n, c in zip(size, corner, strict=True))]
    step = max(1, _SLAB // (size[1] * size[2]))
    for start in range(0, size[0], step):
        part = [axes[0][start : start + step], *axes[1:]]
        for row, length in zip(np.asarray(move), other, strict=False):
            # Along axes that it does not change with it has length 1.
            at = row[3] + sum(factor * along for factor, along in zip(row, part, strict=False) if factor)
            inside[start : start + step] &= (at >= -0.5 - 1e-6) & (at <= length - 0.5 + 1e-6)
    return inside


# -- inside


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = [column_name(cell) for cell in next(reader)]
            cells = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num} is no row of a table ({error}): write it again"
            ) from error
    for known in COLUMNS:
        if names.count(known) > 1:
            raise ValueError(f"{path} has two columns {known}: rename one")
    for number, row in cells:
        if len(row) != len(names):
            raise ValueError(f"{path}, line {number} has {len(row)} cells; expected {len(names)}, as its first line")
    if not cells:
        raise ValueError(f"{path} lists no pair: expected a row with a baseline and a followup")
    return [(n, {name: cell.strip() for name, cell in zip(names, row, strict=True)}) for n, row in cells]


def _member(root: Path, row: dict[str, str], which: str, where: str) -> VolumeEntry:
    """Return the one volume that a cell names."""
    given, series = row[which], row.get(f"{which}series", "")
    if not given:
        raise ValueError(f"{where} names no {which}: every row is a pair")
    path = root / Path(given).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{where}: no such {which}: {given} (paths are relative to the folder of the listing)")
    found = list_volumes(path)
    if series:
        known = [str(entry.series.number) for entry in found if entry.series is not None]
        if series not in known:
            raise ValueError(f"{where}: {given} has no series {series}; it has {', '.join(known) or 'no DICOM series'}")
        found = [entry for entry in found if entry.series is not None and str(entry.series.number) == series]
    if len(found) > 1:
        some = "; ".join(str(entry.series or entry.name) for entry in found[:4]) + ("; ..." if len(found) > 4 else "")
        dicom = all(entry.series is not None for entry in found)
        remedy = f"choose one by its number in a column '{which}_series'" if dicom else "name one of them"
        raise ValueError(f"{where}: the {which} {given} holds {len(found)} volumes ({some}): {remedy}")
    name = _name(given)
    if series:
        name = f"{name}/series-{series}"
    return VolumeEntry(name, found[0].path, found[0].format, found[0].position, found[0].series)


def _name(given: str) -> str:
    """Return what a path is called: of one that leads elsewhere its last two parts, none that is an identifier."""
    path = Path(given)
    parts = path.parts[-2:] if path.is_absolute() or ".." in path.parts or given.startswith("~") else path.parts
    return without_identifiers([part for part in parts if part not in ("/", "..", "~", path.anchor)])


def _identity(entry: VolumeEntry) -> tuple[object, ...]:
    return entry.path.resolve(), entry.position, None if entry.series is None else entry.series.number


def _called(entry: VolumeEntry) -> str:
    """Return the name of a member; folders of DICOM files are often called after persons, so that of a series is a hash."""
    if entry.series is None:
        return bare(entry.name)
    from omnivae.data.volumes.dataset_dicom import series_entry

    return series_entry(entry.path, entry.series).key


def _split(row: dict[str, str], where: str) -> Split | None:
    if "split" not in row:
        return None
    word = row["split"].lower()
    if word not in SPLIT_WORDS:
        raise ValueError(
            f"{where}: got the split {row['split']!r}{suggestion(word, SPLIT_WORDS)}; expected one of train, val, test"
        )
    return SPLIT_WORDS[word]


def _grouped(path: Path, pairs: list[Pair], patients: Sequence[str]) -> list[Pair]:
    """Return the pairs with the number of their patient, and refuse a patient in two splits."""
    marks: list[set[object]] = []
    # A folder is a patient where both members of every pair lie in the same one; not so baseline/7 and followup/7.
    tops = [{m.name.rpartition("/")[0].partition("/")[0] for m in (p.baseline, p.followup)} for p in pairs]
    by_folder = all(len(top) == 1 and "" not in top for top in tops) and len(set().union(*tops)) >= 3
    for pair, patient, folders in zip(pairs, patients, tops, strict=True):
        mark: set[object] = {_identity(pair.baseline), _identity(pair.followup)}
        for member in (pair.baseline, pair.followup):
            if member.series is not None and member.series.frames and member.series.frames[0].patient:
                mark.add(("dicom", member.series.frames[0].patient))
        if patient:
            mark.add(("patient", patient))
        elif by_folder:
            mark |= {("folder", folder) for folder in folders}
        marks.append(mark)
    groups = list(range(len(pairs)))
    first: dict[object, int] = {}
    for number, mark in enumerate(marks):
        for one in mark:
            low, high = sorted((groups[number], groups[first.setdefault(one, number)]))
            if low != high:
                groups = [low if group == high else group for group in groups]
    names: dict[int, str] = {}
    for pair, group in zip(pairs, groups, strict=True):
        names[group] = min(names.get(group, pair.name), pair.name)
    out = [replace(pair, group=names[group]) for pair, group in zip(pairs, groups, strict=True)]
    split_of: dict[str, Pair] = {}
    for pair in out:
        other = split_of.setdefault(pair.group, pair)
        if other.split != pair.split:
            raise ValueError(
                f"{path}: {other.name} is for {other.split} and {pair.name} for {pair.split}, and they share a patient, a "
                "folder or a file: put them into one split, or tell their patients apart in a column 'patient'"
            )
    return out


def _box(volume: Volume) -> str:
    """Say where a volume lies."""
    ends = np.array([(0 if low else n - 1) for n in volume.size for low in (True, False)]).reshape(3, 2)
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    world = volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]
    unit = "mm" if volume.space == "patient" else "micrometres"
    return " x ".join(f"{a:.0f}..{b:.0f}" for a, b in zip(world.min(1), world.max(1), strict=True)) + f" {unit}"
