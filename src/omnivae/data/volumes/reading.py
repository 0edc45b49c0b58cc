"""Volumes by path: one function to read any format, one for its header, one to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnivae.data.volumes import itk, nifti, ome_zarr, tiff
from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.ome_zarr_metadata import is_ome_zarr
from omnivae.data.volumes.ome_zarr_writing import write_ome_zarr
from omnivae.data.volumes.recognising import is_dicom
from omnivae.data.volumes.values import check_hu
from omnivae.volume import Unit, Volume

if TYPE_CHECKING:
    from omnivae.data.volumes.dicom_series import SeriesInfo

OnGaps = Literal["error", "resample"]
_WRITABLE = ".nii, .nii.gz, .nrrd, .mha, .ome.zarr or .zarr"


def read_volume(
    path: str | Path,
    *,
    series: int | str | SeriesInfo | None = None,
    level: int | None = None,
    position: str | None = None,
    channels: Sequence[str | int] | None = None,
    time: int | None = None,
    axes: str | None = None,
    on_gaps: OnGaps = "error",
    unit: Unit | None = None,
) -> Volume:
    """Read a volume of any known format with its geometry.

    Args:
        path: a NIfTI, NRRD, MHA or TIFF file, a folder or zip archive of DICOM slices, an OME-Zarr image or plate.
        series: of several DICOM series the one to read: its number, or an entry of ``find_series``.
        level: resolution level of an OME-Zarr image, 0 the finest (default).
        position: field of view of a plate, such as "A/1/0".
        channels: names or numbers of an OME-Zarr image's channels, in the order wanted.
        time: which of several time points.
        axes: of a TIFF stack that does not name them, such as "ZCYX".
        on_gaps: "error" refuses a DICOM series with missing slices; "resample" fills small gaps and says so.
        unit: of the values, where the file cannot say it: "HU" asks for Hounsfield units, and refuses what cannot be such
            (:func:`omnivae.data.volumes.check_hu`). Nothing is guessed: without it values are "arbitrary", except DICOM's, which
            says its unit.

    Returns:
        The volume.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for unknown or damaged files, geometry that is none, and options that the format does not have.

    Example:
        >>> import tempfile
        >>> from omnivae.data.volumes import ct_phantom
        >>> phantom = ct_phantom(0, size=(32, 24, 16), spacing=(12.0, 12.0, 20.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_volume(phantom.volume, f"{folder}/ct.nii.gz")
        ...     again = read_volume(path, unit="HU")
        >>> again.size, again.spacing, again.orientation
        ((32, 24, 16), (12.0, 12.0, 20.0), 'LPS')
    """
    path = Path(path)
    kind = _kind(path)
    given = {"series": series, "level": level, "position": position, "channels": channels, "time": time, "axes": axes}
    kind.check_options(path, [name for name, value in given.items() if value is not None])
    if unit not in (None, "HU", "arbitrary"):
        raise ValueError(f"got the unit {unit!r}; expected 'HU' or 'arbitrary'")
    volume = kind.read(path, {**given, "on_gaps": on_gaps})
    if unit is not None and unit != volume.unit:
        if volume.unit == "HU":
            raise ValueError(f"{path} is in Hounsfield units; got the unit {unit!r}: leave it out")
        if volume.format == "dicom":
            raise ValueError(
                f"{path} is DICOM that is not in Hounsfield units (no CT, or another rescale type); got unit 'HU'"
            )
        volume = volume.with_array(volume.array, unit=unit)
    if unit == "HU":
        check_hu(volume)
    return volume


def volume_header(
    path: str | Path,
    *,
    series: int | str | SeriesInfo | None = None,
    level: int | None = None,
    position: str | None = None,
    axes: str | None = None,
) -> VolumeHeader:
    """Read shape, geometry and type of a volume, without its voxels.

    Args:
        path: as :func:`read_volume`.
        series: as there.
        level: as there.
        position: as there.
        axes: as there.

    Returns:
        The header.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: as :func:`read_volume`.
    """
    path = Path(path)
    kind = _kind(path)
    given = {"series": series, "level": level, "position": position, "axes": axes}
    kind.check_options(path, [name for name, value in given.items() if value is not None])
    return kind.header(path, given)


def write_volume(volume: Volume, path: str | Path, *, clip: bool = False) -> Path:
    """Write a volume in the format that a path's suffix names, with its geometry and stored type.

    What was read from a file and is written in the same format comes back bit for bit: values, affine, spacing, orientation, type.
    Nothing that tells of a person is written, wherever the volume came from.

    Args:
        volume: any; a label mask too.
        path: ends in ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha``, ``.ome.zarr`` or ``.zarr``.
        clip: whether values beyond the stored integer type become its ends; otherwise they are an error.

    Returns:
        The path.

    Raises:
        ValueError: for unknown suffixes, and what the format cannot hold (sheared axes in NRRD and MHA).
        CannotWrite: when the disk is full and the like.
    """
    path = Path(path)
    if nifti.is_nifti(path):
        return nifti.write_nifti(volume, path, clip=clip)
    if path.suffix.lower() in itk.WRITABLE:
        return itk.write_itk(volume, path, clip=clip)
    if path.suffix.lower() == ".zarr":
        return write_ome_zarr(volume, path, clip=clip)
    raise ValueError(f"got the name {path.name}; expected one that ends in {_WRITABLE}")


@dataclass(frozen=True)
class _Kind:
    """What can be done with files of one format."""

    name: str
    read: Callable[[Path, dict[str, Any]], Volume]
    header: Callable[[Path, dict[str, Any]], VolumeHeader]
    options: tuple[str, ...]

    def check_options(self, path: Path, given: Sequence[str]) -> None:
        odd = [name for name in given if name not in self.options]
        if odd:
            raise ValueError(
                f"got {', '.join(odd)} for {path}, which is {self.name} and has the options {', '.join(self.options)} only: leave "
                "that out"
            )


def _kind(path: Path) -> _Kind:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        return _OME_ZARR if is_ome_zarr(path) or path.suffix.lower() == ".zarr" else _DICOM
    if nifti.is_nifti(path):
        return _NIFTI
    if path.suffix.lower() in itk.SUFFIXES:
        return _ITK
    if path.suffix.lower() in tiff.SUFFIXES:
        return _TIFF
    if path.suffix.lower() in (".dcm", ".dicom", ".ima", ".zip") or is_dicom(path):
        return _DICOM
    raise ValueError(
        f"{path} is no volume that is known here; expected NIfTI (.nii, .nii.gz), NRRD, MHA, TIFF, DICOM or OME-Zarr"
    )


def _read_dicom(path: Path, options: dict[str, Any]) -> Volume:
    from omnivae.data.volumes.dicom import read_dicom

    return read_dicom(path, series=options["series"], on_gaps=options["on_gaps"])


def _dicom_header(path: Path, options: dict[str, Any]) -> VolumeHeader:
    from omnivae.data.volumes.dicom import dicom_header

    return dicom_header(path, series=options["series"])


def _image(path: Path, options: dict[str, Any]) -> ome_zarr.OmeZarrImage:
    return ome_zarr.OmeZarrImage(path, level=options["level"] or 0, position=options["position"])


_NIFTI = _Kind(
    "NIfTI", lambda path, o: nifti.read_nifti(path, time=o["time"]), lambda path, _: nifti.nifti_header(path), ("time",)
)
_ITK = _Kind(
    "NRRD or MHA", lambda path, o: itk.read_itk(path, time=o["time"]), lambda path, _: itk.itk_header(path), ("time",)
)
_TIFF = _Kind(
    "TIFF",
    lambda path, o: tiff.read_tiff_stack(path, time=o["time"], axes=o["axes"]),
    lambda path, o: tiff.tiff_header(path, axes=o["axes"]),
    ("time", "axes"),
)
_OME_ZARR = _Kind(
    "OME-Zarr",
    lambda path, o: _image(path, o).volume(channels=o["channels"], time=o["time"]),
    lambda path, o: _image(path, o).header(),
    ("level", "position", "channels", "time"),
)
_DICOM = _Kind("DICOM", _read_dicom, _dicom_header, ("series",))
