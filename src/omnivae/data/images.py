"""Image files to tensors: decoding exactly what is stored, with everything checked, and the value-range contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from omnivae.data.config import check_value_range
from omnivae.data.header import ALPHA, Header, ReadOptions, can_convert, damage_named, opened
from omnivae.data.npy import NPY_SIGNATURE, read_npy, read_npy_header
from omnivae.data.pillow import from_pillow, read_pillow, read_pillow_header
from omnivae.data.pixels import check_pixels, convert_channels, resize_and_crop, to_unit
from omnivae.data.tiff import TIFF_SIGNATURES, read_tiff, read_tiff_header

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")


def read_header(file: Any, name: str, options: ReadOptions | None = None) -> Header:
    """Read an image's size and kind without decoding its pixels; a file whose end is missing is found out as well.

    Args:
        file: a path or a binary file object.
        name: what to call it in an error.
        options: how arrays and TIFF pages are to be understood.

    Returns:
        The header.

    Raises:
        ValueError: when the file is truncated, or not a still image of a supported kind.
    """
    options = options or ReadOptions()
    with opened(file, name) as handle, damage_named(name):
        start = handle.read(8)
        if start.startswith(NPY_SIGNATURE):
            return read_npy_header(handle, name, options)
        if start.startswith(TIFF_SIGNATURES):
            return read_tiff_header(handle, name, options)
        return read_pillow_header(handle, name)


def read_image(file: Any, name: str, options: ReadOptions | None = None) -> np.ndarray:
    """Decode an image: upright, and exactly as it is stored, except that palettes and CMYK become RGB.

    What the file is its first bytes say, not its name. A colour that PNG or GIF marks as transparent is read as the colour it is.

    Args:
        file: a path or a binary file object.
        name: what to call it in an error.
        options: how arrays and TIFF pages are to be understood.

    Returns:
        ``[H, W, C]`` in the stored type, in the machine's byte order; 1-bit PNG and BMP as 0 and 255.

    Raises:
        ValueError: when the file is damaged or not a still image of a supported kind.
    """
    options = options or ReadOptions()
    with opened(file, name) as handle, damage_named(name):
        start = handle.read(8)
        if start.startswith(NPY_SIGNATURE):
            return read_npy(handle, name, options)
        if start.startswith(TIFF_SIGNATURES):
            return read_tiff(handle, name, options)
        return read_pillow(handle, name)


def preprocess_image(
    image: Image.Image | np.ndarray | str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    options: ReadOptions | None = None,
) -> Tensor:
    """Turn one picture into a batch of one, as a model expects it.

    Args:
        image: a Pillow image, an array ``[H, W]`` or ``[H, W, C]``, or the path of an image file.
        image_size: side in pixels of the central square to use; None keeps the picture's size.
        channels: 1 or 3 to convert to, another number to insist on, None to keep.
        value_range: what black and white become, (0, 1) or (-1, 1).
        options: which stored values are black and white, and how arrays and TIFF pages are to be understood.

    Returns:
        ``[1, C, H, W]``, float32.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a readable still image, or an argument is out of its range.

    Example:
        >>> from PIL import Image
        >>> preprocess_image(Image.new("L", (40, 30), 255), image_size=16).shape
        torch.Size([1, 1, 16, 16])
    """
    low, high = check_value_range(value_range)
    options = options or ReadOptions()
    if channels is not None and channels < 1:
        raise ValueError(f"got channels={channels}; expected 1 or more, or None to keep the picture's own")
    if image_size is not None and image_size < 1:
        raise ValueError(f"got image_size={image_size}; expected 1 or more")
    name = "the picture"
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise FileNotFoundError(f"no such image file: {image}")
        name = str(image)
        mode, array = read_header(image, name, options).mode, read_image(image, name, options)
    elif isinstance(image, np.ndarray):
        array = image[..., None] if image.ndim == 2 else image
        if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "buif":
            raise ValueError(f"got an array of shape {list(image.shape)}, {image.dtype}; expected numbers [H, W, C]")
        mode = {1: "L", 3: "RGB"}.get(array.shape[2], "N")
    else:
        array = from_pillow(image)
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[array.shape[2]]
    if channels is not None and not can_convert(mode, array.shape[2], channels):
        raise ValueError(f"{name} has {array.shape[2]} channels, which cannot be turned into {channels}")
    black, white = check_pixels(array, name, options)
    if image_size is not None:
        array = resize_and_crop(array, image_size, alpha=mode in ALPHA)
    unit = to_unit(convert_channels(array, channels), black, white)
    return torch.from_numpy(unit * (high - low) + low)[None]


def check_range(x: Tensor, value_range: tuple[float, float], source: str) -> None:
    """Raise unless every value is finite and within the value-range contract.

    Args:
        x: values, any shape.
        value_range: lowest and highest value allowed (a tolerance of 1e-4 of the width covers rounding).
        source: where the values come from, for the message.

    Raises:
        ValueError: naming how many values break the contract, their range, and the remedy.

    Example:
        >>> check_range(torch.zeros(3), (-1.0, 1.0), "a.png")
    """
    low, high = value_range
    values = x.detach().float()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise ValueError(
            f"{source}: {int((~finite).sum())} of {values.numel()} values are NaN or infinite; expected finite values "
            f"in [{low:g}, {high:g}]: remove or repair this input"
        )
    if values.numel() == 0:
        return
    slack = 1e-4 * (high - low)
    outside = (values < low - slack) | (values > high + slack)
    if bool(outside.any()):
        raise ValueError(
            f"{source}: {int(outside.sum())} of {values.numel()} values lie outside [{low:g}, {high:g}] (min "
            f"{float(values.min()):.4g}, max {float(values.max()):.4g}): scale the input to [{low:g}, {high:g}], or "
            "set data.value_range to the range it has"
        )
