"""Volumes below a path for the commands: what is there, which DICOM series were set aside, and names of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omnivae.data.volumes.listing import VolumeEntry, bare, sort_out
from omnivae.volume import Unit, Volume

OnGaps = Literal["error", "resample"]
#: Formats that state no unit: whoever reads them has to.
UNITLESS = ("nifti", "nrrd", "mha", "tiff")


def find_entries(path: str | Path) -> tuple[list[VolumeEntry], list[Any]]:
    """List the volumes at a path, and the DICOM series that are none (localizers, captures, unreadable files).

    Args:
        path: a file, a folder (any depth) or a zip archive of DICOM files.

    Returns:
        The volumes in natural order of their names, and the other series.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when there is neither.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    return sort_out(root)


def choose_entries(entries: Sequence[VolumeEntry], aside: Sequence[Any], series: str | None) -> list[VolumeEntry]:
    """Return the volume of a DICOM series by its number, or all.

    Args:
        entries: what was found.
        aside: DICOM series that were set aside; they may be chosen, too.
        series: number of a series as ``omnivae inspect`` lists it; ``None`` for all volumes.

    Raises:
        ValueError: when there is no such series.
    """
    if series is None:
        return list(entries)
    known = {e.series.number: e for e in entries if e.series is not None}
    others = {s.number: s for s in aside if s.frames}
    for number, entry in known.items():
        if str(number) == series.strip():
            return [entry]
    for number, other in others.items():
        if str(number) == series.strip():
            return [VolumeEntry(f"series-{number}", other.files[0].path.parent, "dicom", series=other)]
    listed = "; ".join(str(s) for s in [*(e.series for e in known.values()), *others.values()]) or "no DICOM series"
    raise ValueError(f"there is no series {series}; found {listed}: give the number of one of them")


def read_entry(
    entry: VolumeEntry, *, unit: Unit | None = None, time: int | None = None, on_gaps: OnGaps = "error"
) -> Volume:
    """Read a volume.

    Args:
        entry: of the list.
        unit: of the values, for formats that state none; "HU" is checked.
        time: which of several time points.
        on_gaps: what to do about missing slices of a DICOM series.

    Returns:
        The volume.

    Raises:
        ValueError: for damaged files, geometry that is none, and values that cannot be of the unit.
    """
    return entry.read(unit=unit if entry.format in UNITLESS else None, time=time, on_gaps=on_gaps)


def bare_name(entry: VolumeEntry) -> str:
    """Return the name of a volume without the suffix of its format.

    Args:
        entry: of the list.
    """
    return bare(entry.name)
