"""Arrays to the bytes of image files like the ones they were read from: same format, type, bit depth and colour mode."""

from __future__ import annotations

import io
import zlib

import numpy as np

from omnivae.data.header import ALPHA, Header
from omnivae.data.pillow import PNG_SIGNATURE

#: Lossless compressions of TIFF that are kept; lossy ones become deflate.
_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def unwritable(like: Header) -> str | None:
    """Return why no image like this can be written, or None where one can.

    Args:
        like: header of the image it was read from.

    Returns:
        A sentence for an error.
    """
    if like.format == "GIF" and like.channels != 1:
        return "a GIF holds 256 colours at most and a reconstruction has more: convert it to PNG"
    if like.format not in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "NPY"):
        return f"files of format {like.format or 'unknown'} cannot be written: convert it to PNG"
    if like.format == "WEBP" and like.channels not in (3, 4):
        return "WebP holds RGB and RGBA only: convert it to PNG"
    return None


def encode_like(array: np.ndarray, like: Header) -> bytes:
    """Return the bytes of a file that holds an image the way another file does.

    Palettes become RGB and 1-bit PNG or BMP become grey of 8 bits, as neither can hold a reconstruction; CMYK is converted
    back. PNG, BMP, TIFF and npy hold the pixels exactly; JPEG and WebP are written at quality 95. Of a TIFF's metadata the
    axes, the resolution and the colour profile are kept, and of its compression what is lossless.

    Args:
        array: ``[H, W, C]``, of the header's type and number of channels.
        like: header of the image it was read from.

    Returns:
        The file.

    Raises:
        ValueError: for an array of another type or number of channels, or a format that cannot hold it.
    """
    reason = unwritable(like)
    if reason is not None:
        raise ValueError(reason)
    if array.ndim != 3 or array.shape[2] != like.channels or array.dtype.name != like.dtype:
        raise ValueError(
            f"got an array of shape {list(array.shape)}, {array.dtype}; expected [H, W, {like.channels}], {like.dtype}"
        )
    if like.format == "TIFF":
        return _tiff(array, like)
    if like.format == "NPY":
        return _npy(array, like)
    if like.format == "PNG" and like.dtype == "uint16":
        return _png16(array, like.icc)
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
    if like.mode == "CMYK":
        image = image.convert("CMYK")
    buffer = io.BytesIO()
    profile = {} if like.icc is None else {"icc_profile": like.icc}
    image.save(buffer, format=like.format, quality=95, **profile)
    return buffer.getvalue()


def _npy(array: np.ndarray, like: Header) -> bytes:
    stored = array[..., 0] if like.axes == "YX" else array.transpose(2, 0, 1) if like.axes == "CYX" else array
    stored = stored.astype(
        stored.dtype.newbyteorder(">" if like.big_endian else "<"), order="F" if like.fortran else "C"
    )
    buffer = io.BytesIO()
    np.save(buffer, stored, allow_pickle=False)
    return buffer.getvalue()


def _png16(array: np.ndarray, icc: bytes | None) -> bytes:
    import imagecodecs

    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)))
    if icc is None:
        return data
    content = b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)
    chunk = (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    after = len(PNG_SIGNATURE) + 25  # IHDR is always the first chunk, of 25 bytes
    return data[:after] + chunk + data[after:]


def _tiff(array: np.ndarray, like: Header) -> bytes:
    import tifffile

    photometric, extra = "minisblack", None
    axes = like.axes
    if like.mode in ("RGB", "RGBA", "RGBa", "RGBX", "P"):
        photometric = "rgb"
        axes = axes if "S" in axes else "YXS"
    elif like.mode == "CMYK":
        from PIL import Image

        photometric, array = "separated", np.asarray(Image.fromarray(array).convert("CMYK"))
    elif like.inverted:
        photometric = "miniswhite"
        array = ~array if array.dtype.kind == "b" else array.dtype.type((1 << like.bit_depth) - 1) - array
    if like.mode in ALPHA:
        extra = ["unassalpha"]
    elif like.mode == "RGBa":
        extra = ["assocalpha"]
    elif "S" in axes and like.mode in ("N", "RGBX"):
        extra = ["unspecified"] * (array.shape[2] - (3 if photometric == "rgb" else 1))
    # Where the samples of a pixel lie together they come last; planes and pages come first.
    if array.shape[2] == 1 and len(axes) == 2:
        array = array[..., 0]
    elif not axes.endswith(("S", "C")):
        array = array.transpose(2, 0, 1)
    container = like.container
    # ImageJ knows three types; and tifffile writes channels of one column of pixels as a single page.
    if container == "imagej" and (array.dtype.name not in _IMAGEJ_TYPES or "S" in axes or array.shape[-1] == 1):
        container = ""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.ascontiguousarray(array),
        photometric=photometric,
        planarconfig=("separate" if axes.startswith("S") else "contig") if "S" in axes else None,
        extrasamples=extra,
        byteorder=">" if like.big_endian else "<",
        compression=like.compression if like.compression in _LOSSLESS else 8,
        resolution=None if like.resolution is None else like.resolution[:2],
        resolutionunit=None if like.resolution is None else like.resolution[2],
        iccprofile=like.icc,
        ome=container == "ome",
        imagej=container == "imagej",
        metadata={"axes": axes},
        software=False,
    )
    return buffer.getvalue()
