"""``omnivae inspect`` on volumes: shape, geometry, values and problems of each series or file, and a page of thumbnails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnivae.data.volumes.listing import VolumeEntry, series_name
from omnivae.data.volumes.recognising import is_pairs
from omnivae.files import write_atomic
from omnivae.jobs.progress import progress_bar
from omnivae.jobs.volumes import UNITLESS, OnGaps, choose_entries, find_entries, read_entry
from omnivae.jobs.volumes_pairs import PairFacts, inspect_pairs
from omnivae.volume import Volume

#: Volumes up to which "auto" reads all voxels, not headers only.
FULL_UP_TO = 64
#: Spacings that differ by more than this factor make an anisotropic volume, which strides of one size treat badly.
_ANISOTROPIC = 3.0
_SAMPLE = 1_000_000
Verify = Literal["auto", "full", "headers"]


@dataclass(frozen=True)
class VolumeProblem:
    """Something unusual about a volume.

    Attributes:
        name: what kind, such as "missing slices", "uneven spacing", "gantry tilt", "unreadable".
        text: a sentence.
        stops: whether the volume cannot be used because of it.
    """

    name: str
    text: str
    stops: bool = False


@dataclass(frozen=True)
class VolumeFacts:
    """What is known of one volume; nothing that tells of a person beyond the file's own name.

    Attributes:
        name: relative to the path looked at.
        kind: "image", or of DICOM also "derived", "localizer", "capture", "other", "unreadable".
        format: of its files.
        number: of a DICOM series, for ``--series``.
        modality: "CT", "MR", ... where the files say it.
        patient: number of the patient among those of the path, 1 first; 0 where files do not say.
        files: how many hold it.
        shape: channels and the three axes in the order of the file; empty where there is no volume.
        spacing: along the three axes: mm, of a stage micrometres.
        orientation: where the axes point, such as "LPS"; empty but for patients.
        unit: "HU" or "arbitrary".
        dtype: of the stored values.
        channels: their names.
        low: smallest value; ``None`` where voxels were not read.
        high: largest value.
        mean: of all values.
        looks_like: "HU" where the values look like it and the file cannot say so; empty otherwise.
        problems: what is unusual.
    """

    name: str
    kind: str
    format: str
    number: int | None = None
    modality: str = ""
    patient: int = 0
    files: int = 1
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    unit: str = ""
    dtype: str = ""
    channels: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    looks_like: str = ""
    problems: tuple[VolumeProblem, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it can be read as a volume."""
        return bool(self.shape) and not any(problem.stops for problem in self.problems)


@dataclass(frozen=True)
class VolumeInspection:
    """What volumes a path holds.

    Attributes:
        path: as given.
        volumes: in order of their names; what is no image series comes last.
        patients: number of patients that DICOM headers tell apart.
        problems: what would stop a run, a sentence each.
        remarks: what else deserves attention.
        pairs: of a listing of pairs, those, in its order.
        thumbnails: name to PNG bytes of three planes; not part of the JSON.
    """

    path: str
    volumes: list[VolumeFacts]
    patients: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    pairs: list[PairFacts] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def taken(self) -> tuple[str, ...]:
        """Kinds of series that a run takes, or is stopped by."""
        return (*_taken(self.volumes), "unreadable")

    @property
    def usable(self) -> int:
        """Number of volumes that a run can use; those that are set aside do not count."""
        return sum(v.usable and v.kind in self.taken for v in self.volumes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        content = asdict(replace(self, thumbnails={}))
        del content["thumbnails"]
        return content

    def to_json(self, path: str | Path) -> None:
        """Write everything but the pictures to a file."""
        write_atomic(Path(path), (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    def to_html(self, path: str | Path) -> None:
        """Write a self-contained page with a thumbnail of each volume."""
        from omnivae.jobs.volumes_page import inspection_page

        write_atomic(Path(path), inspection_page(self).encode())


def inspect_volumes(
    path: str | Path,
    *,
    series: str | None = None,
    on_gaps: OnGaps = "error",
    verify: Verify = "auto",
    pictures: bool = False,
    progress: bool = True,
) -> VolumeInspection:
    """Look at volumes before anything is computed on them: geometry, values, and what is wrong by name.

    Args:
        path: a file, folder, zip archive of DICOM, or a listing of pairs (:func:`omnivae.data.volumes.read_pairs`).
        series: number of a DICOM series, to look at it alone.
        on_gaps: whether missing slices of a DICOM series are a problem that stops, or are resampled.
        verify: "full" reads all voxels, "headers" none, "auto" all of up to 64 volumes.
        pictures: whether thumbnails are drawn, of the volumes whose voxels are read.
        progress: show progress on a terminal.

    Returns:
        The findings. A volume that cannot be used is no error: it is a finding.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when no volume is there, or not the series asked for.
    """
    sources, aside = find_entries(path)
    sources = choose_entries(sources, aside, series)
    full = verify == "full" or (verify == "auto" and len(sources) <= FULL_UP_TO)
    volumes: list[VolumeFacts] = []
    thumbnails: dict[str, bytes] = {}
    with progress_bar("inspecting", len(sources), progress and len(sources) > 1, items="volumes") as advance:
        for source in sources:
            facts, volume = _look(source, on_gaps=on_gaps, full=full)
            volumes.append(facts)
            if volume is not None and pictures:
                from omnivae.report.volumes import png_of_pixels, thumbnail

                thumbnails[facts.name] = png_of_pixels(thumbnail(volume))
            advance(1)
    if series is None:
        root = Path(path).expanduser()
        volumes += [
            _of_series(one, series_name(one, root.parent if root.is_file() else root), "error") for one in aside
        ]
    patients = len({v.patient for v in volumes if v.patient and v.kind in ("image", "derived")})
    pairs: list[PairFacts] = []
    if is_pairs(Path(path).expanduser()):
        looks = {v.name: (v.looks_like or v.unit) if v.usable else "" for v in volumes}
        pairs = inspect_pairs(path, looks)
        patients = len({pair.patient for pair in pairs})
    problems = _stopping(volumes) + [f"{pair.name}: {pair.problem}" for pair in pairs if pair.problem]
    remarks = _remarks(volumes, patients, full, listed=bool(pairs))
    return VolumeInspection(str(path), volumes, patients, problems, remarks, pairs, thumbnails)


# -- inside


def _look(source: VolumeEntry, *, on_gaps: OnGaps, full: bool) -> tuple[VolumeFacts, Volume | None]:
    """Return the facts of a volume, and the volume where it was read."""
    facts = VolumeFacts(source.name, "image", source.format)
    if source.series is not None:
        facts = _of_series(source.series, source.name, on_gaps)
        if not facts.usable:
            return facts, None
    try:
        if not full:
            return (facts if source.series is not None else _of_header(source, facts)), None
        volume = read_entry(source, on_gaps=on_gaps)
    except (ValueError, OSError, EOFError, ImportError) as error:
        if not full or source.series is not None:
            return _with(facts, _unreadable(error, source)), None
        return _unread(source, facts, error), None
    return _of_volume(volume, facts, source), volume


def _unread(source: VolumeEntry, facts: VolumeFacts, error: Exception) -> VolumeFacts:
    """Return what the header tells of a volume whose voxels cannot be read as one, such as a 4-D file."""
    with suppress(ValueError, OSError, EOFError, ImportError):  # the reason is the reader's, which says more
        facts = _of_header(source, facts)
    return _with(facts, _unreadable(error, source))


def _of_series(series: Any, name: str, on_gaps: OnGaps) -> VolumeFacts:
    allowed = {"note", "gap"} if on_gaps == "resample" else {"note"}
    problems = tuple(VolumeProblem(p.name, p.text, p.severity not in allowed) for p in series.problems)
    affine = series.affine
    geometry = None if affine is None else Volume(np.zeros((1, 1, 1, 1), np.uint8), affine)
    return VolumeFacts(
        name,
        series.kind,
        "dicom",
        number=series.number,
        modality=series.modality,
        patient=series.patient if series.frames else 0,
        files=len(series.files),
        shape=(1, *series.size) if series.frames else (),
        spacing=geometry.spacing if geometry else (),
        orientation=geometry.orientation if geometry else "",
        unit=series.unit if series.frames else "",
        dtype=_stored_type(series),
        problems=problems,
    )


def _stored_type(series: Any) -> str:
    if not series.frames:
        return ""
    first = series.frames[0]
    return ("int" if first.signed else "uint") + ("8" if first.bits <= 8 else "16" if first.bits <= 16 else "32")


def _of_header(source: VolumeEntry, facts: VolumeFacts) -> VolumeFacts:
    header = source.header()
    problems = tuple(_problem(text) for text in header.problems)
    if header.times > 1:
        text = f"{header.times} time points: choose one with --time, or convert each to a file of its own"
        problems = (*problems, VolumeProblem("4-D", text, True))
    return replace(
        facts,
        shape=tuple(header.shape),
        spacing=header.spacing,
        orientation=header.orientation,
        unit=header.unit,
        dtype=header.dtype,
        channels=tuple(header.channels),
        problems=problems,
    )


def _of_volume(volume: Volume, facts: VolumeFacts, source: VolumeEntry) -> VolumeFacts:
    from omnivae.data.volumes import guess_unit

    array = volume.array
    finite = np.isfinite(array) if array.dtype.kind == "f" else None
    # What a reader found supersedes what headers said; what only stops without --on_gaps resample stays.
    said = list(map(_problem, volume.problems))
    known = {problem.name for problem in said}
    problems = [p for p in facts.problems if p.name not in known] + said
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    mean = float(np.mean(array, dtype=np.float64))
    if finite is not None and not finite.all():
        count = int(array.size - np.count_nonzero(finite))
        problems.append(VolumeProblem("not finite", f"{count:,} voxels are NaN or infinite: mend them", True))
        sound = array[finite]
        low, high, mean = (
            (float(v) for v in (sound.min(), sound.max(), sound.mean())) if sound.size else (0.0, 0.0, 0.0)
        )
    elif low == high:
        problems.append(VolumeProblem("constant", f"all voxels are {low:g}: there is nothing to see", False))
    guessed = guess_unit(volume) if source.format in UNITLESS and np.isfinite((low, high)).all() else volume.unit
    if facts.modality == "" and volume.origin.get("modality"):
        facts = replace(facts, modality=str(volume.origin["modality"]))
    if volume.shear > 0.1 and not any("tilt" in p.name for p in problems):
        problems.append(
            VolumeProblem(
                "gantry tilt", f"axes are sheared by {volume.shear:.3g} degrees, as by a tilted gantry; kept as it is"
            )
        )
    ratio = max(volume.spacing) / min(volume.spacing)
    if volume.space != "video" and ratio > _ANISOTROPIC:
        problems.append(
            VolumeProblem(
                "anisotropic", f"spacings differ by a factor of {ratio:.2g}: resample, or use strides of each axis"
            )
        )
    return replace(
        facts,
        shape=tuple(array.shape),
        spacing=volume.spacing,
        orientation=volume.orientation,
        unit=volume.unit,
        dtype=volume.stored.dtype if volume.stored else array.dtype.name,
        channels=tuple(volume.channels),
        low=low,
        high=high,
        mean=mean,
        looks_like="HU" if guessed == "HU" and volume.unit != "HU" else "",
        problems=tuple(dict.fromkeys(problems)),
    )


def _problem(text: str) -> VolumeProblem:
    """Return a reader's sentence with the name that stands before its first colon."""
    name, colon, rest = text.partition(": ")
    return VolumeProblem(name, rest) if colon and len(name.split()) <= 3 else VolumeProblem("note", text)


def _unreadable(error: Exception, source: VolumeEntry) -> VolumeProblem:
    text = " ".join(str(error).split())
    for known in (str(source.path.resolve()), str(source.path), source.path.name):
        text = text.replace(known, source.name)
    return VolumeProblem("unreadable", text.removeprefix(f"{source.name}: "), True)


def _with(facts: VolumeFacts, problem: VolumeProblem) -> VolumeFacts:
    return replace(facts, problems=(*facts.problems, problem))


def _taken(volumes: Sequence[VolumeFacts]) -> tuple[str, ...]:
    """Return the kinds that a run takes: derived series beside original ones are left out, and do not stop it."""
    return ("image",) if any(v.kind == "image" for v in volumes) else ("image", "derived")


def _stopping(volumes: Sequence[VolumeFacts]) -> list[str]:
    bad = [v for v in volumes if v.kind in _taken(volumes) and not v.usable] + [
        v for v in volumes if v.kind == "unreadable"
    ]
    said = []
    for facts in bad:
        reasons = "; ".join(f"{p.name}: {p.text}" for p in facts.problems if p.stops) or "it forms no volume"
        said.append(f"{facts.name}: {reasons}")
    if not any(v.usable for v in volumes):
        said.append("none of what is there is a volume that can be used")
    return said


def _remarks(volumes: Sequence[VolumeFacts], patients: int, full: bool, *, listed: bool) -> list[str]:
    remarks = []
    derived = [v for v in volumes if v.kind == "derived"]
    if derived and any(v.kind == "image" for v in volumes):
        some = ", ".join(v.name for v in derived[:3]) + (", ..." if len(derived) > 3 else "")
        remarks.append(f"{len(derived)} series computed from other images are left out of a run ({some})")
    elif derived:
        remarks.append("all series were computed from other images: they are taken, as there are no original ones")
    usable = [v for v in volumes if v.usable and v.kind in _taken(volumes)]
    if patients > 1 and not listed:
        remarks.append(
            f"{patients} patients lie here: keep all volumes of one patient in one split, and read one of them with its own folder "
            "or --series NUMBER"
        )
    looks = [v.name for v in usable if v.looks_like]
    if looks:
        remarks.append(
            f"{len(looks)} of {len(usable)} volumes look like HU ({', '.join(looks[:3])}), which such files cannot say: "
            "state it with --data.volume.unit HU in training and --unit HU in reconstruct"
        )
    if len({v.looks_like or v.unit for v in usable}) > 1:
        remarks.append("values in HU and in arbitrary units lie together: a model takes one of them")
    if not full:
        remarks.append(
            "only headers were read, so values and pixel data were not checked (--data.verify full reads all)"
        )
    return remarks
