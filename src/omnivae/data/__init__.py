"""Data: files, or embedded data sets, to batches in a stated value range."""

from omnivae.data.config import DataConfig
from omnivae.data.datasets import ImageDataset, collate
from omnivae.data.dsprites import render_dsprites
from omnivae.data.images import check_range, preprocess_image
from omnivae.data.loader import EpochSampler, make_loader
from omnivae.data.loading import DataSplits, DataSummary, load_data
from omnivae.data.saving import save_image

__all__ = [
    "DataConfig",
    "DataSplits",
    "DataSummary",
    "EpochSampler",
    "ImageDataset",
    "check_range",
    "collate",
    "load_data",
    "make_loader",
    "preprocess_image",
    "render_dsprites",
    "save_image",
]
