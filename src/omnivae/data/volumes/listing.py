"""The volumes that a path holds, by name, in natural order, without reading a voxel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omnivae.data.volumes import itk, nifti, ome_zarr, ome_zarr_metadata, tiff
from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.recognising import is_dicom, is_pairs
from omnivae.volume import Unit, Volume

if TYPE_CHECKING:
    from omnivae.data.volumes.dicom_series import SeriesInfo

#: Archives are looked into for DICOM.
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".zip")
_NOTHING = "{} holds no volume that is known here; expected NIfTI, NRRD, MHA, TIFF stacks, OME-Zarr or DICOM series"
#: What unique identifiers look like; folders are often named after them.
_UID = re.compile(r"^\d+(\.\d+){4,}$")
#: Ends of the names of volumes, the longest first.
_ENDS = (
    ".ome.zarr", ".ome.tiff", ".ome.tif", ".nii.gz", ".dicom", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".zarr", ".tiff", ".tif",
    ".zip", ".dcm",
)  # fmt: skip


@dataclass(frozen=True)
class VolumeEntry:
    """One volume of a folder, and how to read it.

    Attributes:
        name: unique in the list, relative to its folder, with forward slashes; without the unique identifiers of DICOM.
        path: what :func:`omnivae.data.volumes.read_volume` takes.
        format: "nifti", "nrrd", "mha", "tiff", "ome-zarr" or "dicom".
        position: field of view of a plate.
        series: a DICOM series, its headers already read.
    """

    name: str
    path: Path
    format: str
    position: str | None = None
    series: SeriesInfo | None = field(default=None, repr=False)

    @property
    def problems(self) -> tuple[str, ...]:
        """What the headers that listing had to read say against it: of DICOM series only."""
        return () if self.series is None else tuple(str(problem) for problem in self.series.problems)

    @property
    def readable(self) -> bool:
        """False where those headers already say that it is no volume as it is."""
        return self.series is None or self.series.readable

    def read(
        self,
        *,
        unit: Unit | None = None,
        level: int | None = None,
        time: int | None = None,
        on_gaps: Literal["error", "resample"] = "error",
    ) -> Volume:
        """Read it, as :func:`omnivae.data.volumes.read_volume`.

        Args:
            unit: as there.
            level: as there.
            time: as there.
            on_gaps: as there.
        """
        from omnivae.data.volumes.reading import read_volume

        return read_volume(
            self.path,
            series=self.series,
            position=self.position,
            level=level,
            time=time,
            on_gaps=on_gaps,
            unit=unit,
        )

    def header(self) -> VolumeHeader:
        """Read its header, as :func:`omnivae.data.volumes.volume_header`."""
        from omnivae.data.volumes.reading import volume_header

        return volume_header(self.path, series=self.series, position=self.position)


def list_volumes(path: str | Path) -> list[VolumeEntry]:
    """List the volumes below a path: NIfTI, NRRD, MHA, TIFF stacks, OME-Zarr images, positions of plates, DICOM series.

    A single file is a list of one, a listing of pairs (:func:`omnivae.data.volumes.read_pairs`) that of their members. Folders are
    searched at any depth; stores are not entered. Of DICOM, series of images are listed (derived ones where there are no others),
    readable or not; localizers, captures and what is no image are not.

    Args:
        path: a file (a zip archive of DICOM too) or folder.

    Returns:
        Entries in natural order of their names (slice2 before slice10).

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when it holds no volume.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    found = sort_out(path)[0]
    if not found:
        raise ValueError(_NOTHING.format(path))
    return found


def sort_out(path: str | Path) -> tuple[list[VolumeEntry], list[SeriesInfo]]:
    """List the volumes below a path, and the DICOM series that are none.

    Args:
        path: as :func:`list_volumes`.

    Returns:
        The volumes, and localizers, captures, derived images where there are others, other objects, and what cannot be read: files
        that should be DICOM, and zip archives.

    Raises:
        FileNotFoundError: as there.
        ValueError: when it holds neither.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_file() and is_pairs(path):
        from omnivae.data.volumes.pairs import list_members

        return list_members(path), []
    single = path.is_file() or ome_zarr_metadata.is_ome_zarr(path)
    root = path.parent if single else path
    found: list[VolumeEntry] = []
    aside: list[SeriesInfo] = []
    loose: list[Path] = []
    for item in [path] if single else _walk(path):
        kind = _format(item)
        if kind == "ome-zarr":
            found += _stores(item, root)
        elif kind == "dicom":
            loose.append(item)
        elif kind:
            found.append(VolumeEntry(item.relative_to(root).as_posix(), item, kind))
    if loose:
        entries, aside = _series(path if single else Path(commonpath([file.parent for file in loose])), root)
        found += entries
    if not found and not any(series.frames or series.kind == "unreadable" for series in aside):
        raise ValueError(_NOTHING.format(path))
    return sorted(found, key=lambda entry: natural(entry.name)), aside


def bare(name: str) -> str:
    """Return the name of a volume without the suffix of its format.

    Args:
        name: of a file or store.

    Example:
        >>> bare("a/ct.nii.gz"), bare("Study 1.5")
        ('a/ct', 'Study 1.5')
    """
    return next((name[: -len(end)] for end in _ENDS if name.lower().endswith(end)), name)


def without_identifiers(parts: Sequence[str]) -> str:
    """Return the name that parts of a path make, those left out that are unique identifiers of DICOM.

    Args:
        parts: names of folders, then of a file or series.
    """
    return "/".join(part for part in parts if not _UID.match(part))


def natural(path: Path | str) -> list[tuple[int, int, str]]:
    """Return a sorting key that puts slice2 before slice10.

    Args:
        path: a path or name.

    Example:
        >>> sorted(["s10", "s2", "a"], key=natural)
        ['a', 's2', 's10']
    """
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]


def _format(path: Path) -> str:
    if path.is_dir():
        return "ome-zarr"  # only stores come out of the walk
    if nifti.is_nifti(path):
        return "nifti"
    if path.suffix.lower() in itk.SUFFIXES:
        return itk.SUFFIXES[path.suffix.lower()]
    if path.suffix.lower() in tiff.SUFFIXES:
        return "tiff" if tiff.is_stack(path) else ""
    return "dicom" if path.suffix.lower() in _DICOM_SUFFIXES or is_dicom(path) else ""


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files and zarr stores below a folder; hidden ones are left out, stores not entered."""
    for entry in sorted(folder.iterdir(), key=lambda p: natural(p.name)):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not ome_zarr_metadata.is_ome_zarr(entry):
            yield from _walk(entry)
        else:
            yield entry


def _stores(path: Path, root: Path) -> list[VolumeEntry]:
    name = path.relative_to(root).as_posix()
    about = ome_zarr_metadata.attributes(ome_zarr_metadata.open_group(path))
    if "plate" in about:
        return [
            VolumeEntry(f"{name}/{position}", path, "ome-zarr", position=position)
            for position in ome_zarr.plate_positions(path)
        ]
    if "multiscales" in about:
        return [VolumeEntry(name, path, "ome-zarr")]
    # A collection of images (bioformats2raw), or a well on its own.
    inner = [entry for entry in _walk(path) if entry.is_dir() and "multiscales" in _about(entry)]
    if not inner:
        raise ValueError(f"{path} is a zarr store without multiscales; expected OME-Zarr images: give the path of one")
    return [VolumeEntry(entry.relative_to(root).as_posix(), entry, "ome-zarr") for entry in inner]


def _about(path: Path) -> dict[str, object]:
    """Return the OME attributes of a store; an array, which is no group, has none."""
    about = path / "zarr.json"
    if (path / ".zarray").exists() or (about.is_file() and json.loads(about.read_text()).get("node_type") == "array"):
        return {}
    return ome_zarr_metadata.attributes(ome_zarr_metadata.open_group(path))


def _series(path: Path, root: Path) -> tuple[list[VolumeEntry], list[SeriesInfo]]:
    """Return the DICOM series of a folder at any depth, or of an archive, and those that are no volumes."""
    from omnivae.data.volumes.dicom_series import find_series

    found = find_series(path)
    wanted = [s for s in found if s.kind == "image"] or [s for s in found if s.kind == "derived"]
    entries = [VolumeEntry(series_name(series, root), path, "dicom", series=series) for series in wanted]
    return entries, [series for series in found if series not in wanted]


def series_name(series: SeriesInfo, root: Path) -> str:
    """Return what a DICOM series is called: the folder of its files, without unique identifiers, and its number.

    Args:
        series: of :func:`omnivae.data.volumes.find_series`.
        root: what names are relative to.
    """
    place = Path(commonpath([item.place for item in series.files]))
    return without_identifiers([*place.relative_to(root).parts, f"series-{series.number}"])
