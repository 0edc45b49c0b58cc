"""The picture that a training run draws while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnivae.report.figures import comparison_grid
from omnivae.report.latent_ops import evaluating, reconstruct

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.no_grad()
def run_picture(model: Any, x: Tensor, *, cond: Tensor | None = None, seed: int = 0) -> Image:
    """Draw originals, reconstructions, error maps, and as many samples from the prior.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: images in the model's value range, ``[N, C, H, W]``.
        cond: condition of the images and of the samples, ``[N, E]``.
        seed: seed of the samples, so that pictures of different steps show the same draws.

    Returns:
        A picture, ready to be saved.
    """
    from PIL import Image as images

    with evaluating(model):
        generator = torch.Generator().manual_seed(seed)
        samples = model.sample(len(x), size=tuple(x.shape[2:]), cond=cond, generator=generator).cpu()
    decoded = reconstruct(model, x, cond).cpu()
    return images.fromarray(comparison_grid(x.cpu(), decoded, model.value_range, samples=samples))
