"""Pixels between the file and the tensor: value ranges, cropping and resizing, grey and RGB.

Arrays are ``[H, W, C]`` in their stored type. 8-bit pictures go through Pillow; everything else is resized channel by
channel in float32, by the same antialiased bicubic filter.
"""

from __future__ import annotations

import numpy as np

from omnivae.data.header import ReadOptions

#: Whole numbers up to here are exact in float32, in which models compute.
LARGEST_EXACT = 1 << 24
_NATURAL = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
Box = tuple[int, int, int, int]


def black_and_white(dtype: np.dtype | str, name: str, options: ReadOptions) -> tuple[float, float]:
    """Return the stored values that become black and white.

    Args:
        dtype: type of the samples.
        name: whose they are, for the message.
        options: says it, or leaves it to the type.

    Returns:
        Lowest and highest value.

    Raises:
        ValueError: for integers whose type says nothing about what they hold.

    Example:
        >>> black_and_white("uint16", "a.png", ReadOptions())
        (0.0, 65535.0)
    """
    dtype = np.dtype(dtype)
    if options.input_range is not None:
        return options.input_range
    if dtype.kind == "f":
        return 0.0, 1.0
    if dtype.name not in _NATURAL:
        raise ValueError(
            f"{name} holds samples of type {dtype.name}, which does not tell what is black and white: set "
            "data.input_range LOW HIGH"
        )
    return _NATURAL[dtype.name]


def check_pixels(array: np.ndarray, name: str, options: ReadOptions) -> tuple[float, float]:
    """Check that the values of an image are finite, exact in float32 and within the range that becomes black to white.

    Args:
        array: as stored.
        name: whose it is, for the message.
        options: the range, and whether values beyond it are to be cut off.

    Returns:
        The range.

    Raises:
        ValueError: names the image, what was found and the remedy.
    """
    low, high = black_and_white(array.dtype, name, options)
    if options.input_range is None and array.dtype.name in _NATURAL:
        return low, high
    if array.dtype.kind == "f":
        finite = int(np.isfinite(array).sum())
        if finite < array.size:
            raise ValueError(
                f"{name}: {array.size - finite} of {array.size} values are NaN or infinite: remove or repair it"
            )
    least, most = array.min(), array.max()
    if array.dtype.kind in "iu" and max(abs(int(least)), abs(int(most))) > LARGEST_EXACT:
        raise ValueError(
            f"{name} holds whole numbers from {least} to {most} ({array.dtype.name}); float32, in which models compute, is "
            f"exact up to {LARGEST_EXACT} only: subtract an offset or store them as floats"
        )
    if (float(least) < low or float(most) > high) and not options.clip:
        raise ValueError(
            f"{name} holds values from {float(least):.6g} to {float(most):.6g}, beyond the range {low:g} to {high:g} that "
            f"becomes black to white: set data.input_range LOW HIGH to the range of all images, or data.clip true to cut "
            "them off"
        )
    return low, high


def resize_and_crop(array: np.ndarray, image_size: int, *, alpha: bool = False) -> np.ndarray:
    """Take the central square and resize it to ``image_size`` (antialiased bicubic).

    Args:
        array: any size.
        image_size: side of the result in pixels.
        alpha: whether the last channel is alpha, see :func:`resize`.

    Returns:
        The square image; pixels are untouched where the shorter side is ``image_size`` already.
    """
    height, width = array.shape[:2]
    side = min(height, width)
    # Whole-pixel offsets: half a pixel would blur an image that only needs cropping.
    left, top = (width - side) // 2, (height - side) // 2
    if side == image_size:
        return array[top : top + side, left : left + side]
    return resize(array, (image_size, image_size), box=(left, top, left + side, top + side), alpha=alpha)


def resize(array: np.ndarray, size: tuple[int, int], *, box: Box | None = None, alpha: bool = False) -> np.ndarray:
    """Resize an image by antialiased bicubic interpolation.

    Colours are weighted by alpha, as Pillow does: what is invisible must not bleed into what is not.

    Args:
        array: ``[H, W, C]``.
        size: height and width of the result.
        box: left, top, right and bottom of the part to resize; all of it by default.
        alpha: whether the last channel is alpha.

    Returns:
        uint8 for uint8 pictures of grey or RGB, with or without alpha; float32 for everything else, not clipped: bicubic
        interpolation overshoots.
    """
    from PIL import Image

    height, width, channels = array.shape
    to = (size[1], size[0])
    box = box or (0, 0, width, height)
    if array.dtype == np.uint8 and (channels in (1, 3) or alpha):
        image = Image.fromarray(np.ascontiguousarray(array[..., 0] if channels == 1 else array))
        resized = np.asarray(image.resize(to, Image.Resampling.BICUBIC, box=box))
        return resized[..., None] if resized.ndim == 2 else resized
    planes = array.astype(np.float32)
    if alpha:
        planes[..., :-1] *= planes[..., -1:]
    bands = [Image.fromarray(np.ascontiguousarray(planes[..., c])) for c in range(channels)]
    result = np.stack([np.asarray(b.resize(to, Image.Resampling.BICUBIC, box=box)) for b in bands], axis=-1)
    if alpha:
        weight = result[..., -1:]
        result[..., :-1] = np.divide(
            result[..., :-1], weight, out=np.zeros_like(result[..., :-1]), where=weight > 1e-6 * planes[..., -1].max()
        )
    return result


def convert_channels(array: np.ndarray, channels: int | None) -> np.ndarray:
    """Turn grey into RGB or RGB into grey (ITU-R 601 luma), dropping alpha.

    Args:
        array: ``[H, W, C]`` with 1 to 4 channels, or as many as asked for.
        channels: 1, 3, or the image's own; None keeps what there is.

    Returns:
        ``[H, W, channels]``; floats where integers other than uint8 are mixed.

    Raises:
        ValueError: when the image cannot be turned into one of so many channels.
    """
    stored = array.shape[2]
    if channels in (None, stored):
        return array
    if channels not in (1, 3) or stored > 4:
        raise ValueError(f"an image of {stored} channels cannot be turned into one of {channels}")
    colours = array[..., : stored - (stored in (2, 4))]
    if colours.shape[2] == 1:
        return colours if channels == 1 else np.repeat(colours, 3, axis=2)
    if channels == 3:
        return colours
    if array.dtype == np.uint8:
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))[..., None]
    # In float64 and rounded once, so that three equal channels become what they were.
    luma = (colours.astype(np.float64) @ _LUMA)[..., None]
    return luma if array.dtype == np.float64 else luma.astype(np.float32)


def to_unit(array: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale stored values to [0, 1], cutting off what lies beyond.

    Args:
        array: ``[*S, C]``.
        black: stored value of black.
        white: stored value of white.

    Returns:
        ``[C, *S]``, float32.
    """
    planes = np.moveaxis(array, -1, 0)
    if black == 0 and array.dtype != np.float64:
        unit = planes.astype(np.float32) / np.float32(white)
    else:
        unit = ((planes.astype(np.float64) - black) / (white - black)).astype(np.float32)
    # uint8 on its own range cannot leave it; everything else may have been resized or is to be clipped.
    return unit if array.dtype == np.uint8 and white == 255 else np.clip(unit, 0, 1)


def from_unit(unit: np.ndarray, dtype: np.dtype | str, black: float, white: float) -> np.ndarray:
    """Turn values in [0, 1] into stored ones: the inverse of :func:`to_unit`.

    Args:
        unit: ``[C, H, W]``; values beyond [0, 1] are cut off.
        dtype: type to store.
        black: stored value of black.
        white: stored value of white.

    Returns:
        ``[H, W, C]``; integers are rounded, and saturate at the ends of their type.

    Example:
        >>> from_unit(np.array([[[0.0, 0.5, 2.0]]]), "uint8", 0, 255)[0, :, 0].tolist()
        [0, 128, 255]
    """
    dtype = np.dtype(dtype)
    values = black + np.clip(unit.astype(np.float64), 0, 1) * (white - black)
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        values = np.clip(np.rint(values), ends.min, ends.max)
    elif dtype.kind == "b":
        values = np.rint(values)
    return np.ascontiguousarray(values.transpose(1, 2, 0)).astype(dtype)
