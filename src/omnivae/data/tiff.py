"""TIFF files through tifffile: any number of channels, integers and floats, tiles, strips, planes, OME and ImageJ axes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

import numpy as np

from omnivae.data.header import Header, ReadOptions, damaged, size_of
from omnivae.data.pillow import read_pillow, read_pillow_header, upright

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274
_JPEG = (6, 7, 34892)
_reading = threading.local()
_ALPHA, _PREMULTIPLIED = 2, 1


def read_tiff_header(file: BinaryIO, name: str, options: ReadOptions) -> Header:
    """Read size, axes and kind of a TIFF image, and check that its file holds all that it lists.

    Args:
        file: at any position.
        name: what to call it in an error.
        options: whether pages are channels.

    Returns:
        The header.

    Raises:
        ValueError: when it is truncated, holds several images, or samples that are no picture.
    """
    with open_series(file, name) as (tif, series):
        if _needs_pillow(series):
            return read_pillow_header(file, name)
        return _header(tif, series, name, options)


def read_tiff(file: BinaryIO, name: str, options: ReadOptions) -> np.ndarray:
    """Decode a TIFF image, upright, palettes and CMYK turned into RGB, everything else as stored.

    Args:
        file: at any position.
        name: what to call it in an error.
        options: whether pages are channels.

    Returns:
        ``[H, W, C]`` in the stored type, in the machine's byte order.

    Raises:
        ValueError: when it is damaged, holds several images, or samples that are no picture.
    """
    with open_series(file, name) as (tif, series):
        if _needs_pillow(series):
            return read_pillow(file, name)
        header = _header(tif, series, name, options)
        try:
            array = series.asarray()
        except Exception as error:  # decoders raise what they like
            raise damaged(name, error) from error
        page = series.keyframe
        axes, shape = _axes(series)
        array = array.reshape(shape)
        if len(axes) == 2:
            array = array[..., None]
        elif not axes.endswith("YX"):
            array = np.moveaxis(array, axes.index(next(iter(set(axes) - {"Y", "X"}))), -1)
        else:
            array = np.moveaxis(array, 0, -1)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if header.inverted:
            array = ~array if array.dtype == bool else array.dtype.type((1 << header.bit_depth) - 1) - array
        if header.mode == "P":
            array = _palette(page)[array[..., 0]]
        elif header.mode == "CMYK":
            from PIL import Image

            array = np.asarray(Image.fromarray(np.ascontiguousarray(array), "CMYK").convert("RGB"))
        return upright(array, _orientation(page))


@contextmanager
def open_series(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """Open a TIFF file and give its only image series.

    Args:
        file: at any position.
        name: what to call it in an error.

    Yields:
        tifffile's file and series.

    Raises:
        ValueError: when it is damaged, cut off before its last page, or holds several images.
    """
    import tifffile

    logging.getLogger("tifffile").addFilter(_not_while_reading)
    file.seek(0)
    _reading.now = True
    try:
        # Files that an OME-TIFF refers to are not followed: they would be read from wherever it says.
        tif = tifffile.TiffFile(file, _multifile=False)
    except Exception as error:
        raise damaged(name, error) from error
    else:
        with tif:
            _check_pages(tif, file, name)
            yield tif, _only_series(tif, name)
    finally:
        _reading.now = False


def _not_while_reading(record: logging.LogRecord) -> bool:
    """Keep tifffile's remarks on a file out of the log while it is read here: what matters is raised, with its name."""
    return not getattr(_reading, "now", False)


def _only_series(tif: Any, name: str) -> Any:
    try:
        series = [s for s in tif.series if not (s.keyframe.is_reduced or s.keyframe.is_mask)]
    except Exception as error:
        raise damaged(name, error) from error
    if not series:
        raise damaged(name, "it holds no image")
    if len(series) > 1:
        raise ValueError(
            f"{name} holds {len(series)} images of different kinds; expected one: write each to a file of its own"
        )
    return series[0]


def _needs_pillow(series: Any) -> bool:
    """Return whether the colours are stored in a way that tifffile does not undo: YCbCr without JPEG."""
    page = series.keyframe
    return int(page.photometric) == 6 and int(page.compression) not in _JPEG


def _axes(series: Any) -> tuple[str, tuple[int, ...]]:
    """Return axes and sizes without the axes of length 1, except Y and X."""
    kept = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n != 1 or a in "YX"]
    return "".join(a for a, _ in kept), tuple(n for _, n in kept)


def _header(tif: Any, series: Any, name: str, options: ReadOptions) -> Header:
    page = series.keyframe
    axes, shape = _axes(series)
    other = axes.replace("Y", "").replace("X", "")
    sizes = dict(zip(axes, shape, strict=True))
    if "Y" not in axes or "X" not in axes or 0 in shape:
        raise ValueError(f"{name} holds axes {axes} of sizes {list(shape)}; expected an image with axes Y and X")
    if other not in ("", "C", "S") and not (options.pages_as_channels and len(other) == 1):
        said = f"{name} holds {' x '.join(map(str, shape))} samples along the axes {axes}; expected one image"
        if len(other) == 1:
            raise ValueError(
                f"{said}: set data.format to volumes to take its pages for the slices of a stack, data.pages_as_channels to true "
                "to take them for channels, or split it"
            )
        raise ValueError(
            f"{said} with one axis of channels: set data.format to volumes if it is a stack, or write each image to a file of "
            "its own"
        )
    check_extent(series, name, size_of(tif.filehandle._fh))
    dtype = series.dtype
    if dtype is None or dtype.kind not in "buif":
        raise ValueError(f"{name} holds samples of type {dtype}; expected truth values, integers or floats: convert it")
    channels = sizes.get(other, 1)
    mode, inverted = _mode(page, other, channels, np.dtype(dtype), name)
    height, width = sizes["Y"], sizes["X"]
    if _orientation(page) >= 5:
        height, width = width, height
    bits = page.bitspersample
    return Header(
        height=height,
        width=width,
        channels=3 if mode in ("P", "CMYK") else channels,
        bit_depth=int(bits[0] if isinstance(bits, tuple) else bits),
        dtype=_palette(page).dtype.name if mode == "P" else np.dtype(dtype).name,
        mode=mode,
        format="TIFF",
        axes=axes,
        container="ome" if tif.is_ome else "imagej" if tif.is_imagej else "",
        compression=int(page.compression),
        resolution=_resolution(page),
        inverted=inverted,
        big_endian=tif.byteorder == ">",
        icc=page.tags.valueof(34675),
    )


def _mode(page: Any, other: str, channels: int, dtype: np.dtype, name: str) -> tuple[str, bool]:
    """Return the colour mode, and whether 0 is white."""
    kind = page.photometric.name if hasattr(page.photometric, "name") else str(page.photometric)
    extra = [int(e) for e in page.extrasamples]
    samples = channels if other == "S" else 1
    if kind == "PALETTE" and samples == 1 and channels == 1:
        return "P", False
    if kind == "SEPARATED" and samples == 4 and dtype == np.uint8:
        return "CMYK", False
    if kind in ("RGB", "YCBCR") and samples == 3:
        return "RGB", False
    if kind == "RGB" and samples == 4 and extra in ([_ALPHA], [_PREMULTIPLIED]):
        return ("RGBA" if extra == [_ALPHA] else "RGBa"), False
    if kind in ("MINISBLACK", "MINISWHITE"):
        inverted = kind == "MINISWHITE"
        if inverted and dtype.kind not in "bu":
            raise ValueError(f"{name} stores white as 0 in samples of type {dtype}: convert it")
        mode = {1: "1" if dtype.kind == "b" else "L", 2: "LA" if extra == [_ALPHA] else "N"}.get(channels, "N")
        if inverted and mode == "LA":
            raise ValueError(f"{name} stores white as 0 beside an alpha channel: convert it")
        return mode, inverted
    if kind == "RGB" and samples > 3:
        return "RGBX", False
    raise ValueError(
        f"{name} stores colours as {kind} with {samples} samples of type {dtype}; expected grey, RGB, a palette or 8-bit "
        "CMYK: convert it"
    )


def _check_pages(tif: Any, file: BinaryIO, name: str) -> None:
    """Raise where the list of pages leads beyond the end of the file: tifffile would read those before it and go on."""
    layout, size = tif.tiff, size_of(file)
    order: Literal["little", "big"] = "little" if tif.byteorder == "<" else "big"
    seen: set[int] = set()
    file.seek(4 if layout.version == 42 else 8)
    at = int.from_bytes(file.read(layout.offsetsize), order)
    while at:
        file.seek(at)
        count = file.read(layout.tagnosize)
        end = at + layout.tagnosize + int.from_bytes(count, order) * layout.tagsize + layout.offsetsize
        if at in seen or len(count) < layout.tagnosize or end > size:
            raise damaged(name, f"its list of pages breaks off after {len(seen)}")
        seen.add(at)
        file.seek(end - layout.offsetsize)
        at = int.from_bytes(file.read(layout.offsetsize), order)


def check_extent(series: Any, name: str, length: int) -> None:
    """Raise unless every strip or tile is listed and lies within the file: what is missing would be read as zeros.

    Args:
        series: tifffile's.
        name: what to call it in an error.
        length: of the file in bytes.

    Raises:
        ValueError: when it is cut off.
    """
    if series.dataoffset is not None:  # all pages in one piece, though not all of them may be listed
        if series.dataoffset + series.nbytes > length:
            raise damaged(name, f"its last {series.dataoffset + series.nbytes - length} bytes are missing")
        return
    for page in series.pages:
        if page is None:
            raise damaged(name, "a page is missing")
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if count == 0:
                raise damaged(name, "a strip or tile is missing")
            if offset + count > length:
                raise damaged(name, f"its last {offset + count - length} bytes or more are missing")


def _palette(page: Any) -> np.ndarray:
    """Return the colours of a palette, ``[N, 3]``: 8-bit where 8 bits hold them exactly."""
    table = np.asarray(page.colormap).T
    low, high = table & 255, table >> 8
    return high.astype(np.uint8) if np.all((low == 0) | (low == high)) else table.astype(np.uint16)


def _orientation(page: Any) -> int:
    value = page.tags.valueof(_ORIENTATION)
    return int(value) if value is not None else 1


def _resolution(page: Any) -> tuple[float, float, int] | None:
    across, down = page.tags.valueof(282), page.tags.valueof(283)
    if not across or not down or not across[1] or not down[1]:
        return None
    return across[0] / across[1], down[0] / down[1], int(page.tags.valueof(296) or 2)
