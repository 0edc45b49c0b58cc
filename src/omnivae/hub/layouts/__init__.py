"""Layouts: how other libraries name the weights of their autoencoders. A layout registers by being defined."""

from omnivae.hub.layouts import (
    cogvideox,
    deep_compression,
    diffusers,
    efficientvit,
    latent_diffusion,
    monai,
    transvae,
    viscy,
)
from omnivae.hub.layouts.base import Alternative, Architecture, Choice, Layout, NotThisLayout, Reference

__all__ = [
    "Alternative",
    "Architecture",
    "Choice",
    "Layout",
    "NotThisLayout",
    "Reference",
    "cogvideox",
    "deep_compression",
    "diffusers",
    "efficientvit",
    "latent_diffusion",
    "monai",
    "transvae",
    "viscy",
]
