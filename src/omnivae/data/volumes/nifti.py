"""NIfTI files through nibabel: geometry bit for bit, type, slope and intercept kept; nothing that tells of a person."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.values import check_samples, from_stored, need, to_stored
from omnivae.files import replace_atomic
from omnivae.volume import Stored, Unit, Volume

SUFFIXES = (".nii", ".nii.gz")
#: Fields of the header that hold geometry: written again as they were read while the affine is the same.
_GEOMETRY = (
    *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
#: xyzt_units -> millimetres in one unit.
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_LARGEST_AXIS = 32767


def nifti_header(path: Path) -> VolumeHeader:
    """Read what a NIfTI file says about its volume.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Returns:
        The header.

    Raises:
        ValueError: for damaged files, affines that are no geometry, and more axes than three and time.
    """
    header = _header(path)
    affine, problems = _affine(header, path)
    size, times, channels = _axes(header, path)
    check_samples(header.get_data_dtype(), str(path))
    return VolumeHeader(
        (channels, *size),
        affine,
        header.get_data_dtype().name,
        times=times,
        format="nifti",
        source=str(path),
        problems=problems,
    )


def read_nifti(path: Path, *, time: int | None = None, unit: Unit = "arbitrary") -> Volume:
    """Read a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        time: which of several time points; None where there is one.
        unit: of the values, which the file cannot say.

    Returns:
        The volume, axes i, j, k.

    Raises:
        ValueError: as :func:`nifti_header`, for damaged voxels, and for several time points without ``time``.
    """
    nibabel = need("nibabel", "medical")
    about = nifti_header(path)
    index = pick_time(about.times, time, str(path))
    header = _header(path)
    try:
        with _open(path) as file:
            raw = np.asarray(nibabel.arrayproxy.ArrayProxy(file, header, mmap=False).get_unscaled())
    except (OSError, EOFError, zlib.error, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path} is damaged: its voxels cannot be read ({_short(error)}): copy it again") from error
    raw = raw.reshape((*about.size, about.times, about.shape[0]), order="F")[:, :, :, index]
    slope, intercept = _slope(header)
    array = np.ascontiguousarray(np.moveaxis(from_stored(raw, slope=slope, intercept=intercept), -1, 0))
    origin = {
        "affine": about.affine.tolist(),
        "xyzt_units": int(header["xyzt_units"]) & 7,
        "pixdim": [float(p) for p in header["pixdim"][:4]],
        **{name: np.asarray(header[name]).tolist() for name in _GEOMETRY},
    }
    return Volume(
        array,
        about.affine,
        unit=unit,
        stored=Stored(about.dtype, slope, intercept),
        source=str(path),
        format="nifti",
        origin=origin,
        problems=about.problems,
    )


def write_nifti(volume: Volume, path: Path, *, clip: bool = False) -> Path:
    """Write a volume as NIfTI-1 (NIfTI-2 where an axis is longer than 32,767): the file says nothing about a person.

    The affine goes into the sform, which holds sheared axes too, in float32; what was read from NIfTI is written bit for bit.

    Args:
        volume: of a patient or any other space.
        path: ends in ``.nii`` or ``.nii.gz``.
        clip: as :func:`omnivae.data.volumes.values.to_stored`.

    Returns:
        The path.

    Raises:
        ValueError: for values that the stored type cannot hold.
        CannotWrite: when the disk is full and the like.
    """
    nibabel = need("nibabel", "medical")
    raw, stored = to_stored(volume, clip=clip)
    if raw.dtype == np.float16:  # which NIfTI does not know
        raw, stored = raw.astype(np.float32), Stored("float32", stored.slope, stored.intercept)
    # Channels are the fifth axis, after time.
    data = raw[0] if len(raw) == 1 else np.moveaxis(raw, 0, -1)[:, :, :, None]
    kind = nibabel.Nifti1Image if max(data.shape) <= _LARGEST_AXIS else nibabel.Nifti2Image
    image = kind(data, None, dtype=raw.dtype)
    _set_geometry(image.header, volume)
    image.header.set_slope_inter(stored.slope, stored.intercept)

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            if path.name.lower().endswith(".gz"):
                # Neither name nor time in the stream: equal volumes are equal files.
                with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(file)

    replace_atomic(path, write)
    return path


def pick_time(times: int, time: int | None, name: str) -> int:
    """Return which time point to read.

    Args:
        times: how many there are.
        time: what was asked for.
        name: the file, for errors.

    Returns:
        An index.

    Raises:
        ValueError: when there are several and none was chosen, or the chosen one is not there.
    """
    if time is None and times > 1:
        raise ValueError(
            f"{name} holds {times} time points; expected one volume: choose one with time (0 to {times - 1})"
        )
    if time is not None and not 0 <= time < times:
        raise ValueError(f"{name} holds {times} time points; got time {time}; expected 0 to {times - 1}")
    return time or 0


def _header(path: Path) -> Any:
    """Return the raw header: nibabel would mend sizes of 0 and go on."""
    nibabel = need("nibabel", "medical")
    try:
        with _open(path) as file:
            start = file.read(540)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: it cannot be unpacked ({_short(error)}): copy it again") from error
    for kind, size in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        if (len(start) >= size and int.from_bytes(start[:4], "little") == size) or int.from_bytes(
            start[:4], "big"
        ) == size:
            return kind(start[:size], check=False)
    raise ValueError(f"{path} is no NIfTI file, or cut off: its first bytes are not a NIfTI header")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it where it is packed, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked  # type: ignore[misc]


def _axes(header: Any, path: Path) -> tuple[tuple[int, int, int], int, int]:
    """Return sizes of i, j, k, the number of time points and that of channels (the fifth axis)."""
    shape = tuple(int(n) for n in header.get_data_shape())
    if not 2 <= len(shape) <= 7 or min(shape, default=0) < 1:
        raise ValueError(f"{path} holds axes of sizes {list(shape)}; expected three, each of at least one voxel")
    full = (*shape, *([1] * (7 - len(shape))))
    if full[5:] != (1, 1):
        raise ValueError(
            f"{path} holds {len(shape)} axes of sizes {list(shape)}; expected three, time and channels at most"
        )
    i, j, k, times, channels = full[:5]
    return (i, j, k), times, channels


def _slope(header: Any) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # the standard's way to say that samples are values
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _affine(header: Any, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine in mm and what is odd about it; an affine that is no geometry is an error."""
    problems = []
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    remedy = "repair its header, or convert the scan again from DICOM"
    if sform > 0:
        affine, said = header.get_sform(), "sform"
    else:
        if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
            raise ValueError(f"{path} has a spacing of {pixdim.tolist()}; expected three lengths above 0: {remedy}")
        if qform > 0:
            try:
                affine, said = header.get_qform(), "qform"
            except Exception as error:
                raise ValueError(f"{path} has a qform that is no rotation ({_short(error)}): {remedy}") from error
        else:
            affine, said = header.get_base_affine(), "spacing"
            problems.append("neither sform nor qform say where the volume lies: left, right and position are unknown")
    factor = _MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if factor is None:
        raise ValueError(f"{path} has the unit of length {int(header['xyzt_units']) & 7}; expected 0 to 3: {remedy}")
    affine = np.array(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise ValueError(f"{path} has an affine that is not finite ({said} {affine[:3].tolist()}): {remedy}")
    if not affine[:3, :3].any(axis=0).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"{path} has an affine of zeros or without volume ({said} {affine[:3].tolist()}): {remedy}")
    if sform > 0 and qform > 0 and (pixdim > 0).all() and np.isfinite(pixdim).all():
        problems += _qform_problems(header, affine)
    if factor != 1:
        affine[:3] *= factor
        problems.append(f"lengths are stored in {'metres' if factor > 1 else 'micrometres'}; read as mm")
    return affine, tuple(problems)


def _qform_problems(header: Any, affine: np.ndarray) -> list[str]:
    """Return what is to be said about a qform beside a sform, which is the one that is used."""
    from nibabel.spatialimages import HeaderDataError

    try:
        other = header.get_qform()
    except (ValueError, HeaderDataError) as error:
        return [f"the qform is damaged ({error}); the sform is used"]
    if not np.isfinite(other).all():
        return ["the qform is not finite; the sform is used"]
    if np.abs(other - affine).max() > 1e-2 * max(1.0, np.abs(affine[:3, :3]).max()):
        return ["sform and qform disagree; the sform is used"]
    return []


def _set_geometry(header: Any, volume: Volume) -> None:
    origin = volume.origin
    if volume.format == "nifti" and "affine" in origin and np.array_equal(np.asarray(origin["affine"]), volume.affine):
        for name in _GEOMETRY:
            header[name] = origin[name]
        header["pixdim"][:4] = origin["pixdim"]
        header["xyzt_units"] = origin["xyzt_units"]
        return
    # 1: coordinates of the scanner. Scaling of a spatial transform in another space has no code of its own.
    code = max(int(origin.get("sform_code", 1)), 1)
    header.set_sform(volume.affine, code=code)
    header.set_zooms((*volume.spacing, *([1.0] * (len(header.get_data_shape()) - 3))))
    if volume.shear < 1e-3:
        header.set_qform(volume.affine, code=code, strip_shears=True)
    header.set_xyzt_units("micron" if volume.space == "stage" else "mm")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def is_nifti(path: Path) -> bool:
    """Say whether a file's name is that of NIfTI.

    Args:
        path: of a file.
    """
    return path.name.lower().endswith(SUFFIXES)
