"""NumPy's .npy files as images: [H, W], [H, W, C] or [C, H, W], of any real type, kept exactly."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from omnivae.data.header import Header, ReadOptions, damaged, size_of

NPY_SIGNATURE = b"\x93NUMPY"
#: More of them are taken for pixels, unless data.channel_axis says otherwise.
MOST_CHANNELS = 64


def read_npy_header(file: BinaryIO, name: str, options: ReadOptions) -> Header:
    """Read shape and type of an array, and check that the file is as long as they say.

    Args:
        file: at any position.
        name: what to call it in an error.
        options: where the channels are.

    Returns:
        The header.

    Raises:
        ValueError: when it is truncated or no image.
    """
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:
        raise damaged(name, error) from error
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ValueError(f"{name} holds values of type {dtype}; expected truth values, integers or floats: convert it")
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"{name} holds an array of shape {list(shape)}; expected an image [H, W], [H, W, C] or [C, H, W]: write one "
            "image to a file"
        )
    start = file.tell()
    missing = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize - (size_of(file) - start)
    if missing > 0:
        raise damaged(name, f"its last {missing} bytes are missing")
    axes = "YX" if len(shape) == 2 else ("CYX" if _channels_first(shape, name, options) else "YXC")
    sizes = dict(zip(axes, shape, strict=True))
    channels = sizes.get("C", 1)
    return Header(
        height=sizes["Y"],
        width=sizes["X"],
        channels=channels,
        bit_depth=1 if dtype.kind == "b" else 8 * dtype.itemsize,
        dtype=dtype.name,
        mode={1: "L", 3: "RGB"}.get(channels, "N"),
        format="NPY",
        axes=axes,
        big_endian=dtype.str.startswith(">"),
        fortran=fortran,
    )


def read_npy(file: BinaryIO, name: str, options: ReadOptions) -> np.ndarray:
    """Read an array as an image.

    Args:
        file: at any position.
        name: what to call it in an error.
        options: where the channels are.

    Returns:
        ``[H, W, C]`` in the stored type, in the machine's byte order.

    Raises:
        ValueError: when it is damaged or no image.
    """
    axes = read_npy_header(file, name, options).axes
    file.seek(0)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise damaged(name, error) from error
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array[..., None] if axes == "YX" else (array.transpose(1, 2, 0) if axes == "CYX" else array)
    return np.ascontiguousarray(array)


def _channels_first(shape: tuple[int, ...], name: str, options: ReadOptions) -> bool:
    if options.channel_axis != "auto":
        return options.channel_axis == "first"
    first, middle, last = shape
    if first < min(middle, last) and first <= MOST_CHANNELS:
        return True
    if last < min(first, middle) and last <= MOST_CHANNELS:
        return False
    raise ValueError(
        f"{name} holds an array of shape {list(shape)}, which does not tell which axis holds the channels: set "
        "data.channel_axis to first or last"
    )
