"""Data: files, or embedded data sets, to batches in a stated value range."""

from omnivae.data.condition import Condition
from omnivae.data.config import DataConfig
from omnivae.data.corpus import is_text
from omnivae.data.datasets import ImageDataset, collate
from omnivae.data.header import Header, ReadOptions
from omnivae.data.images import check_range, preprocess_image, read_header, read_image
from omnivae.data.loading import DataSplits, DataSummary, load_data
from omnivae.data.saving import save_image, save_like
from omnivae.data.text import TextDataset, TextSplits, collate_text, load_text
from omnivae.data.worlds import WORLDS, World, render_dsprites, world

__all__ = [
    "WORLDS",
    "Condition",
    "DataConfig",
    "DataSplits",
    "DataSummary",
    "Header",
    "ImageDataset",
    "ReadOptions",
    "TextDataset",
    "TextSplits",
    "World",
    "check_range",
    "collate",
    "collate_text",
    "is_text",
    "load_data",
    "load_text",
    "preprocess_image",
    "read_header",
    "read_image",
    "render_dsprites",
    "save_image",
    "save_like",
    "world",
]
