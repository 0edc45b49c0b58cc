"""Do slices form a volume? Their positions, projected on the normal of their planes, tell; nothing else is believed.

Readers in use stack what a folder holds and take the mean distance: a missing, doubled or shifted slice shows nowhere. Here each
is found, named and refused. ``SliceThickness`` is never a distance: slices may overlap or leave gaps.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from omnivae.data.volumes.dicom_scan import Frame

Severity = Literal["error", "gap", "order", "note"]

#: Positions that differ by less, mm, are one position: scanners write them with three to six decimals.
SAME_PLACE_MM = 1e-3
#: Distances between slices are equal when they differ by less than this share of them, or by less than what rounding explains.
SHARE, ROUNDING_MM = 0.01, 0.01
#: Widest hole that resampling may bridge, in distances between slices: beyond, anatomy would be invented.
WIDEST_HOLE = 4.0
#: Decimals that an affine keeps, mm, of its columns in the plane and of step and origin: far finer than any scanner, coarser than
#: the 16 characters of a DICOM number, so that a volume that was written and read again has the same bits.
DECIMALS = np.array([12, 12, 9, 9])
#: Below this many degrees a shear is rounding, not a tilted gantry.
_TILT = 0.1
_PATIENT_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Problem:
    """One thing that is unusual about a series.

    Attributes:
        name: what kind: "missing slices", "doubled slices", "gantry tilt", ...
        text: a sentence that names the slices; tells of no person.
        severity: "error" (there is no volume), "gap" (a volume only by resampling), "order" (positions and numbers contradict
            each other), "note" (a volume, and something to know of it).
    """

    name: str
    text: str
    severity: Severity = "note"

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True)
class Arrangement:
    """Where the slices of a series lie.

    Attributes:
        order: indices of the frames along the normal; of frames at one place the first.
        doubled: groups of indices of frames at one place.
        affine: from indices (column, row, slice) to the world (RAS, mm); None where there is no volume.
        places: where each slice of ``order`` lies along the third axis, in steps; 0, 1, 2, ... unless there are gaps.
        problems: what is unusual.
    """

    order: tuple[int, ...] = ()
    doubled: tuple[tuple[int, ...], ...] = ()
    affine: np.ndarray | None = None
    places: tuple[float, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def regular(self) -> bool:
        """Whether slices lie at equal distances."""
        return self.places == tuple(range(len(self.order)))


def arrange(frames: Sequence[Frame], *, slice_spacing: float | None = None) -> Arrangement:
    """Find the order of slices, their geometry and what is wrong with it.

    Args:
        frames: of one series: the same matrix, spacing and orientation.
        slice_spacing: distance to assume for a single slice, mm.

    Returns:
        The arrangement; its problems of severity "error" say why there is no volume.
    """
    if not frames:
        return Arrangement()
    wrong = _unplaced(frames)
    if wrong is not None:
        return Arrangement(problems=(wrong,))
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    # Cosines may wobble in the fifth decimal: whose are used must not depend on the names of files.
    model = min(frames, key=lambda frame: (frame.orientation, frame.spacing))
    axes = np.array(model.orientation, dtype=np.float64).reshape(2, 3)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    normal = np.cross(*axes)
    along = positions @ normal
    groups = _same_places(along, frames)
    order = tuple(group[0] for group in groups)
    doubled = tuple(tuple(group) for group in groups if len(group) > 1)
    problems: list[Problem] = []
    if len(groups) == 1:
        if len(frames) > 1:
            text = f"all {len(frames)} slices lie at one place ({along[0]:g} mm along the normal)"
            return Arrangement(order, doubled, problems=(Problem("one position", text, "error"),))
        step = _single(frames[0], normal, slice_spacing, problems)
        if step is None:
            return Arrangement(order, doubled, problems=tuple(problems))
        affine = _affine(model, axes, positions[order[0]], step)
        return Arrangement(order, doubled, affine, (0.0,), tuple(problems))
    if doubled:
        several = [f"{_together([frames[i].name for i in group])} ({along[group[0]]:g} mm)" for group in doubled]
        problems.append(Problem("doubled slices", f"at one place along the normal: {_some(several, limit=4)}"))
    path = positions[list(order)]
    places, step = _places([frames[i] for i in order], along[list(order)], path, problems)
    problems += _order_problems([frames[i] for i in order])
    problems += _header_problems([frames[i] for i in order], step, normal, places)
    if any(problem.severity == "error" for problem in problems):
        return Arrangement(order, doubled, None, places, tuple(problems))
    return Arrangement(order, doubled, _affine(model, axes, path[0], step), places, tuple(problems))


def tilt_degrees(step: np.ndarray, normal: np.ndarray) -> float:
    """Return the angle between the way from slice to slice and the normal of the slices.

    Args:
        step: from one slice to the next.
        normal: of unit length.
    """
    across = np.linalg.norm(step - (step @ normal) * normal)
    return math.degrees(math.atan2(float(across), abs(float(step @ normal))))


def _unplaced(frames: Sequence[Frame]) -> Problem | None:
    """Say which frames have no usable position, orientation or spacing."""
    lost = [f.name for f in frames if f.position is None or f.orientation is None]
    if lost:
        return Problem(
            "no positions", f"{_some(lost)} without ImagePositionPatient or ImageOrientationPatient", "error"
        )
    flat = [f.name for f in frames if f.spacing is None or not all(math.isfinite(s) and s > 0 for s in f.spacing)]
    if flat:
        said = frames[0].spacing
        return Problem(
            "no spacing", f"{_some(flat)} have the PixelSpacing {said}; expected two numbers above 0 mm", "error"
        )
    values = np.array([(*f.position, *f.orientation) for f in frames], dtype=np.float64)  # type: ignore[misc]
    if not np.isfinite(values).all():
        return Problem("no positions", "positions or orientations are not finite numbers", "error")
    rows, columns = values[:, 3:6], values[:, 6:9]
    lengths = np.linalg.norm([rows, columns], axis=2)
    skew = np.abs((rows * columns).sum(axis=1))
    if np.any(np.abs(lengths - 1) > 0.01) or np.any(skew > 0.01):
        return Problem(
            "no orientation",
            "ImageOrientationPatient holds no two unit vectors at a right angle: the header is damaged",
            "error",
        )
    return None


def _same_places(along: np.ndarray, frames: Sequence[Frame]) -> list[list[int]]:
    """Group frames at one place along the normal, in the order of the normal; in a group by number."""
    groups: list[list[int]] = []
    for i in sorted(range(len(frames)), key=lambda i: (along[i], frames[i].number or 0, frames[i].index)):
        if groups and along[i] - along[groups[-1][0]] < SAME_PLACE_MM:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    return groups


def _single(
    frame: Frame, normal: np.ndarray, slice_spacing: float | None, problems: list[Problem]
) -> np.ndarray | None:
    """Return the step of a single slice: nothing can be measured, so somebody has to say it."""
    if slice_spacing is not None:
        problems.append(Problem("one slice", f"the distance of {slice_spacing:g} mm was given, not measured"))
        return normal * slice_spacing
    if frame.between is not None and frame.between > 0:
        problems.append(Problem("one slice", f"SpacingBetweenSlices ({frame.between:g} mm) is believed, not measured"))
        return normal * frame.between
    problems.append(
        Problem(
            "one slice",
            "a single slice has no distance to a next one, and its thickness is none: get the others, or leave it out "
            "(data.on_error skip in training); read_dicom(path, slice_spacing=3.0) in Python reads it as a volume of depth 1",
            "error",
        )
    )
    return None


def _places(
    frames: list[Frame], along: np.ndarray, path: np.ndarray, problems: list[Problem]
) -> tuple[tuple[float, ...], np.ndarray]:
    """Return where each slice lies in steps, and the step; add what is wrong to the problems."""
    gaps = np.diff(along)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    tolerance = max(ROUNDING_MM, SHARE * usual)
    regular = np.arange(len(frames), dtype=np.float64)
    mean = (path[-1] - path[0]) / (len(frames) - 1)
    # Rounding is no drift: the line through all slices must not leave any of them.
    if (
        np.abs(gaps - usual).max() <= tolerance
        and np.abs(along - along[0] - regular * gaps.mean()).max() <= 2 * tolerance
    ):
        wander = np.linalg.norm(path - path[0] - regular[:, None] * mean, axis=1)
        if wander.max() > max(5 * ROUNDING_MM, 2 * tolerance):
            worst = frames[int(wander.argmax())].name
            problems.append(
                Problem(
                    "shifted slices", f"{worst} lies {wander.max():.3g} mm beside the line through the others", "error"
                )
            )
        return tuple(range(len(frames))), mean
    missing, odd = [], []
    for i, gap in enumerate(gaps):
        between = f"between {frames[i].name} and {frames[i + 1].name}"
        times = gap / usual
        if abs(gap - usual) <= tolerance:
            continue
        if round(times) >= 2 and abs(gap - round(times) * usual) <= max(round(times) * tolerance, 0.05 * usual):
            missing.append(f"{round(times) - 1} {between} ({along[i]:g} and {along[i + 1]:g} mm)")
        else:
            odd.append(f"{gap:.4g} mm {between}")
    said = f"the usual distance is {usual:.4g} mm"
    if missing:
        problems.append(Problem("missing slices", f"{_some(missing)}; {said}", "gap"))
    if odd:
        problems.append(Problem("non-uniform spacing", f"{_some(odd)}; {said}", "gap"))
    if not missing and not odd:
        problems.append(
            Problem("non-uniform spacing", f"distances drift from {gaps.min():.4g} to {gaps.max():.4g} mm", "gap")
        )
    count = max(1, round(float(along[-1] - along[0]) / usual))
    step = (path[-1] - path[0]) / count
    places = (along - along[0]) / float(along[-1] - along[0]) * count
    wander = np.linalg.norm(path - path[0] - places[:, None] * step, axis=1)
    if wander.max() > max(5 * ROUNDING_MM, 2 * tolerance):
        worst = frames[int(wander.argmax())].name
        problems.append(
            Problem("shifted slices", f"{worst} lies {wander.max():.3g} mm beside the line through the others", "error")
        )
    if gaps.max() > (WIDEST_HOLE + 0.05) * usual:
        problems.append(
            Problem(
                "wide hole",
                f"{gaps.max():.4g} mm without a slice is more than {WIDEST_HOLE:g} distances: nothing can fill it",
                "error",
            )
        )
    whole = np.round(places)
    if np.abs(places - whole).max() * usual <= 2 * tolerance:
        places = whole  # slices that are there stay as they are
    return tuple(places.tolist()), step


def _order_problems(frames: list[Frame]) -> list[Problem]:
    """Compare instance numbers with positions: a few slices out of line contradict their numbers; interleaving does not."""
    numbers = [frame.number for frame in frames]
    if len(frames) < 4 or any(n is None for n in numbers) or len(set(numbers)) < len(numbers):
        return []
    rising = [float(n) for n in numbers if n is not None]
    kept = max(_in_line(rising), _in_line([-n for n in rising]), key=len)
    strays = [frames[i].name for i in range(len(frames)) if i not in kept]
    if not strays:
        return []
    if len(strays) <= max(1, len(frames) // 5):
        text = f"{_some(strays)} lie elsewhere than their instance numbers say: positions or numbers are wrong"
        return [Problem("out-of-order slices", text, "order")]
    return [Problem("instance numbers", "they do not follow the positions; slices are ordered by position")]


def _in_line(values: list[float]) -> set[int]:
    """Return the indices of a longest rising subsequence (patience sorting)."""
    tails: list[float] = []
    ends: list[int] = []
    before: list[int] = []
    for i, value in enumerate(values):
        at = bisect.bisect_left(tails, value)
        before.append(ends[at - 1] if at else -1)
        tails[at : at + 1] = [value]
        ends[at : at + 1] = [i]
    found: set[int] = set()
    i = ends[-1] if ends else -1
    while i >= 0:
        found.add(i)
        i = before[i]
    return found


def _header_problems(
    frames: list[Frame], step: np.ndarray, normal: np.ndarray, places: tuple[float, ...]
) -> list[Problem]:
    """Say what else is unusual: a tilt, a header that says another distance, two slices only."""
    found = []
    tilt = tilt_degrees(step, normal)
    if tilt > _TILT:
        found.append(Problem("gantry tilt", f"{tilt:.2f} degrees, kept as a sheared affine"))
    said, measured = frames[0].between, float(step @ normal)
    if said is not None and min(abs(said - measured), abs(said - float(np.linalg.norm(step)))) > max(
        ROUNDING_MM, 0.05 * measured
    ):
        found.append(
            Problem(
                "distance", f"SpacingBetweenSlices says {said:g} mm; positions say {measured:.4g} mm and are believed"
            )
        )
    if len(frames) == 2:
        found.append(Problem("two slices", "whether one is missing between them cannot be told"))
    wobble = float(np.ptp(np.array([frame.orientation for frame in frames], dtype=np.float64), axis=0).max())
    if wobble > 1e-4:
        found.append(
            Problem(
                "orientation", f"direction cosines differ by up to {wobble:.1g}; those of one slice are used for all"
            )
        )
    return found


def _affine(frame: Frame, axes: np.ndarray, origin: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the affine from (column, row, slice) to RAS: PixelSpacing names the distance between rows first."""
    assert frame.spacing is not None
    between_rows, between_columns = frame.spacing
    affine = np.eye(4)
    affine[:3, 0] = _PATIENT_TO_RAS @ (axes[0] * between_columns)
    affine[:3, 1] = _PATIENT_TO_RAS @ (axes[1] * between_rows)
    affine[:3, 2] = _PATIENT_TO_RAS @ step
    affine[:3, 3] = _PATIENT_TO_RAS @ origin
    rounded = [np.round(column, decimals) for column, decimals in zip(affine.T, DECIMALS, strict=True)]
    return np.stack(rounded, axis=1) + 0.0  # no negative zeros


def _together(names: Sequence[str]) -> str:
    """Name slices, those of one name once."""
    if len(set(names)) == 1:
        return f"{names[0]} {len(names)} times"
    return ", ".join(names)


def _some(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
