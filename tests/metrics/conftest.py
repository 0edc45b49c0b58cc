"""Fixtures: the linear-Gaussian model and draws from it."""

from linear_model import exact_model, images, loose_model

__all__ = ["exact_model", "images", "loose_model"]
