"""Data: files, or embedded data sets, to batches in a stated value range."""

from omnivae.data.condition import Condition
from omnivae.data.config import DataConfig
from omnivae.data.datasets import ImageDataset, collate
from omnivae.data.dsprites import render_dsprites
from omnivae.data.header import Header, ReadOptions
from omnivae.data.images import check_range, preprocess_image, read_header, read_image
from omnivae.data.loading import DataSplits, DataSummary, load_data
from omnivae.data.saving import save_image, save_like

__all__ = [
    "Condition",
    "DataConfig",
    "DataSplits",
    "DataSummary",
    "Header",
    "ImageDataset",
    "ReadOptions",
    "check_range",
    "collate",
    "load_data",
    "preprocess_image",
    "read_header",
    "read_image",
    "render_dsprites",
    "save_image",
    "save_like",
]
