"""Still images through Pillow: JPEG, WebP, BMP, GIF and PNG; 16-bit PNG through imagecodecs, as Pillow would reduce it.

Palettes and print colour spaces become RGB, 1-bit images become grey; everything else is as it is stored.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from omnivae.data.header import Header, damaged, size_of

if TYPE_CHECKING:
    from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Channels after decoding, by Pillow's mode.
_CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "P": 3, "PA": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_PNG_MODES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # by colour type; palettes (3) have at most 8 bits
_ORIENTATION = 274  # EXIF tag; 5 to 8 swap width and height
_TAIL = 1 << 16


def read_pillow_header(file: BinaryIO, name: str) -> Header:
    """Read size and kind of an image without decoding it, and look at the end of its file.

    Args:
        file: at any position.
        name: what to call it in an error.

    Returns:
        The header.

    Raises:
        ValueError: when the file is truncated, or not a still image of a supported kind.
    """
    with _open(file, name) as image:
        _refuse(image, name)
        width, height = image.size
        form, mode, depth = image.format or "", image.mode, 8
        # Pillow decodes a whole PNG to look for EXIF behind the pixels; walking over its chunks finds it for less.
        if form == "PNG":
            chunks = _png_chunks(file, name)
            colour, depth = chunks["IHDR"][9], chunks["IHDR"][8]
            mode, depth = (_PNG_MODES[colour], 16) if depth == 16 else (mode, 8)
            orientation = _png_orientation(image, chunks)
        else:
            orientation = _orientation(image.getexif())
            _check_end(file, name, form)
        if orientation >= 5:
            width, height = height, width
        icc = image.info.get("icc_profile")
        return Header(
            height=height,
            width=width,
            channels=_CHANNELS[mode],
            bit_depth=depth,
            dtype=f"uint{depth}",
            mode=mode,
            format="JPEG" if form == "MPO" else form,
            icc=_shared(icc) if icc else None,
        )


def read_pillow(file: BinaryIO, name: str) -> np.ndarray:
    """Decode an image: upright, its first and only frame.

    Args:
        file: at any position.
        name: what to call it in an error.

    Returns:
        ``[H, W, C]``, uint8 or uint16.

    Raises:
        ValueError: when the file is damaged or not a still image of a supported kind.
    """
    if _png_depth(file) == 16:
        return _read_png16(file, name)
    with _open(file, name) as image:
        _refuse(image, name)
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError, ...
            raise damaged(name, error) from error
        return from_pillow(image, name)


def from_pillow(image: Image.Image, name: str = "the picture") -> np.ndarray:
    """Turn a Pillow image upright and into an array.

    Args:
        image: 8-bit grey or colour, 16-bit grey ("I;16"), 32-bit integers ("I") or floats ("F").
        name: what to call it in an error.

    Returns:
        ``[H, W, C]``.

    Raises:
        ValueError: for another mode or several frames.
    """
    from PIL import ImageOps

    _refuse(image, name)
    image = ImageOps.exif_transpose(image)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    array = np.asarray(image)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[..., None] if array.ndim == 2 else array


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF or TIFF orientation.

    Args:
        array: ``[H, W, C]`` as stored.
        orientation: 1 to 8; others are none.

    Returns:
        The array as it is to be seen.
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _read_png16(file: BinaryIO, name: str) -> np.ndarray:
    import imagecodecs

    chunks = _png_chunks(file, name)
    if "acTL" in chunks:
        raise ValueError(f"{name} holds several frames; expected one still image: extract the frames to files first")
    # A transparent colour (tRNS) marks pixels and is no channel: libpng would turn it into one.
    file.seek(0)
    try:
        array = imagecodecs.png_decode(file.read())
    except Exception as error:
        raise damaged(name, error) from error
    array = array[..., None] if array.ndim == 2 else array
    array = array[..., : _CHANNELS[_PNG_MODES[chunks["IHDR"][9]]]]
    with _open(file, name) as image:
        return upright(array, _png_orientation(image, chunks))


def _png_depth(file: BinaryIO) -> int:
    file.seek(0)
    start = file.read(25)
    return start[24] if len(start) == 25 and start.startswith(PNG_SIGNATURE) else 0


def _png_chunks(file: BinaryIO, name: str) -> dict[str, bytes]:
    """Walk over a PNG file to its end; return the content of the chunks that matter here."""
    wanted = ("IHDR", "eXIf", "acTL")
    length, found = size_of(file), {}
    at = len(PNG_SIGNATURE)
    while True:
        file.seek(at)
        start = file.read(8)
        size = int.from_bytes(start[:4], "big")
        kind = start[4:].decode("latin-1")
        at += 12 + size
        if len(start) < 8 or at > length:
            raise damaged(name, "its end is missing")
        if kind in wanted:
            found[kind] = file.read(size)
        if kind == "IEND":
            return found


def _check_end(file: BinaryIO, name: str, form: str) -> None:
    """Raise when the end of a file is missing, as far as its format tells without decoding."""
    length = size_of(file)
    if form == "WEBP":
        file.seek(4)
        complete = length >= 8 + int.from_bytes(file.read(4), "little")
    elif form in ("JPEG", "MPO"):
        start = _jpeg_scan(file)
        file.seek(max(start, length - _TAIL))
        # Cameras and phones append previews and other matter, so the mark need not be the last thing.
        complete = b"\xff\xd9" in file.read()
    elif form == "GIF":
        file.seek(max(0, length - _TAIL))
        complete = file.read().rstrip(b"\0").endswith(b";")
    elif form == "BMP":
        complete = length >= _bmp_end(file)
    else:
        return
    if not complete:
        raise damaged(name, "its end is missing")


def _jpeg_scan(file: BinaryIO) -> int:
    """Return where the first scan of a JPEG file begins: before it, an EXIF preview may have an end mark of its own."""
    at = 2
    while True:
        file.seek(at)
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF or start[1] == 0xDA:
            return at
        at += 1 if start[1] == 0xFF else 2 + int.from_bytes(start[2:], "big")


def _bmp_end(file: BinaryIO) -> int:
    file.seek(10)
    start = file.read(24)
    offset, head = struct.unpack_from("<II", start)
    if head < 40:
        return 0
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", start, 8)
    return offset + (width * bits + 31) // 32 * 4 * abs(height) if compression in (0, 3) else 0


def _png_orientation(image: Image.Image, chunks: dict[str, bytes]) -> int:
    from PIL import Image

    if "eXIf" in chunks:
        found = Image.Exif()
        found.load(chunks["eXIf"])
        return _orientation(found)
    # ImageMagick writes EXIF into a text chunk, Adobe's programs write XMP; where there is neither, asking would decode the file.
    said = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & image.info.keys()
    return _orientation(image.getexif()) if said else 1


def _orientation(exif: Image.Exif) -> int:
    return int(exif.get(_ORIENTATION, 1))


@lru_cache(maxsize=64)
def _shared(profile: bytes) -> bytes:
    """Keep one copy of a colour profile that thousands of images share."""
    return profile


def _open(file: BinaryIO, name: str) -> Image.Image:
    from PIL import Image

    file.seek(0)
    try:
        return Image.open(file)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is damaged or not an image: repair or remove it") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is larger than Pillow opens ({error}): cut it into tiles, or store it as TIFF"
        ) from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be opened ({error}): repair or remove it") from error


def _refuse(image: Image.Image, name: str) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} is damaged ({error}): repair or remove it") from error
    # Phones append a preview or a depth map to a JPEG (MPO); the photograph itself comes first.
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"{name} holds {frames} frames; expected one still image: extract the frames to files first")
    in_memory = image.format is None and image.mode in ("I", "F")
    if image.mode not in _CHANNELS and image.mode not in _SIXTEEN_BIT and not in_memory:
        raise ValueError(
            f"{name} has pixels of kind {image.mode!r}; expected 8-bit grey or colour, or 16-bit grey: convert it"
        )
