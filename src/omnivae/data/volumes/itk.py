"""NRRD and MetaImage (MHA, MHD) files through SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.nifti import pick_time
from omnivae.data.volumes.values import need, to_stored
from omnivae.files import replace_atomic
from omnivae.volume import Stored, Unit, Volume

#: Suffix -> format. ITK's world is left, posterior, superior; ours right, anterior, superior.
SUFFIXES = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha", ".mhd": "mha"}
WRITABLE = (".nrrd", ".mha")
_TO_RAS = np.array([-1.0, -1.0, 1.0])
_TYPES = {
    "8-bit unsigned integer": "uint8",
    "8-bit signed integer": "int8",
    "16-bit unsigned integer": "uint16",
    "16-bit signed integer": "int16",
    "32-bit unsigned integer": "uint32",
    "32-bit signed integer": "int32",
    "64-bit unsigned integer": "uint64",
    "64-bit signed integer": "int64",
    "32-bit float": "float32",
    "64-bit float": "float64",
}


def itk_header(path: Path) -> VolumeHeader:
    """Read what an NRRD or MetaImage file says about its volume.

    Args:
        path: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Returns:
        The header.

    Raises:
        ValueError: for damaged files, colours, and geometry that is none.
    """
    return _header(_reader(path), path)


def read_itk(path: Path, *, time: int | None = None, unit: Unit = "arbitrary") -> Volume:
    """Read an NRRD or MetaImage file.

    Args:
        path: of the file.
        time: which of several time points.
        unit: of the values, which the file cannot say.

    Returns:
        The volume, axes i, j, k.

    Raises:
        ValueError: as :func:`itk_header`, and for several time points without ``time``.
    """
    sitk = need("SimpleITK", "medical")
    reader = _reader(path)
    about = _header(reader, path)
    index = pick_time(about.times, time, str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged: its voxels cannot be read ({_reason(error)}): copy it again") from error
    raw = sitk.GetArrayFromImage(image)  # [(t,) k, j, i (, c)]
    if image.GetNumberOfComponentsPerPixel() == 1:
        raw = raw[..., None]
    raw = raw.reshape(-1, *about.size[::-1], about.shape[0])[index]
    dimension = image.GetDimension()
    geometry = {
        "spacing": image.GetSpacing()[:3],
        "origin": image.GetOrigin()[:3],
        "direction": np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3].ravel().tolist(),
    }
    return Volume(
        np.ascontiguousarray(raw.transpose(3, 2, 1, 0)),
        about.affine,
        unit=unit,
        stored=Stored(about.dtype),
        source=str(path),
        format=about.format,
        origin={"affine": about.affine.tolist(), "itk": geometry} if dimension >= 3 else {},
        problems=about.problems,
    )


def write_itk(volume: Volume, path: Path, *, clip: bool = False) -> Path:
    """Write a volume as NRRD or MHA, packed without loss: no fields but geometry and type.

    Args:
        volume: whose axes are at right angles.
        path: ends in ``.nrrd`` or ``.mha``.
        clip: as :func:`omnivae.data.volumes.values.to_stored`.

    Returns:
        The path.

    Raises:
        ValueError: for sheared axes, which these formats' readers refuse, and values beyond the stored type.
    """
    sitk = need("SimpleITK", "medical")
    if volume.shear > 1e-3:
        raise ValueError(
            f"got axes sheared by {volume.shear:.3g} degrees; {path.suffix} holds axes at right angles only: write .nii.gz, "
            "which keeps the shear, or resample with Resample(deshear=True)"
        )
    raw, stored = to_stored(volume, clip=clip)
    if stored.slope != 1 or stored.intercept != 0:  # which these formats cannot say: write values
        raw = volume.array
    if raw.dtype == np.float16:
        raw = raw.astype(np.float32)
    data = raw[0].transpose(2, 1, 0) if len(raw) == 1 else raw.transpose(3, 2, 1, 0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data), isVector=len(raw) > 1)
    origin = volume.origin.get("itk")
    if origin and np.array_equal(np.asarray(volume.origin["affine"]), volume.affine):
        spacing, start, direction = origin["spacing"], origin["origin"], origin["direction"]
    else:
        spacing, start = volume.spacing, (_TO_RAS * volume.affine[:3, 3]).tolist()
        direction = (_TO_RAS[:, None] * volume.affine[:3, :3] / np.asarray(spacing)).ravel().tolist()
    image.SetSpacing(spacing)
    image.SetOrigin(start)
    image.SetDirection(direction)

    def write(beside: Path) -> None:
        # The writer picks the format by the suffix, which a temporary name has not.
        named = beside.with_name(beside.name + path.suffix.lower())
        try:
            sitk.WriteImage(image, str(named), useCompression=True)
            if path.suffix.lower() == ".nrrd":
                _set_directions(named, volume.affine)
            named.replace(beside)
        except RuntimeError as error:
            raise OSError(_reason(error)) from error
        finally:
            named.unlink(missing_ok=True)

    replace_atomic(path, write)
    return path


def _reader(path: Path) -> Any:
    sitk = need("SimpleITK", "medical")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if SUFFIXES[path.suffix.lower()] == "nrrd" else "MetaImageIO")
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would print to the terminal
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as {SUFFIXES[path.suffix.lower()]}: {_reason(error)}") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    return reader


def _header(reader: Any, path: Path) -> VolumeHeader:
    sitk = need("SimpleITK", "medical")
    shape, dimension = reader.GetSize(), reader.GetDimension()
    if dimension not in (2, 3, 4):
        raise ValueError(f"{path} holds {dimension} axes of sizes {list(shape)}; expected three, and time at most")
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID()).removeprefix("vector of ")
    if kind not in _TYPES:
        raise ValueError(f"{path} holds samples of type {kind}; expected integers or floats, one or several a voxel")
    spacing = np.ones(3)
    origin, direction = np.zeros(3), np.eye(3)
    n = min(dimension, 3)
    spacing[:n], origin[:n] = reader.GetSpacing()[:n], reader.GetOrigin()[:n]
    direction[:n, :n] = np.reshape(reader.GetDirection(), (dimension, dimension))[:n, :n]
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(
            f"{path} has a spacing of {spacing.tolist()}; expected three lengths above 0: repair its header"
        )
    affine = np.eye(4)
    affine[:3, :3] = _TO_RAS[:, None] * direction * spacing
    affine[:3, 3] = _TO_RAS * origin
    if SUFFIXES[path.suffix.lower()] == "nrrd":
        affine = _exact(affine, path)
    i, j, k = (*shape[:3], 1)[:3]
    channels = reader.GetNumberOfComponents()
    problems = ("one slice: its thickness is unknown and read as 1 mm",) if dimension == 2 else ()
    return VolumeHeader(
        (channels, i, j, k),
        affine,
        _TYPES[kind],
        times=shape[3] if dimension == 4 else 1,
        format=SUFFIXES[path.suffix.lower()],
        source=str(path),
        problems=problems,
    )


def _exact(affine: np.ndarray, path: Path) -> np.ndarray:
    """Return an NRRD file's affine as its header writes it: ITK splits the steps into lengths and directions, and rounds."""
    steps = [[float(n) for n in step.split(b",")] for step in re.findall(rb"\(([^()]*)\)", _directions(path))]
    if len(steps) == 3 and all(len(step) == 3 for step in steps):
        for signs in (_TO_RAS, np.ones(3)):  # spaces that are LPS, and RAS
            written = affine.copy()
            written[:3, :3] = signs[:, None] * np.array(steps).T
            if np.allclose(written, affine, rtol=1e-9, atol=1e-12):
                return written
    return affine


def _set_directions(path: Path, affine: np.ndarray) -> None:
    """Write the steps of an affine into an NRRD header to the last bit."""
    steps = (_TO_RAS[:, None] * affine[:3, :3]).T
    text = " ".join("(" + ",".join(repr(float(n)) for n in step) + ")" for step in steps).encode()
    old, content = _directions(path), path.read_bytes()
    new = re.sub(rb"\([^()]*\)(?: \([^()]*\)){2}", text, old)
    path.write_bytes(content.replace(old, new, 1))


def _directions(path: Path) -> bytes:
    """Return the line of an NRRD header that holds the steps along its axes; empty where there is none."""
    with path.open("rb") as file:
        head = file.read(1 << 16).split(b"\n\n", 1)[0]
    found = re.search(rb"^space directions:[^\n]*", head, re.MULTILINE)
    return found[0] if found else b""


def _reason(error: Exception) -> str:
    """Return the last line of what ITK said, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
