"""Image files to tensors: decoding with everything checked, resizing, the value-range contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from omnivae.data.config import check_value_range

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# Channels after decoding, by Pillow's mode. Palettes and print colour spaces become RGB; "F" is our own form of
# 16-bit grey (values in [0, 1]), because Pillow cannot resize "I;16" everywhere.
_CHANNELS = {"1": 1, "L": 1, "F": 1, "LA": 2, "RGB": 3, "P": 3, "PA": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 274  # EXIF tag; 5 to 8 swap width and height


@dataclass(frozen=True)
class Header:
    """What an image file says about itself before its pixels are decoded.

    Attributes:
        height: rows after EXIF orientation.
        width: columns after EXIF orientation.
        channels: channels after decoding, 1 to 4.
        bit_depth: 8 or 16.
        reduced: whether Pillow reduces 16-bit colour to 8 bits.
    """

    height: int
    width: int
    channels: int
    bit_depth: int
    reduced: bool


def read_header(file: Any, name: str) -> Header:
    """Read an image's size and kind without decoding its pixels.

    Args:
        file: a path or a binary file object.
        name: what to call it in an error.

    Returns:
        The header.

    Raises:
        ValueError: when the file is not a still image of a supported kind.
    """
    with _open(file, name) as image:
        _refuse(image, name)
        width, height = image.size
        # Pillow decodes a whole PNG to look for an EXIF block behind the pixels; such a file is found out when read.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        if exif.get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        tiles = getattr(image, "tile", [])
        raw = str(tiles[0][3]) if tiles else ""
        sixteen = image.mode in _SIXTEEN_BIT
        return Header(
            height=height,
            width=width,
            channels=1 if sixteen else _CHANNELS[image.mode],
            bit_depth=16 if sixteen else 8,
            reduced=not sixteen and ";16" in raw,
        )


def read_image(file: Any, name: str) -> Image.Image:
    """Decode an image: upright, first and only frame, mode L, LA, RGB, RGBA or F (16-bit grey scaled to [0, 1]).

    Args:
        file: a path or a binary file object.
        name: what to call it in an error.

    Returns:
        The decoded image.

    Raises:
        ValueError: when the file is damaged or not a still image of a supported kind.
    """
    with _open(file, name) as image:
        _refuse(image, name)
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError, ...
            raise ValueError(f"{name} is damaged and cannot be decoded ({error}): repair or remove it") from error
        return normalise_mode(image)


def normalise_mode(image: Image.Image) -> Image.Image:
    """Turn a decoded image upright and into mode L, LA, RGB, RGBA or F.

    Args:
        image: any supported image.

    Returns:
        The image; a copy that does not depend on an open file.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray(np.asarray(image).astype(np.float32) / 65535)
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA", "CMYK", "YCbCr"):
        return image.convert("RGB")
    return image


def num_channels(image: Image.Image) -> int:
    """Return the number of channels of an image in one of the modes that :func:`normalise_mode` gives."""
    return _CHANNELS[image.mode]


def resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Take the central square and resize it to ``image_size`` (antialiased bicubic).

    Args:
        image: any size.
        image_size: side of the result in pixels.

    Returns:
        The square image; pixels are untouched where the shorter side is ``image_size`` already.
    """
    from PIL import Image

    side = min(image.size)
    # Whole-pixel offsets: half a pixel would blur an image that only needs cropping.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == image_size:
        return image if image.size == (side, side) else image.crop(box)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)


def to_unit_array(image: Image.Image, channels: int | None) -> np.ndarray:
    """Turn an image into float32 values in [0, 1].

    Args:
        image: mode L, LA, RGB, RGBA or F.
        channels: 1 or 3 to convert to (grey by ITU-R 601 luma; alpha is dropped), None to keep.

    Returns:
        Array ``[C, H, W]``.
    """
    if channels is not None and num_channels(image) != channels and image.mode != "F":
        image = image.convert("L" if channels == 1 else "RGB")
    array = np.asarray(image)
    # Bicubic overshoots; 8-bit modes are clipped by Pillow.
    array = np.clip(array, 0, 1) if image.mode == "F" else array.astype(np.float32) / np.float32(255)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if channels == 3 and array.shape[0] == 1:
        array = np.repeat(array, 3, axis=0)
    return np.ascontiguousarray(array)


def preprocess_image(
    image: Image.Image | str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Turn one picture into a batch of one, as a model expects it.

    Args:
        image: a Pillow image or the path of an image file.
        image_size: side in pixels of the central square to use; None keeps the picture's size.
        channels: 1 or 3 to convert to, None to keep.
        value_range: what black and white become, (0, 1) or (-1, 1).

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
    if channels not in (None, 1, 3):
        raise ValueError(f"got channels={channels}; expected 1 (grey), 3 (RGB) or None to keep the picture's own")
    if image_size is not None and image_size < 1:
        raise ValueError(f"got image_size={image_size}; expected 1 or more")
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise FileNotFoundError(f"no such image file: {image}")
        decoded = read_image(image, str(image))
    else:
        _refuse(image, "the picture")
        decoded = normalise_mode(image)
    if image_size is not None:
        decoded = resize_and_crop(decoded, image_size)
    return torch.from_numpy(to_unit_array(decoded, channels) * (high - low) + low)[None]


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


def _open(file: Any, name: str) -> Image.Image:
    from PIL import Image

    try:
        return Image.open(file)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is damaged or not an image: repair or remove it") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be opened ({error}): repair or remove it") from error


def _refuse(image: Image.Image, name: str) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} is damaged ({error}): repair or remove it") from error
    # Phones append a preview or a depth map to a JPEG (MPO); the photograph itself comes first.
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"{name} holds {frames} frames; expected one still image: extract the frames to files first")
    if (image.mode not in _CHANNELS and image.mode not in _SIXTEEN_BIT) or (image.mode == "F" and image.format):
        raise ValueError(
            f"{name} has pixels of kind {image.mode!r}; expected 8-bit grey or colour, or 16-bit grey: convert it"
        )
