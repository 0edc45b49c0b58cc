"""DICOM headers to frames: what grouping, geometry and decoding need of each image, read without pixels.

A classic file holds one frame; an enhanced multi-frame file (CT, MR) many, described by its functional groups.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnivae.data.volumes.dicom_files import Item, Progress, list_items, quietly
from omnivae.data.volumes.values import need

#: Files begin with these groups where the 128 bytes of preamble are missing: meta data, or the data set itself.
_BARE = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_SUFFIXES = {".dcm", ".dicom", ".ima"}
#: Storage classes whose images lie somewhere in a patient, and their modality.
IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.2.1": "CT", "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.4.1": "MR", "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT", "1.2.840.10008.5.1.4.1.1.130": "PT", "1.2.840.10008.5.1.4.1.1.128.1": "PT",
    "1.2.840.10008.5.1.4.1.1.13.1.1": "XA", "1.2.840.10008.5.1.4.1.1.13.1.3": "MG", "1.2.840.10008.5.1.4.1.1.6.2": "US",
}  # fmt: skip
_ABOUT_ACQUISITION = (
    "EchoNumbers", "EchoTime", "InversionTime", "FlipAngle", "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue",
    "AcquisitionNumber", "AcquisitionTime",
)  # fmt: skip
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "ImageType", "InstanceNumber", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SpacingBetweenSlices", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ConversionType", *_ABOUT_ACQUISITION,
]  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """What is needed of one image of one file.

    Attributes:
        item: the file.
        index: of the frame in it, 0 first.
        patient: a digest that tells patients apart and cannot be read; "" where the file names none.
        position: ImagePositionPatient, mm, of patient axes L, P, S.
        orientation: ImageOrientationPatient, six cosines.
        spacing: between rows and between columns, mm.
        about: of the acquisition, to tell frames at the same place apart: name -> value.
        flaw: what is wrong with its pixels as far as the header tells; "" for nothing.
    """

    item: Item
    index: int = 0
    frames: int = 1
    sop_class: str = ""
    modality: str = ""
    patient: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    series: str = field(default="", repr=False)
    series_number: str = ""
    description: str = ""
    image_type: tuple[str, ...] = ()
    captured: bool = False
    number: int | None = None
    rows: int = 0
    columns: int = 0
    samples: int = 1
    photometric: str = ""
    bits: int = 16
    signed: bool = False
    syntax: str = ""
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    between: float | None = None
    slope: float | None = None
    intercept: float | None = None
    rescale_type: str = ""
    table: bool = False
    padding: tuple[int, int] | None = None
    about: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    flaw: str = ""

    @property
    def name(self) -> str:
        """How messages call it: its instance number (frames of one file are counted), which tells of nobody."""
        if self.frames > 1:
            return f"frame {self.index + 1}"
        return f"slice {self.number}" if self.number is not None else f"slice {self.item.name}"


@dataclass(frozen=True)
class Scan:
    """What a folder holds: frames, and files that should be DICOM and cannot be read, with the reason."""

    frames: list[Frame]
    unreadable: list[tuple[Item, str]]


def scan(path: str | Path, *, workers: int = 8, progress: Progress | None = None) -> Scan:
    """Read the headers of all DICOM files below a path; other files are passed over.

    Args:
        path: folder, zip archive or file.
        workers: threads; they wait for the disk or the network together.
        progress: is called with the number of files done and of all files.

    Returns:
        Frames in the order of file names.
    """
    need("pydicom", "medical")
    items = list_items(path)
    alone = len(items) == 1
    frames: list[Frame] = []
    unreadable: list[tuple[Item, str]] = []
    with quietly(), ThreadPoolExecutor(max_workers=max(1, min(workers, len(items)))) as pool:
        for done, (item, found) in enumerate(zip(items, pool.map(_try_read, items), strict=True), 1):
            if item.flaw:
                unreadable.append((item, item.flaw))
            elif isinstance(found, str):
                unreadable.append((item, found))
            elif found is None and (alone or Path(item.member or item.path).suffix.lower() in _SUFFIXES):
                unreadable.append((item, "it is not DICOM" if item.size() else "it is empty"))
            elif found is not None:
                frames += found
            if progress is not None:
                progress(done, len(items))
    return Scan(frames, unreadable)


def _try_read(item: Item) -> list[Frame] | str | None:
    """Return the frames of a file, the reason why there are none, or None for a file of another kind."""
    from pydicom.errors import InvalidDicomError

    if item.flaw:
        return None
    try:
        return read_frames(item)
    except InvalidDicomError:
        return None
    except (
        Exception
    ) as error:  # damaged bytes make pydicom raise almost anything; its message may quote a value of the header
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return f"its header cannot be read ({reason})"


def read_frames(item: Item) -> list[Frame] | None:
    """Read the header of one file.

    Args:
        item: the file.

    Returns:
        One frame, the frames of a multi-frame image, an empty list for DICOM without an image, None for other files.
    """
    import pydicom

    with item.open() as file:
        start = file.read(132)
        if start[128:] != b"DICM" and start[:2] not in _BARE:
            return None
        file.seek(0)
        bare = start[128:] != b"DICM"
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS), force=bare)
        except Exception:
            if bare:  # any file may begin with these two bytes; one that says it is DICOM is reported below
                return None
            raise
        if bare and ("SOPClassUID" not in header or "Rows" not in header):
            return None
        left = item.size() - file.tell()
    if header.get("Rows") is None or header.get("Columns") is None:
        sop_class = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
        if not sop_class or sop_class in IMAGE_CLASSES:
            raise EOFError("the header ends before the size of the image")
        return []
    return _frames(item, header, left)


def _frames(item: Item, header: Any, left: int) -> list[Frame]:
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    count = int(header.get("NumberOfFrames") or 1)
    low = _number(header, "PixelPaddingValue")
    high = _number(header, "PixelPaddingRangeLimit")
    common: dict[str, Any] = {
        "item": item,
        "frames": count,
        "sop_class": str(header.get("SOPClassUID") or ""),
        "modality": str(header.get("Modality") or ""),
        "patient": _patient(header),
        "study": str(header.get("StudyInstanceUID") or ""),
        "series": str(header.get("SeriesInstanceUID") or ""),
        "series_number": str(header.get("SeriesNumber") or ""),
        "description": _description(header),
        "captured": bool(header.get("ConversionType")),
        "rows": int(header.Rows),
        "columns": int(header.Columns),
        "samples": int(header.get("SamplesPerPixel") or 1),
        "photometric": str(header.get("PhotometricInterpretation") or ""),
        "bits": int(header.get("BitsStored") or header.get("BitsAllocated") or 16),
        "signed": bool(header.get("PixelRepresentation")),
        "syntax": str(syntax or ""),
        "padding": None if low is None else (int(low), int(low if high is None else high)),
        "flaw": _flaw(header, syntax, count, left),
    }
    shared = header.get("SharedFunctionalGroupsSequence") or [None]
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if not groups:
        return [Frame(**common, index=i, **_classic(header)) for i in range(count)]
    if len(groups) != count:
        raise ValueError("functional groups of another number than frames")
    return [Frame(**common, index=i, **_enhanced(header, shared[0], group)) for i, group in enumerate(groups)]


def _classic(header: Any) -> dict[str, Any]:
    return {
        "number": _integer(header.get("InstanceNumber")),
        "image_type": _words(header.get("ImageType")),
        "position": _numbers(header, "ImagePositionPatient", 3),
        "orientation": _numbers(header, "ImageOrientationPatient", 6),
        "spacing": _numbers(header, "PixelSpacing", 2),
        "between": _number(header, "SpacingBetweenSlices"),
        "slope": _number(header, "RescaleSlope"),
        "intercept": _number(header, "RescaleIntercept"),
        "rescale_type": str(header.get("RescaleType") or ""),
        "table": bool(header.get("ModalityLUTSequence")),
        "about": tuple(
            (name, str(header.get(name))) for name in _ABOUT_ACQUISITION if header.get(name) not in (None, "")
        ),
    }


def _enhanced(header: Any, shared: Any, group: Any) -> dict[str, Any]:
    """Read one item of the functional groups; what all frames share stands apart."""

    def part(*names: str) -> Any:
        for name in names:
            for holder in (group, shared):
                sequence = holder.get(name) if holder is not None else None
                if sequence:
                    return sequence[0]
        return {}

    values, content = part("PixelValueTransformationSequence"), part("FrameContentSequence")
    measures = part("PixelMeasuresSequence")
    kind = part("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence")
    about = {
        "EffectiveEchoTime": part("MREchoSequence").get("EffectiveEchoTime"),
        "DiffusionBValue": part("MRDiffusionSequence").get("DiffusionBValue"),
        "TemporalPositionIndex": content.get("TemporalPositionIndex"),
        "NominalCardiacTriggerDelayTime": part("CardiacSynchronizationSequence").get("NominalCardiacTriggerDelayTime"),
        "StackID": content.get("StackID"),
        "FrameAcquisitionNumber": content.get("FrameAcquisitionNumber"),
        "FrameAcquisitionDateTime": content.get("FrameAcquisitionDateTime"),
    }
    return {
        "image_type": _words(kind.get("FrameType")) or _words(header.get("ImageType")),
        "position": _numbers(part("PlanePositionSequence"), "ImagePositionPatient", 3),
        "orientation": _numbers(part("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        "spacing": _numbers(measures, "PixelSpacing", 2),
        "between": _number(measures, "SpacingBetweenSlices"),
        "slope": _number(values, "RescaleSlope"),
        "intercept": _number(values, "RescaleIntercept"),
        "rescale_type": str(values.get("RescaleType") or ""),
        "about": tuple((name, str(value)) for name, value in about.items() if value not in (None, "")),
    }


def _flaw(header: Any, syntax: Any, count: int, left: int) -> str:
    """Say what is wrong with the pixels, from the header and the number of bytes behind it."""
    if syntax is None:
        return "the transfer syntax is not said"
    if syntax.is_deflated:
        return ""
    if left < 12:
        return "there is no pixel data"
    bits = int(header.get("BitsAllocated") or 0) * int(header.get("SamplesPerPixel") or 1)
    bytes_needed = (int(header.Rows) * int(header.Columns) * count * bits + 7) // 8
    found = left - (8 if syntax.is_implicit_VR else 12)  # behind tag, type and length
    if not syntax.is_compressed and found < bytes_needed:
        return f"pixel data are truncated: {found} bytes of {bytes_needed}"
    return codec_flaw(syntax)


def codec_flaw(syntax: Any) -> str:
    """Say which package reads a compressed transfer syntax, where none that does is installed.

    Args:
        syntax: pydicom's UID.

    Returns:
        A sentence; "" where it can be read.
    """
    from pydicom.pixels import get_decoder

    if not syntax.is_transfer_syntax:
        return "the transfer syntax is unknown"
    if not syntax.is_compressed:
        return ""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"nothing reads its transfer syntax ({syntax.name}): convert it with dcmtk's dcmdjpeg or gdcmconv"
    if decoder.is_available:
        return ""
    jpeg2000 = "2000" in syntax.name
    package = "pylibjpeg-openjpeg" if jpeg2000 else "pylibjpeg-libjpeg"
    return f"{syntax.name} needs a codec: pip install pylibjpeg {package} (omnivae[medical] brings both)"


def _patient(header: Any) -> str:
    words = [
        str(header.get(name) or "").strip(" ^").casefold() for name in ("PatientID", "PatientName", "PatientBirthDate")
    ]
    return hashlib.blake2b("\0".join(words).encode(), digest_size=8).hexdigest() if any(words) else ""


def _description(header: Any) -> str:
    """Return the series' description, unless it tells of the patient: technologists type what they like."""
    text = str(header.get("SeriesDescription") or header.get("ProtocolName") or "").strip()
    told = [str(header.get("PatientID") or ""), *re.split(r"[\s^,=]+", str(header.get("PatientName") or ""))]
    if any(len(word) > 2 and word.casefold() in text.casefold() for word in told) or re.search(
        r"\d{6,}|\d{2,4}[-./]\d{1,2}[-./]\d", text
    ):
        return ""
    return text


def _words(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(v).strip().upper() for v in ([value] if isinstance(value, str) else value))


def _integer(value: Any) -> int | None:
    return None if value in (None, "") else int(value)


def _number(holder: Any, name: str) -> float | None:
    value = holder.get(name)
    if value in (None, ""):
        return None
    # Some writers pad a single number to a list.
    return float(value if not hasattr(value, "__len__") or isinstance(value, str) else value[0])


def _numbers(holder: Any, name: str, count: int) -> tuple[float, ...] | None:
    value = holder.get(name)
    if value in (None, "") or not hasattr(value, "__len__") or len(value) != count:
        return None
    return tuple(float(v) for v in value)
