"""Reports: figures, charts, walks through the latent space, and one self-contained HTML file."""

from omnivae.report.colours import to_pixels
from omnivae.report.contact import contact_sheet
from omnivae.report.figures import class_grid, comparison_grid, image_grid, interpolation_grid, to_png, traversal_grid
from omnivae.report.history import read_history
from omnivae.report.html import write_report
from omnivae.report.latent_ops import interpolate, reconstruct, traverse
from omnivae.report.pictures import run_picture, traverse_model
from omnivae.report.plots import curves, kl_bar, latent_map

__all__ = [
    "class_grid",
    "comparison_grid",
    "contact_sheet",
    "curves",
    "image_grid",
    "interpolate",
    "interpolation_grid",
    "kl_bar",
    "latent_map",
    "read_history",
    "reconstruct",
    "run_picture",
    "to_pixels",
    "to_png",
    "traversal_grid",
    "traverse",
    "traverse_model",
    "write_report",
]
