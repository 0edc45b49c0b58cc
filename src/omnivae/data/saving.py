"""Writing images and grids of images to files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnivae.data.config import check_value_range


def save_image(x: Tensor, path: str | Path, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> None:
    """Write an image, or a grid of a batch of images, to a file whose suffix gives the format.

    Args:
        x: ``[C, H, W]`` or ``[B, C, H, W]`` with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels; values beyond
            ``value_range`` are clipped, as a reconstruction may overshoot.
        path: file to write; missing folders are made.
        value_range: what black and white are in ``x``, (0, 1) or (-1, 1).

    Raises:
        ValueError: for another shape, for NaN or infinite values, or for a format that cannot hold the image.
    """
    from PIL import Image

    low, high = check_value_range(value_range)
    shape = tuple(x.shape)
    x = x.detach().float().cpu()
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4 or x.shape[1] not in (1, 2, 3, 4) or x.numel() == 0:
        raise ValueError(f"got a tensor of shape {shape}; expected [C, H, W] or [B, C, H, W] with 1 to 4 channels")
    if not torch.isfinite(x).all():
        raise ValueError(
            f"{int((~torch.isfinite(x)).sum())} of {x.numel()} values are NaN or infinite: nothing to save"
        )
    pixels = (((x - low) / (high - low)).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    array = _grid(pixels)
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        image.save(path, quality=95)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write {array.shape[-1]} channels to {path} ({error}): try a .png file") from error


def _grid(pixels: np.ndarray, padding: int = 2) -> np.ndarray:
    """Tile ``[B, H, W, C]`` into one near-square image with black gaps; a single image is returned as it is."""
    count, height, width, channels = pixels.shape
    if count == 1:
        return pixels[0]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_y, step_x = height + padding, width + padding
    canvas = np.zeros((rows * step_y - padding, columns * step_x - padding, channels), dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * step_y, i % columns * step_x
        canvas[top : top + height, left : left + width] = image
    return canvas
