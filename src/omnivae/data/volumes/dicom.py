"""DICOM series to volumes: :func:`read_dicom`, strict about geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnivae.data.volumes.dicom_files import Progress
from omnivae.data.volumes.dicom_geometry import Arrangement, Problem, arrange
from omnivae.data.volumes.dicom_pixels import Padding, decode, to_values
from omnivae.data.volumes.dicom_scan import Frame
from omnivae.data.volumes.dicom_series import SeriesInfo, find_series
from omnivae.data.volumes.dicom_tilt import remove_tilt
from omnivae.data.volumes.header import VolumeHeader
from omnivae.volume import Volume


def read_dicom(
    path: str | Path,
    *,
    series: int | str | SeriesInfo | None = None,
    on_gaps: Literal["error", "resample"] = "error",
    on_order: Literal["error", "positions"] = "error",
    slice_spacing: float | None = None,
    padding: Padding = "air",
    tilt: Literal["keep", "remove"] = "keep",
    progress: Progress | None = None,
) -> Volume:
    """Read one DICOM series as a volume, or say precisely why it is none.

    Slices are ordered along the normal of their planes (ImageOrientationPatient), their distance is measured between positions
    (ImagePositionPatient), and each is checked. A gantry tilt stays as a sheared affine. Exact duplicates of slices are dropped.

    Args:
        path: a folder (files at any depth), a zip archive or a file.
        series: of several, the one to read: its number in :func:`find_series`, its SeriesInstanceUID, or the series itself. Without
            it there must be one; localizers, captures and derived images are set aside, and named in the volume's problems.
        on_gaps: "error" refuses missing slices and unequal distances; "resample" interpolates linearly to equal distances between
            the first slice and the last, over holes of at most four distances, and says so in the volume's problems.
        on_order: "error" refuses slices whose instance numbers contradict their positions; "positions" believes the positions.
        slice_spacing: distance in mm to assume for a series of one slice, which has none.
        padding: "air" turns padding values, and what lies below -1024 HU, into -1024 HU (the lowest measured value where units are
            arbitrary), counted in the volume's problems; "keep" leaves them.
        tilt: "keep" leaves a gantry tilt in the affine; "remove" moves slices in their planes (:func:`remove_tilt`).
        progress: is called with the number of files done and of all files.

    Returns:
        The volume ``[1, columns, rows, slices]``: HU where the series is a CT in Hounsfield units; int16 where slope and
        intercept are whole numbers and values fit, otherwise int32 or float32; ``origin`` holds the modality.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when there is no series, several, or several patients; for slices that form no volume; for damaged pixels.
        ImportError: when pydicom or a codec is missing, naming what to install.
    """
    if slice_spacing is not None and not (np.isfinite(slice_spacing) and slice_spacing > 0):
        raise ValueError(f"got slice_spacing {slice_spacing}; expected a distance above 0 mm")
    chosen, aside = _choose(path, series)
    arrangement = arrange(chosen.frames, slice_spacing=slice_spacing)
    chosen = _with_arrangement(chosen, arrangement)
    _refuse(path, chosen, on_gaps, on_order)
    notes = [p for p in chosen.problems if p.name != "doubled slices"]
    extra = [i for group in arrangement.doubled for i in group[1:]]
    wanted = [*arrangement.order, *extra]
    stored = decode([chosen.frames[i] for i in wanted], progress=progress)
    slices = len(arrangement.order)
    notes += _drop_duplicates(path, chosen, dict(zip(wanted, stored, strict=True)))
    frames = [chosen.frames[i] for i in arrangement.order]
    values, origin, more = to_values(stored[:slices], frames, padding=padding)
    affine = arrangement.affine
    assert affine is not None
    if not arrangement.regular:
        values, note = _resample(values, arrangement.places)
        more.append(note)
    volume = Volume(
        values[None],
        affine,
        unit=chosen.unit,
        stored=origin,
        source=str(path),
        format="dicom",
        origin=_origin(chosen, frames, regular=arrangement.regular),
        problems=tuple(str(p) for p in (*notes, *more, *aside)),
    )
    return remove_tilt(volume) if tilt == "remove" else volume


def choose_series(path: str | Path, series: int | str | None = None) -> SeriesInfo:
    """Return the series of a folder that :func:`read_dicom` would read.

    Args:
        path: as there.
        series: as there.

    Returns:
        The series.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when there is no series, several, or several patients.
    """
    return _choose(path, series)[0]


def dicom_header(path: str | Path, *, series: int | str | SeriesInfo | None = None) -> VolumeHeader:
    """Read shape, geometry and stored type of a series, without its pixels.

    Args:
        path: as :func:`read_dicom`.
        series: as there.

    Returns:
        The header; its problems include those for which :func:`read_dicom` refuses the series.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when there is no series, several, or several patients; where slices span no volume at all.
    """
    chosen, aside = _choose(path, series)
    if chosen.affine is None:
        _refuse(path, chosen, "resample", "positions")
        raise AssertionError("a series without geometry has a reason")
    first = chosen.frames[0]
    i, j, k = chosen.size
    if not chosen.arrangement.regular:
        k = round(chosen.arrangement.places[-1]) + 1
    return VolumeHeader(
        (1, i, j, k),
        chosen.affine,
        dtype=("int" if first.signed else "uint") + ("8" if first.bits <= 8 else "16" if first.bits <= 16 else "32"),
        unit=chosen.unit,
        format="dicom",
        source=str(path),
        problems=tuple(str(p) for p in (*chosen.problems, *aside)),
    )


def _origin(series: SeriesInfo, frames: Sequence[Frame], *, regular: bool) -> dict[str, Any]:
    """Return what a writer needs again: the modality, and slopes that differ from slice to slice."""
    origin: dict[str, Any] = {"modality": series.modality}
    rescale = [(1.0 if f.slope is None else f.slope, 0.0 if f.intercept is None else f.intercept) for f in frames]
    if regular and len(set(rescale)) > 1 and not frames[0].table:
        origin["slopes"], origin["intercepts"] = (tuple(part) for part in zip(*rescale, strict=True))
    return origin


def _choose(path: str | Path, series: int | str | SeriesInfo | None) -> tuple[SeriesInfo, list[Problem]]:
    """Return the series to read, and what was set aside for it."""
    if isinstance(series, SeriesInfo):
        return series, []
    found = find_series(path)
    if not any(s.frames for s in found):
        reasons = "".join(f": {p.text}" for s in found for p in s.problems)
        raise ValueError(f"{path} holds no DICOM images{reasons}: give a folder with a series")
    if series is not None:
        return _named(path, found, series), []
    broken = [s for s in found if s.kind == "unreadable"]
    if broken:
        raise ValueError(
            f"{path} holds files that cannot be read ({broken[0].problems[0].text}): mend or remove them, or give series"
        )
    # Derived images are read where there is nothing else: this library writes such series too.
    candidates = [s for s in found if s.kind == "image"] or [s for s in found if s.kind == "derived"]
    patients = sorted({s.patient for s in candidates})
    if len(patients) > 1:
        raise ValueError(
            f"{path} holds {len(patients)} patients: {_list(candidates, patients=True)}: give each "
            "its folder, or choose with --series"
        )
    if len(candidates) > 1:
        raise ValueError(f"{path} holds {len(candidates)} series: {_list(candidates)}: choose one with --series NUMBER")
    if not candidates:
        raise ValueError(
            f"{path} holds no image series, only {_list(found)}: choose one with --series NUMBER to read it anyway"
        )
    aside = [Problem("set aside", str(s).partition(": ")[2]) for s in found if s is not candidates[0]]
    return candidates[0], aside


def _named(path: str | Path, found: list[SeriesInfo], series: int | str) -> SeriesInfo:
    text = str(series).strip()
    by_number = [s for s in found if s.frames and text == str(s.number)]
    by_uid = [s for s in found if text and s.uid == text]
    matching = by_number or by_uid
    if len(matching) != 1:
        what = "no" if not matching else f"{len(matching)} times"
        shown = text if text.isdigit() else "that UID"
        raise ValueError(f"{path} holds {what} series {shown}; it has {_list(found)}: choose one by its number")
    return matching[0]


def _list(series: Sequence[SeriesInfo], *, patients: bool = False) -> str:
    return "; ".join(f"{s} (patient {s.patient})" if patients else str(s) for s in series)


def _with_arrangement(series: SeriesInfo, arrangement: Arrangement) -> SeriesInfo:
    """Return the series with another arrangement in place of the cached one."""
    series = replace(series)
    series.__dict__["arrangement"] = arrangement
    return series


def _refuse(path: str | Path, series: SeriesInfo, on_gaps: str, on_order: str) -> None:
    """Raise for problems that are not allowed."""
    allowed = (
        {"note"} | ({"gap"} if on_gaps == "resample" else set()) | ({"order"} if on_order == "positions" else set())
    )
    bad = [p for p in series.problems if p.severity not in allowed]
    if not bad:
        return
    remedies = []
    if any(p.severity == "error" for p in bad):
        codec = next((p.text for p in bad if "pip install" in p.text), "")
        if codec:
            raise ImportError(f"{path}: {codec}")
        if any(p.name != "one slice" for p in bad):
            remedies.append("get the series again, or remove what does not belong to it")
    else:
        if any(p.severity == "gap" for p in bad):
            remedies.append("find the slices, or interpolate with --on_gaps resample (on_gaps='resample')")
        if any(p.severity == "order" for p in bad):
            remedies.append("get the series again, or believe the positions with on_order='positions'")
    where = f"series {series.number} of {path}" if Path(path).is_dir() else str(path)
    raise ValueError(f"{where} is no regular volume: {': '.join(['; '.join(map(str, bad)), *remedies])}")


def _drop_duplicates(path: str | Path, series: SeriesInfo, stored: dict[int, np.ndarray]) -> list[Problem]:
    """Check that slices at one place are copies of each other."""
    copies: dict[int, list[str]] = {}
    for group in series.arrangement.doubled:
        first = series.frames[group[0]]
        for i in group[1:]:
            other = series.frames[i]
            same = _same_header(first, other) and np.array_equal(stored[group[0]], stored[i])
            if not same:
                raise ValueError(
                    f"{path}: {first.name} ({first.item.name}) and {other.name} ({other.item.name}) lie at one place and differ: "
                    "they are of different acquisitions; separate them"
                )
        copies.setdefault(len(group), []).append(first.name)
    return [
        Problem(
            "doubled slices",
            f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''} "
            f"{'was' if len(names) == 1 else 'were'} there {count} times, bit for bit; one was kept",
        )
        for count, names in copies.items()
    ]


def _same_header(a: Frame, b: Frame) -> bool:
    return (a.position, a.slope, a.intercept, a.padding, a.photometric) == (
        b.position,
        b.slope,
        b.intercept,
        b.padding,
        b.photometric,
    )


def _resample(values: np.ndarray, places: tuple[float, ...]) -> tuple[np.ndarray, Problem]:
    """Interpolate linearly along the last axis to places 0, 1, 2, ..., between the first slice and the last."""
    at = np.asarray(places)
    count = round(places[-1]) + 1
    out = np.empty((*values.shape[:2], count), values.dtype)
    made = 0
    for k in range(count):
        right = int(np.clip(np.searchsorted(at, k), 1, len(at) - 1))
        weight = (k - at[right - 1]) / (at[right] - at[right - 1])
        if weight in (0.0, 1.0):
            out[..., k] = values[..., right - 1 if weight == 0 else right]
            continue
        made += 1
        mixed = values[..., right - 1] * (1 - weight) + values[..., right] * weight
        out[..., k] = np.rint(mixed) if values.dtype.kind in "iu" else mixed
    return out, Problem("resampled", f"{made} of {count} slices were interpolated linearly between measured ones")
