"""Weights that others wrote: read safely, recognised, converted, and proven to compute what the original computes."""

from omnivae.hub.coverage import Coverage, coverage, load_tensors
from omnivae.hub.layouts import Architecture, Layout
from omnivae.hub.loading import load_checkpoint, load_foreign, load_maisi
from omnivae.hub.reading import Checkpoint, read_checkpoint
from omnivae.hub.recognise import converted, recognise

__all__ = [
    "Architecture",
    "Checkpoint",
    "Coverage",
    "Layout",
    "converted",
    "coverage",
    "load_checkpoint",
    "load_foreign",
    "load_maisi",
    "load_tensors",
    "read_checkpoint",
    "recognise",
]
