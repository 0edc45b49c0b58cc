"""What DICOM series a folder holds: frames grouped into volumes, localizers, captures and derived images apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from omnivae.data.volumes.dicom_files import Item, Progress
from omnivae.data.volumes.dicom_geometry import SAME_PLACE_MM, Arrangement, Problem, arrange
from omnivae.data.volumes.dicom_scan import IMAGE_CLASSES, Frame, scan
from omnivae.volume import Unit

#: What a group of frames is: an image series; a localizer; a screen capture; computed from another series; DICOM of other kinds
#: (segmentations, doses, reports, images without a place in the patient); files that should be DICOM and cannot be read.
Kind = Literal["image", "localizer", "capture", "derived", "other", "unreadable"]

_LOCALIZER = re.compile(r"\b(localis?zers?|localisers?|scouts?|topograms?|surview|survey|scanogram)\b", re.IGNORECASE)
_LOCALIZER_TYPES = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY", "SURVIEW"}
_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
#: Cosines and relative spacings of one series differ by less; real series wobble in the fifth decimal.
_SAME_DIRECTION, _SAME_SPACING = 2e-3, 1e-3


@dataclass(frozen=True)
class SeriesInfo:
    """One series of a folder, known by its headers; nothing in its ``repr`` or its problems tells of a person.

    Attributes:
        number: in the list of the folder, 1 first: what ``series`` of :func:`read_dicom` takes.
        kind: "image", "localizer", "capture", "derived", "other" or "unreadable".
        modality: "CT", "MR", ...
        description: of the series, as far as it does not tell of the patient.
        patient: number of the patient in the folder, 1 first.
        part: what tells it from other volumes at the same places, such as "EchoTime 2 of 3"; "" where there are none.
        frames: its images.
        files: the files that hold them.
    """

    number: int
    kind: Kind
    modality: str = ""
    description: str = ""
    patient: int = 1
    part: str = ""
    frames: tuple[Frame, ...] = field(default=(), repr=False)
    files: tuple[Item, ...] = field(default=(), repr=False)
    reasons: tuple[Problem, ...] = field(default=(), repr=False)

    @cached_property
    def arrangement(self) -> Arrangement:
        """Order and geometry of its slices."""
        return arrange(self.frames)

    @property
    def uid(self) -> str:
        """SeriesInstanceUID: for looking it up, never for a log."""
        return self.frames[0].series if self.frames else ""

    @property
    def size(self) -> tuple[int, int, int]:
        """Columns, rows and slices (frames where they form no volume)."""
        if not self.frames:
            return 0, 0, 0
        slices = len(self.arrangement.order) or len(self.frames)
        return self.frames[0].columns, self.frames[0].rows, slices

    @property
    def affine(self) -> np.ndarray | None:
        """From indices (column, row, slice) to the world (RAS, mm); None where there is no volume."""
        return self.arrangement.affine

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Distances along columns, rows and slices, mm; None where there is no volume."""
        if self.affine is None:
            return None
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def unit(self) -> Unit:
        """Of the values after the modality's slope and intercept."""
        return unit_of(self.frames) if self.frames else "arbitrary"

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What is unusual about it: geometry, pixels, values."""
        if not self.frames or self.kind == "other":
            return self.reasons
        return (*self.reasons, *self.arrangement.problems, *pixel_problems(self.frames))

    @property
    def readable(self) -> bool:
        """Whether :func:`read_dicom` gives a volume without further options."""
        return bool(self.frames) and self.kind != "other" and all(p.severity == "note" for p in self.problems)

    def __str__(self) -> str:
        if self.kind == "unreadable":
            return f"{self.number}: {len(self.files)} unreadable files"
        size = "x".join(map(str, self.size))
        spacing = "" if self.spacing is None else ", " + "x".join(f"{s:.4g}" for s in self.spacing) + " mm"
        text = (f', "{self.description}"' if self.description else "") + (f", {self.part}" if self.part else "")
        return f"{self.number}: {self.kind} {self.modality} {size}{spacing}{text}"


def find_series(path: str | Path, *, workers: int = 8, progress: Progress | None = None) -> list[SeriesInfo]:
    """List the DICOM series below a path by their headers; no pixel is read.

    Frames belong together when patient, study, series, modality, matrix, spacing, orientation, image type and echo are the same;
    where UIDs are empty, when number and folder of the series are. Frames at the same places (time points, b-values, repeated
    acquisitions) are told apart by what the headers say of the acquisition.

    Args:
        path: a folder (files at any depth), a zip archive (read in place) or a file.
        workers: threads that read headers.
        progress: is called with the number of files done and of all files.

    Returns:
        Image series first, then derived ones, localizers, captures, DICOM of other kinds, unreadable files.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for a damaged archive.
        ImportError: when pydicom is missing.
    """
    found = scan(path, workers=workers, progress=progress)
    patients: dict[str, int] = {}
    for frame in found.frames:
        patients.setdefault(frame.patient, len(patients) + 1)
    series = [
        SeriesInfo(
            0,
            *_kind(group),
            patient=patients[group[0].patient],
            part=part,
            frames=tuple(group),
            files=_files(group),
            reasons=_reasons(group),
        )
        for same in _by_header(found.frames)
        for group, part in _split_repeats(same)
    ]
    if found.unreadable:
        text = "; ".join(f"{item.name}: {reason}" for item, reason in found.unreadable[:6])
        more = f" and {len(found.unreadable) - 6} more" if len(found.unreadable) > 6 else ""
        problem = Problem("unreadable files", text + more, "error")
        items = tuple(item for item, _ in found.unreadable)
        series.append(SeriesInfo(0, "unreadable", files=items, reasons=(problem,)))
    rank = {"image": 0, "derived": 1, "localizer": 2, "capture": 3, "other": 4, "unreadable": 5}
    series.sort(key=lambda s: rank[s.kind])
    return [replace(s, number=n) for n, s in enumerate(series, 1)]


def unit_of(frames: Sequence[Frame]) -> Unit:
    """Return "HU" for CT images that are rescaled to Hounsfield units.

    Args:
        frames: of one series.
    """
    hounsfield = all(
        f.modality == "CT"
        and f.rescale_type in ("", "HU")
        and f.intercept is not None
        and f.slope is not None
        and not f.table
        for f in frames
    )
    return "HU" if hounsfield else "arbitrary"


def pixel_problems(frames: Sequence[Frame]) -> list[Problem]:
    """Say what headers tell of unreadable pixels and odd values.

    Args:
        frames: of one series.
    """
    found = []
    flaws: dict[str, list[Frame]] = {}
    for frame in frames:
        if frame.flaw:
            flaws.setdefault(frame.flaw, []).append(frame)
    for flaw, those in flaws.items():
        names = ", ".join(f.name for f in those[:4]) + (f" and {len(those) - 4} more" if len(those) > 4 else "")
        found.append(Problem("unreadable pixel data", f"{flaw} ({names})", "error"))
    first = frames[0]
    if first.samples != 1 or first.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        text = f"pixels are {first.photometric or 'colours'} with {first.samples} samples; expected one number a pixel"
        found.append(Problem("colours", text, "error"))
    if first.modality == "CT" and unit_of(frames) != "HU":
        text = (
            f"RescaleType is {first.rescale_type}: values are no Hounsfield units"
            if first.intercept is not None
            else "RescaleSlope and RescaleIntercept are missing: whether values are Hounsfield units is unknown"
        )
        found.append(Problem("unit", text))
    if first.modality == "CT" and first.bits <= 8:
        found.append(
            Problem("8 bits", "a CT of 8 bits is a picture of one: its values are no Hounsfield units to rely on")
        )
    return found


def _by_header(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group frames by what is equal exactly, then by directions and spacings up to their wobble."""
    exact: dict[tuple[object, ...], list[list[Frame]]] = {}
    for frame in frames:
        uid: tuple[str, ...] = (frame.series,) if frame.series else ("", frame.series_number, frame.item.folder)
        key = (
            frame.patient, frame.study, *uid, frame.modality, frame.sop_class, frame.rows, frame.columns, frame.samples,
            frame.photometric, frame.image_type, dict(frame.about).get("EchoNumbers"),
        )  # fmt: skip
        clusters = exact.setdefault(key, [])
        for cluster in clusters:
            if _alike(cluster[0], frame):
                cluster.append(frame)
                break
        else:
            clusters.append([frame])
    return [cluster for clusters in exact.values() for cluster in clusters]


def _alike(a: Frame, b: Frame) -> bool:
    if (a.orientation is None) != (b.orientation is None) or (a.spacing is None) != (b.spacing is None):
        return False
    if a.orientation is not None and b.orientation is not None:
        apart = max(abs(x - y) for x, y in zip(a.orientation, b.orientation, strict=True))
        if not apart < _SAME_DIRECTION:  # what is no number is alike with nothing
            return False
    if a.spacing is None or b.spacing is None:
        return True
    return all(abs(x - y) <= _SAME_SPACING * abs(x) for x, y in zip(a.spacing, b.spacing, strict=True))


def _split_repeats(frames: list[Frame], said: str = "") -> list[tuple[list[Frame], str]]:
    """Split frames that share places into volumes of one time point, echo, b-value or acquisition each, as headers tell."""
    repeats = _repeats(frames)
    if repeats <= 1:
        return [(frames, said)]
    for name in dict.fromkeys(key for frame in frames for key, _ in frame.about):
        parts: dict[str | None, list[Frame]] = {}
        for frame in frames:
            parts.setdefault(dict(frame.about).get(name), []).append(frame)
        # A slice of its own is a doubled slice, not a volume; and an attribute that leaves the repeats as they are tells nothing.
        if len(parts) > 1 and min(map(len, parts.values())) > 1 and max(map(_repeats, parts.values())) < repeats:
            # Which of how many, in the order of the values, and not the value: times tell of persons.
            ordered = sorted(parts.items(), key=lambda part: _natural(part[0]))
            names = [f"{said}, {name} {n}" if said else f"{name} {n}" for n in range(1, len(parts) + 1)]
            found = [
                _split_repeats(part, f"{text} of {len(parts)}") for (_, part), text in zip(ordered, names, strict=True)
            ]
            return [group for groups in found for group in groups]
    return [(frames, said)]


def _natural(value: str | None) -> tuple[int, float, str]:
    """Sort numbers as numbers, before words."""
    try:
        return 0, float(value or ""), ""
    except ValueError:
        return 1, 0.0, value or ""


def _repeats(frames: Sequence[Frame]) -> int:
    """Return the largest number of frames at one place."""
    places = Counter(tuple(round(p / SAME_PLACE_MM / 10) for p in f.position) for f in frames if f.position is not None)
    return max(places.values(), default=1)


def _kind(frames: list[Frame]) -> tuple[Kind, str, str]:
    first = frames[0]
    words = set(first.image_type)
    modality = first.modality or IMAGE_CLASSES.get(first.sop_class, "")
    kind: Kind
    if first.sop_class.startswith(_CAPTURE_CLASS):
        kind = "capture"
    elif words & _LOCALIZER_TYPES or _LOCALIZER.search(first.description):
        kind = "localizer"
    elif first.captured or "SCREEN SAVE" in words:
        kind = "capture"
    elif first.sop_class not in IMAGE_CLASSES or (all(f.position is None for f in frames) and first.frames > 1):
        kind = "other"
    else:
        kind = "derived" if "DERIVED" in words else "image"
    return kind, modality, first.description


def _reasons(frames: list[Frame]) -> tuple[Problem, ...]:
    kind = _kind(frames)[0]
    if kind != "other":
        return ()
    what = (
        "an image of another kind"
        if frames[0].frames == 1
        else "frames without a place in the patient (4-D, cine or other)"
    )
    return (Problem("no volume", f"{frames[0].modality or 'it'} holds {what}", "error"),)


def _files(frames: Iterable[Frame]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys(frame.item for frame in frames))
