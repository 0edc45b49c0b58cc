"""Volumes to DICOM: a new derived series that tells of nobody, in the volume's own geometry."""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.volumes.dicom import choose_series
from omnivae.data.volumes.dicom_files import Progress, quietly
from omnivae.data.volumes.dicom_series import SeriesInfo
from omnivae.data.volumes.values import need
from omnivae.files import CannotWrite
from omnivae.volume import Volume

_log = logging.getLogger(__name__)

_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
#: What a derived series takes over from its source: numbers and codes of the technique. Every other element, private ones first, is
#: left behind, so that nothing has to be found in order to be removed.
_TECHNIQUE = (
    "BodyPartExamined", "PatientPosition", "KVP", "SliceThickness", "MagneticFieldStrength", "EchoTime", "RepetitionTime",
    "FlipAngle", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "WindowCenter", "WindowWidth",
)  # fmt: skip
#: What it takes over too when identifiers are kept: the series then belongs to the same patient, study and frame of reference.
_IDENTIFIERS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID",
    "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)  # fmt: skip
#: Elements that a reader may expect, empty: type 2 of the standard.
_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer", "SliceThickness", "PatientPosition",
)  # fmt: skip


def write_dicom(
    volume: Volume,
    folder: str | Path,
    *,
    like: SeriesInfo | str | Path | None = None,
    keep_identifiers: bool = False,
    description: str = "omnivae",
    modality: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a volume as a DICOM series of its own: one file a slice, 16 bits, uncompressed.

    The series is new (new UIDs, ImageType DERIVED\\SECONDARY) and built from nothing: names, IDs, dates and private elements of the
    source cannot be in it. :func:`read_dicom` gives back the same affine and values: integers exactly, floats exactly where they
    are ``slope * integer + intercept`` of the source and otherwise rounded to a stated step.

    Args:
        volume: of one channel, in patient space; its first two axes at a right angle, the third may be sheared by a tilt. Slices
            are written in its order; readers sort them along the normal of the slices, so that a left-handed volume comes back
            flipped along its third axis, in the same place of the world.
        folder: new or empty; it appears when all files are written.
        like: the source series, or a folder that holds it alone: its technique (KVP, window, ...) is taken over.
        keep_identifiers: whether patient, study and frame of reference of ``like`` are kept, and its images referred to.
        description: SeriesDescription, at most 64 characters.
        modality: "CT", "MR" or "PT"; by default the source's, CT for Hounsfield units and MR for the rest.
        progress: is called with the number of slices written and of all slices.

    Returns:
        The files, in the order of slices.

    Raises:
        ValueError: for volumes that DICOM cannot hold, a folder that is not empty, and identifiers to keep without a source.
        CannotWrite: when the disk is full and the like.
        ImportError: when pydicom is missing.
    """
    need("pydicom", "medical")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not empty: a series needs a folder of its own, give a new one")
    if keep_identifiers and like is None:
        raise ValueError("got keep_identifiers=True without a source series: give like, the series that has them")
    if len(description) > 64:
        raise ValueError(f"got a description of {len(description)} characters; DICOM allows 64: shorten it")
    modality = modality or str(volume.origin.get("modality") or ("CT" if volume.unit == "HU" else "MR"))
    if modality not in _CLASSES:
        raise ValueError(
            f"got a volume of modality {modality}; expected one of {', '.join(_CLASSES)}: choose with modality="
        )
    plane, positions = _geometry(volume)
    stored = _to_stored(volume)
    source = None if like is None else like if isinstance(like, SeriesInfo) else choose_series(like)
    with quietly():
        template = _template(volume, modality, description, source, stored, keep=keep_identifiers)
    references = _references(source, len(positions)) if source is not None and keep_identifiers else None
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    names = [f"slice-{k + 1:0{max(4, len(str(len(positions))))}d}.dcm" for k in range(len(positions))]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        for k, (name, position) in enumerate(zip(names, positions, strict=True)):
            content = _file(template, plane, position, k, stored, references[k] if references else None)
            with (beside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if progress is not None:
                progress(k + 1, len(positions))
        if folder.exists():
            folder.rmdir()
        beside.replace(folder)
    except OSError as error:
        raise CannotWrite(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [folder / name for name in names]


@dataclass(frozen=True)
class _Pixels:
    """Stored samples of all slices, with slope and intercept of each as DICOM writes them."""

    array: np.ndarray  # [columns, rows, slices]
    slopes: tuple[str, ...]
    intercepts: tuple[str, ...]
    error: float = 0.0


def _geometry(volume: Volume) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Return the elements of the plane, and the position of each slice."""
    if volume.space != "patient":
        raise ValueError(f"got a volume in {volume.space} space; DICOM series are of patients: write OME-Zarr or TIFF")
    if len(volume.array) != 1:
        raise ValueError(f"got {len(volume.array)} channels; expected 1: write a series for each")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    columns = affine[:3, :3].T
    lengths = np.array(volume.spacing)
    right, down = columns[0] / lengths[0], columns[1] / lengths[1]
    if abs(right @ down) > 1e-4:
        raise ValueError(
            "got a volume whose first two axes are not at a right angle; DICOM slices are rectangles: resample it"
        )
    plane = {
        "ImageOrientationPatient": [_ds(v) for v in (*right, *down)],
        "PixelSpacing": [_ds(lengths[1]), _ds(lengths[0])],  # between rows first
        "SpacingBetweenSlices": [_ds(abs(float(columns[2] @ np.cross(right, down))))],
    }
    positions = [affine[:3, 3] + k * columns[2] for k in range(volume.size[2])]
    return plane, [[_ds(v) for v in position] for position in positions]


def _ds(value: float) -> str:
    """Write a number as a decimal string of at most 16 characters, as exactly as these allow."""
    from pydicom.valuerep import format_number_as_ds

    value = float(value)
    return "0" if abs(value) < 1e-13 else str(format_number_as_ds(value))


def _to_stored(volume: Volume) -> _Pixels:
    array = volume.array[0]
    if array.dtype.kind not in "iufb" or not np.isfinite(array).all():
        raise ValueError(
            f"got values of type {array.dtype}, or some that are not finite; DICOM holds finite numbers only"
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    for slopes, intercepts, dtype in _candidates(volume):
        found = _exactly(array, slopes, intercepts, dtype)
        if found is not None:
            return found
    return _rounded(array)


def _candidates(volume: Volume) -> Iterator[tuple[Sequence[float], Sequence[float], str]]:
    """Yield slopes, intercepts and types that may hold the values exactly and read back as the same type."""
    array, stored, slices = volume.array, volume.stored, volume.size[2]
    own = volume.origin.get("slopes"), volume.origin.get("intercepts")
    if stored is not None and stored.dtype in ("int16", "uint16", "uint8", "int8"):
        dtype = {"uint8": "uint16", "int8": "int16"}.get(stored.dtype, stored.dtype)
        if own[0] and own[1] and len(own[0]) == len(own[1]) == slices:
            yield own[0], own[1], dtype
        whole = stored.slope == int(stored.slope) and stored.intercept == int(stored.intercept)
        plain = stored.slope == 1 and stored.intercept == 0
        if whole == (array.dtype.kind != "f") and (not plain or dtype == array.dtype.name):
            yield (stored.slope,) * slices, (stored.intercept,) * slices, dtype
    if array.dtype.kind == "f":
        return
    low, high = int(array.min()), int(array.max())
    unsigned = array.dtype.kind != "i"
    for name in ("uint16", "int16") if unsigned else ("int16", "uint16"):
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            yield (1.0,) * slices, (0.0,) * slices, name
    if high - low <= 65535:
        yield (1.0,) * slices, (float(low),) * slices, "uint16"


def _exactly(array: np.ndarray, slopes: Sequence[float], intercepts: Sequence[float], dtype: str) -> _Pixels | None:
    """Return the stored samples if reading them gives every value back, bit for bit."""
    texts = [_ds(s) for s in slopes], [_ds(b) for b in intercepts]
    factors, summands = (np.array([float(t) for t in part]) for part in texts)
    limits, out = np.iinfo(dtype), np.empty(array.shape, dtype)
    for k in range(array.shape[-1]):
        plane = array[..., k].astype(np.float64)
        raw = np.rint((plane - summands[k]) / factors[k])
        if raw.min() < limits.min or raw.max() > limits.max:
            return None
        again = raw * factors[k] + summands[k]
        if not np.array_equal(again.astype(array.dtype) if array.dtype.kind == "f" else again, array[..., k]):
            return None
        out[..., k] = raw
    return _Pixels(out, tuple(texts[0]), tuple(texts[1]))


def _rounded(array: np.ndarray) -> _Pixels:
    """Round values to 65,536 steps of a power of two, so that whole Hounsfield units stay whole."""
    low, high = float(array.min()), float(array.max())
    exponent = int(np.ceil(np.log2((high - low) / 65535))) if high > low else 0
    while True:
        slope = float(_ds(2.0**exponent))
        intercept = float(_ds(np.floor(low / slope) * slope))
        if np.rint((high - intercept) / slope) <= 65535:
            break
        exponent += 1
    raw = np.empty(array.shape, np.uint16)
    error = 0.0
    for k in range(array.shape[-1]):
        plane = array[..., k].astype(np.float64)
        raw[..., k] = np.clip(np.rint((plane - intercept) / slope), 0, 65535)
        error = max(error, float(np.abs(raw[..., k] * slope + intercept - plane).max()))
    if error:
        _log.warning("values were rounded to 16 bits for DICOM: steps of %g, largest error %.3g", slope, error)
    slices = array.shape[-1]
    return _Pixels(raw, (_ds(slope),) * slices, (_ds(intercept),) * slices, error)


def _template(
    volume: Volume, modality: str, description: str, source: SeriesInfo | None, stored: _Pixels, *, keep: bool
) -> Any:
    """Return the elements that all slices share."""
    import pydicom
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(_CLASSES[modality])
    for name in _EMPTY:
        setattr(data, name, "")
    data.Modality = modality
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (
        generate_uid(prefix=None) for _ in range(3)
    )
    data.SeriesNumber = 1
    data.SeriesDescription = description
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"]
    rounded = f"; values rounded, largest error {stored.error:.3g}" if stored.error else ""
    data.DerivationDescription = f"written by omnivae {version('omnivae')}{rounded}"
    data.AcquisitionNumber = ""
    data.BurnedInAnnotation = "NO"
    if modality == "CT":
        data.KVP = ""
        data.RescaleType = "HU" if volume.unit == "HU" else "US"
    if modality == "MR":
        data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "RM", "NONE", ""
        data.MRAcquisitionType, data.EchoTime, data.EchoTrainLength = "", "", ""
    if volume.unit == "HU":
        data.WindowCenter, data.WindowWidth = "40", "400"
    if source is not None:
        header = _header(source)
        for name in (*_TECHNIQUE, *(_IDENTIFIERS if keep else ())):
            if header.get(name) not in (None, ""):
                data[name] = header[name]
        if keep:
            data.SeriesNumber = 1000 + int(source.frames[0].series_number or 0)
    data.PatientIdentityRemoved = "NO" if keep else "YES"
    if not keep:
        data.DeidentificationMethod = "built from an allow-list of technical elements"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Columns, data.Rows = volume.size[:2]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = int(stored.array.dtype.kind == "i")
    return data


def _header(source: SeriesInfo) -> Any:
    import pydicom

    with quietly(), source.frames[0].item.open() as file:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)


def _references(source: SeriesInfo, slices: int) -> list[tuple[str, str]] | None:
    """Return class and UID of the image that each slice was made from; None where they do not correspond."""
    import pydicom

    order = source.arrangement.order
    if len(order) != slices or source.frames[0].frames > 1:
        return None
    found = []
    for i in order:
        with quietly(), source.frames[i].item.open() as file:
            header = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"], force=True
            )
        found.append((str(header.SOPClassUID), str(header.SOPInstanceUID)))
    return found


def _file(
    template: Any,
    plane: dict[str, list[str]],
    position: list[str],
    k: int,
    stored: _Pixels,
    reference: tuple[str, str] | None,
) -> bytes:
    import pydicom
    from pydicom.uid import generate_uid

    data = template
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    data.InstanceNumber = k + 1
    for name, value in plane.items():
        setattr(data, name, value if len(value) > 1 else value[0])
    data.ImagePositionPatient = position
    data.RescaleSlope, data.RescaleIntercept = stored.slopes[k], stored.intercepts[k]
    if reference is not None:
        image = pydicom.Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = reference
        data.SourceImageSequence = [image]
    data.PixelData = np.ascontiguousarray(stored.array[..., k].T).astype(stored.array.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()
