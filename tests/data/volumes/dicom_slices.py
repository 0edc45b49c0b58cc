"""DICOM series made on the spot: a known volume, cut into slices with pydicom, and every way to spoil it."""

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def hounsfield(columns=7, rows=5, slices=6, seed=0):
    """Values ``[columns, rows, slices]`` of a CT, no two slices alike."""
    return np.random.default_rng(seed).integers(-1024, 2000, (columns, rows, slices)).astype(np.int16)


def series(
    values,
    *,
    orientation=AXIAL,
    spacing=(0.8, 0.7),
    origin=(-10.0, 20.0, -30.0),
    step=(0.0, 0.0, 2.5),
    positions=None,
    modality="CT",
    patient="P1",
    name="Doe^Jane",
    slope=1,
    intercept=-1024,
    stored=np.uint16,
    bits=None,
    series_uid=None,
    study_uid=None,
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    **elements,
):
    """Cut ``[columns, rows, slices]`` into data sets; ``spacing`` is between rows and between columns, as DICOM has it.

    ``slope``, ``intercept`` may be lists; other elements are set by keyword, None leaves them out.
    """
    count = values.shape[-1]
    series_uid = generate_uid() if series_uid is None else series_uid
    study_uid = generate_uid() if study_uid is None else study_uid
    slopes = slope if isinstance(slope, (list, tuple)) else [slope] * count
    intercepts = intercept if isinstance(intercept, (list, tuple)) else [intercept] * count
    found = []
    if slope is None:
        intercepts = [0] * count
    for k in range(count):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CT if modality == "CT" else MR
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.PatientID, data.PatientName, data.PatientBirthDate = patient, name, "19700101"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = study_uid, series_uid, modality
        data.FrameOfReferenceUID = study_uid
        data.ImageType, data.SeriesNumber, data.InstanceNumber = list(image_type), 3, k + 1
        data.SeriesDescription, data.SliceThickness = "thorax", "9.0"
        data.ImageOrientationPatient = [f"{float(c):.11g}" for c in orientation]  # at most 16 characters
        place = np.asarray(origin) + k * np.asarray(step) if positions is None else positions[k]
        data.ImagePositionPatient = [f"{float(p):.11g}" for p in place]
        data.PixelSpacing = list(spacing)
        if slopes[k] is not None:
            data.RescaleSlope, data.RescaleIntercept = slopes[k], intercepts[k]
        raw = np.rint((values[..., k].astype(np.float64) - (intercepts[k] or 0)) / (slopes[k] or 1)).astype(stored).T
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns = raw.shape
        data.BitsAllocated = raw.dtype.itemsize * 8
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(raw.dtype.kind == "i")
        data.PixelData = np.ascontiguousarray(raw).tobytes()
        data["PixelData"].VR = "OW"
        for key, value in elements.items():
            if value is None:
                del data[key]
            else:
                setattr(data, key, value)
        found.append(data)
    return found


def save(folder, datasets, stem="image", **options):
    """Write data sets as files of a folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(datasets):
        data.save_as(folder / f"{stem}{k:03d}.dcm", enforce_file_format=True, **options)
    return folder


def affine_of(orientation=AXIAL, spacing=(0.8, 0.7), origin=(-10.0, 20.0, -30.0), step=(0.0, 0.0, 2.5)):
    """The affine to RAS by the formula of the standard (PS3.3 C.7.6.2.1.1), written out."""
    lps = np.eye(4)
    lps[:3, 0] = np.multiply(orientation[:3], spacing[1])
    lps[:3, 1] = np.multiply(orientation[3:], spacing[0])
    lps[:3, 2], lps[:3, 3] = step, origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def enhanced(values, *, spacing=(0.8, 0.7), origin=(-10.0, 20.0, -30.0), step=(0.0, 0.0, 2.5), order=None):
    """One multi-frame Enhanced CT object; the slope of each frame its own; frames in the given order of slices."""
    order = range(values.shape[-1]) if order is None else order
    data = series(values[..., :1], spacing=spacing, slope=None)[0]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    for key in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
        del data[key]
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(spacing), 9.0
    orientation.ImageOrientationPatient = list(AXIAL)
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    frames, planes = [], []
    for n, k in enumerate(order):
        group, place, rescale, content = (pydicom.Dataset() for _ in range(4))
        place.ImagePositionPatient = (np.asarray(origin) + k * np.asarray(step)).tolist()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024 - k, "HU"
        content.FrameAcquisitionNumber, content.StackID, content.InStackPositionNumber = 1, "1", n + 1
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [rescale]
        group.FrameContentSequence = [content]
        frames.append(group)
        planes.append((values[..., k].astype(np.int32) + 1024 + k).astype(np.uint16).T)
    data.PerFrameFunctionalGroupsSequence = frames
    data.NumberOfFrames = len(frames)
    data.PixelData = np.ascontiguousarray(planes).tobytes()
    data["PixelData"].VR = "OW"
    return data
