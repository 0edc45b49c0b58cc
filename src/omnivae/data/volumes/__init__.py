"""Volumes: files to :class:`omnivae.volume.Volume` and back, transforms with an inverse, phantoms."""

from omnivae.data.volumes.dataset_pairs import PairDataset, load_pairs
from omnivae.data.volumes.dicom import choose_series, dicom_header, read_dicom
from omnivae.data.volumes.dicom_geometry import Problem
from omnivae.data.volumes.dicom_series import SeriesInfo, find_series
from omnivae.data.volumes.dicom_tilt import remove_tilt
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.data.volumes.geometry import Crop, CropForeground, Orient, Pad, Resample
from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.listing import VolumeEntry, list_volumes
from omnivae.data.volumes.ome_zarr import OmeZarrImage, plate_positions
from omnivae.data.volumes.ome_zarr_writing import write_ome_zarr, write_plate
from omnivae.data.volumes.pairs import Pair, VolumePair, align, read_pairs
from omnivae.data.volumes.phantom_ct import ct_phantom, lesion_pair
from omnivae.data.volumes.phantom_mr import mr_phantom
from omnivae.data.volumes.phantom_plate import field_phantom, plate_phantom
from omnivae.data.volumes.phantoms import LesionPair, Phantom
from omnivae.data.volumes.reading import read_volume, volume_header, write_volume
from omnivae.data.volumes.resampling import resample
from omnivae.data.volumes.transforms import Applied, Pipeline, Step, Transform
from omnivae.data.volumes.values import check_hu, from_stored, guess_unit, to_stored
from omnivae.data.volumes.windows import HU_WINDOWS, Percentiles, Window, ZScore, contract_pipeline, contract_return

__all__ = [
    "HU_WINDOWS",
    "Applied",
    "Crop",
    "CropForeground",
    "LesionPair",
    "OmeZarrImage",
    "Orient",
    "Pad",
    "Pair",
    "PairDataset",
    "Percentiles",
    "Phantom",
    "Pipeline",
    "Problem",
    "Resample",
    "SeriesInfo",
    "Step",
    "Transform",
    "VolumeEntry",
    "VolumeHeader",
    "VolumePair",
    "Window",
    "ZScore",
    "align",
    "check_hu",
    "choose_series",
    "contract_pipeline",
    "contract_return",
    "ct_phantom",
    "dicom_header",
    "field_phantom",
    "find_series",
    "from_stored",
    "guess_unit",
    "lesion_pair",
    "list_volumes",
    "load_pairs",
    "mr_phantom",
    "plate_phantom",
    "plate_positions",
    "read_dicom",
    "read_pairs",
    "read_volume",
    "remove_tilt",
    "resample",
    "to_stored",
    "volume_header",
    "write_dicom",
    "write_ome_zarr",
    "write_plate",
    "write_volume",
]
