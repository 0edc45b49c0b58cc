"""Writing images: pictures and grids of 8 bits, and images like the ones they were read from."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnivae.data.config import check_value_range
from omnivae.data.encoding import encode_like
from omnivae.data.header import ALPHA, Header, ReadOptions
from omnivae.data.pixels import black_and_white, convert_channels, from_unit
from omnivae.files import write_atomic


def save_image(x: Tensor, path: str | Path, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> None:
    """Write an image, or a grid of a batch of images, to a file of 8 bits whose suffix gives the format.

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
    _check_finite(x)
    pixels = (((x - low) / (high - low)).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    array = _grid(pixels)
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    buffer = io.BytesIO()
    try:
        form = Image.registered_extensions().get(Path(path).suffix.lower())
        if form is None:
            raise ValueError(f"unknown file extension: {Path(path).suffix}")
        image.save(buffer, format=form, quality=95)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write {array.shape[-1]} channels to {path} ({error}): try a .png file") from error
    write_atomic(Path(path), buffer.getvalue())


def save_like(
    x: Tensor | np.ndarray,
    path: str | Path,
    like: Header,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    options: ReadOptions | None = None,
    alpha: np.ndarray | None = None,
) -> None:
    """Write an image to a file like the one another was read from: format, type, bit depth, channels and colour mode.

    Values are mapped back to stored units, rounded where those are integers, and saturate at the type's ends. Grey is turned
    into RGB and RGB into grey where the model works on the other. See :func:`omnivae.data.encoding.encode_like` for what a
    format cannot hold.

    Args:
        x: a tensor ``[C, H, W]`` in ``value_range``, or an array ``[H, W, C]`` of stored values.
        path: file to write; missing folders are made. The header gives the format, not the suffix.
        like: header of the image it comes from, from :func:`omnivae.data.images.read_header`.
        value_range: what black and white are in a tensor, (0, 1) or (-1, 1).
        options: which stored values are black and white.
        alpha: stored alpha ``[H, W]`` for images that have one where ``x`` has not; opaque by default.

    Raises:
        ValueError: for NaN or infinite values, or an image that such a file cannot hold.
    """
    array = x if isinstance(x, np.ndarray) else _stored(x, like, value_range, options or ReadOptions(), alpha)
    try:
        data = encode_like(array, like)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}") from error
    write_atomic(Path(path), data)


def _stored(
    x: Tensor, like: Header, value_range: tuple[float, float], options: ReadOptions, alpha: np.ndarray | None
) -> np.ndarray:
    low, high = check_value_range(value_range)
    if x.ndim != 3 or x.numel() == 0:
        raise ValueError(f"got a tensor of shape {tuple(x.shape)}; expected [C, H, W]")
    x = x.detach().cpu().double()
    _check_finite(x)
    black, white = black_and_white(like.dtype, "the image", options)
    planes = ((x - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
    without_alpha = planes.shape[2] != like.channels and like.channels in (2, 4)
    planes = convert_channels(planes, like.channels - 1 if without_alpha else like.channels)
    array = from_unit(planes.transpose(2, 0, 1), like.dtype, black, white)
    if without_alpha:
        if like.mode not in (*ALPHA, "RGBa"):
            raise ValueError(f"got {x.shape[0]} channels for an image of {like.channels}, none of which is alpha")
        if alpha is None:
            alpha = from_unit(np.ones((1, *array.shape[:2])), like.dtype, black, white)[..., 0]
        array = np.concatenate([array, alpha[..., None]], axis=2)
    return array


def _check_finite(x: Tensor) -> None:
    if not torch.isfinite(x).all():
        raise ValueError(
            f"{int((~torch.isfinite(x)).sum())} of {x.numel()} values are NaN or infinite: nothing to save"
        )


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
