"""Volumes by path: one function to read any format, one to list a folder's, one to write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnivae.data.volumes import itk, nifti
from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.values import check_hu
from omnivae.volume import Unit, Volume

OnGaps = Literal["error", "resample"]


def read_volume(
    path: str | Path,
    *,
    series: str | None = None,
    level: int | None = None,
    position: str | None = None,
    time: int | None = None,
    on_gaps: OnGaps = "error",
    unit: Unit | None = None,
) -> Volume:
    """Read a volume of any known format with its geometry.

    Args:
        path: a NIfTI, NRRD, MHA or TIFF file, a folder of DICOM slices, an OME-Zarr image or plate.
        series: of several DICOM series in a folder, the one to read: its number or name in :func:`list_volumes`.
        level: resolution level of an OME-Zarr image, 0 the finest (default).
        position: field of view of a plate, such as "A/1/0".
        time: which of several time points.
        on_gaps: what to do about missing slices of a DICOM series.
        unit: of the values, where the file cannot say it: "HU" holds for CT, and is checked
            (:func:`omnivae.data.volumes.check_hu`); without it such values are "arbitrary". DICOM says it itself.

    Returns:
        The volume.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for unknown or damaged files, geometry that is none, and options that the format does not have.
    """
    path = Path(path)
    kind = _kind(path)
    given = {"series": series, "level": level, "position": position, "time": time}
    kind.check_options(path, {name for name, value in given.items() if value is not None})
    volume = kind.read(path, {**given, "on_gaps": on_gaps, "unit": unit})
    if unit == "HU":
        check_hu(volume)
    return volume


def volume_header(
    path: str | Path, *, series: str | None = None, level: int | None = None, position: str | None = None
) -> VolumeHeader:
    """Read shape, geometry and type of a volume, without its voxels.

    Args:
        path: as :func:`read_volume`.
        series: as there.
        level: as there.
        position: as there.

    Returns:
        The header.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: as :func:`read_volume`.
    """
    path = Path(path)
    kind = _kind(path)
    given = {"series": series, "level": level, "position": position}
    kind.check_options(path, {name for name, value in given.items() if value is not None})
    return kind.header(path, given)


def write_volume(volume: Volume, path: str | Path, *, clip: bool = False) -> Path:
    """Write a volume in the format that a path's suffix names, with its geometry and stored type.

    Args:
        volume: any; a label mask too.
        path: ends in ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha``, ``.ome.zarr`` or ``.zarr``.
        clip: whether values beyond the stored integer type become its ends; otherwise they are an error.

    Returns:
        The path.

    Raises:
        ValueError: for unknown suffixes, and what the format cannot hold.
        CannotWrite: when the disk is full and the like.
    """
    path = Path(path)
    if nifti.is_nifti(path):
        return nifti.write_nifti(volume, path, clip=clip)
    if path.suffix.lower() in itk.WRITABLE:
        return itk.write_itk(volume, path, clip=clip)
    raise ValueError(f"got {path.name}; expected a name that ends in .nii, .nii.gz, .nrrd, .mha or .ome.zarr")


@dataclass(frozen=True)
class _Kind:
    """What can be done with files of one format."""

    name: str
    read: Callable[[Path, dict[str, Any]], Volume]
    header: Callable[[Path, dict[str, Any]], VolumeHeader]
    options: frozenset[str] = frozenset()

    def check_options(self, path: Path, given: set[str]) -> None:
        odd = sorted(given - self.options)
        if odd:
            has = f"it has {', '.join(sorted(self.options))}" if self.options else "it has none to choose"
            raise ValueError(f"got {', '.join(odd)} for {path}, which is {self.name}; {has}: leave that out")


def _kind(path: Path) -> _Kind:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if nifti.is_nifti(path):
        return _NIFTI
    if path.suffix.lower() in itk.SUFFIXES:
        return _ITK
    raise ValueError(f"{path} is no volume that is known here; expected NIfTI (.nii, .nii.gz), NRRD or MHA")


_NIFTI = _Kind(
    "NIfTI",
    lambda path, o: nifti.read_nifti(path, time=o["time"], unit=o["unit"] or "arbitrary"),
    lambda path, o: nifti.nifti_header(path),
    frozenset({"time"}),
)
_ITK = _Kind(
    "NRRD or MHA",
    lambda path, o: itk.read_itk(path, time=o["time"], unit=o["unit"] or "arbitrary"),
    lambda path, o: itk.itk_header(path),
    frozenset({"time"}),
)


def natural(path: Path | str) -> list[tuple[int, int, str]]:
    """Return a sorting key that puts slice2 before slice10.

    Args:
        path: a path or name.

    Example:
        >>> sorted(["s10", "s2", "a"], key=natural)
        ['a', 's2', 's10']
    """
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts]


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir(), key=lambda p: natural(p.name)):
        if not entry.name.startswith("."):
            yield entry
