"""What an image file says about itself, and how its samples are to be understood; shared by all readers and writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from omnivae.data.config import DataConfig

ChannelAxis = Literal["auto", "first", "last"]

#: Modes of photographs: their channels are grey or RGB, with or without alpha, so one can be turned into the other.
PHOTOGRAPHIC = ("1", "L", "LA", "RGB", "RGBA", "RGBa", "P", "PA", "CMYK", "YCbCr")
#: Modes whose last channel is alpha that the colours are not yet multiplied with.
ALPHA = ("LA", "RGBA")


@dataclass(frozen=True)
class ReadOptions:
    """How stored samples are to be understood; the fields are those of :class:`omnivae.data.DataConfig`.

    Attributes:
        input_range: stored values that become black and white; None for the type's own.
        clip: cut values beyond that range off instead of refusing them.
        channel_axis: where arrays hold their channels.
        pages_as_channels: take the pages of a TIFF file for the channels of one image.
    """

    input_range: tuple[float, float] | None = None
    clip: bool = False
    channel_axis: ChannelAxis = "auto"
    pages_as_channels: bool = False

    @classmethod
    def of(cls, config: DataConfig) -> ReadOptions:
        """Return the options that a configuration asks for."""
        return cls(config.input_range, config.clip, config.channel_axis, config.pages_as_channels)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says about itself before its pixels are decoded, and what it takes to write another like it.

    Attributes:
        height: rows after EXIF orientation.
        width: columns after EXIF orientation.
        channels: channels after decoding.
        bit_depth: bits of a stored sample.
        dtype: numpy's name of the decoded samples' type.
        mode: colour mode in Pillow's letters ("L", "RGBA", "P", ...; "RGBa" has colours multiplied with alpha); "N" for
            channels that are no colours, "RGBX" for colours with such channels behind them.
        format: "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF" or "NPY".
        axes: order of the stored axes, from Y, X and C (TIFF also S: samples of one pixel).
        container: metadata of a TIFF: "ome", "imagej" or "".
        compression: of a TIFF, its tag's number; 1 is none.
        resolution: of a TIFF: pixels per unit across and down, and the unit's tag.
        inverted: whether a TIFF stores white as 0.
        big_endian: whether samples are stored with the most significant byte first.
        fortran: whether an array is stored column by column.
        icc: colour profile.
    """

    height: int
    width: int
    channels: int
    bit_depth: int = 8
    dtype: str = "uint8"
    mode: str = "L"
    format: str = ""
    axes: str = ""
    container: str = ""
    compression: int = 1
    resolution: tuple[float, float, int] | None = None
    inverted: bool = False
    big_endian: bool = False
    fortran: bool = False
    icc: bytes | None = None

    def converts_to(self, channels: int) -> bool:
        """Return whether the image has so many channels, or can be turned into grey (1) or RGB (3) of so many."""
        return can_convert(self.mode, self.channels, channels)


def can_convert(mode: str, stored: int, wanted: int) -> bool:
    """Return whether an image can be turned into one of ``wanted`` channels without inventing a meaning for them.

    Args:
        mode: see :class:`Header`.
        stored: its channels.
        wanted: channels asked for.

    Returns:
        True where the counts agree, and between grey, RGB and either with alpha.

    Example:
        >>> can_convert("RGBA", 4, 3), can_convert("N", 4, 3)
        (True, False)
    """
    return stored == wanted or (wanted in (1, 3) and mode in PHOTOGRAPHIC)


@contextmanager
def opened(file: str | Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Give a binary file object at its start, opened here if need be.

    Args:
        file: a path or a seekable binary file object, which is left open.
        name: what to call it in an error.

    Raises:
        ValueError: when it cannot be opened.
    """
    if not isinstance(file, (str, Path)):
        file.seek(0)
        yield file
        return
    try:
        handle = Path(file).open("rb")  # noqa: SIM115 - closed below; only opening may fail here
    except OSError as error:
        raise ValueError(f"{name} cannot be opened ({error}): repair or remove it") from error
    with handle:
        yield handle


def size_of(file: BinaryIO) -> int:
    """Return the length of a file in bytes."""
    return file.seek(0, 2)


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on bytes that nobody foresaw into the error for a damaged file.

    Args:
        name: of the file; errors that say it are meant for the user as they are.

    Raises:
        ValueError: naming the file.
    """
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"{name} takes more memory than there is ({error}): cut it into smaller images") from error
    except Exception as error:  # Pillow and tifffile raise SyntaxError, IndexError, TypeError, struct.error, ...
        if isinstance(error, ValueError) and name in str(error):
            raise
        raise damaged(name, error) from error


def damaged(name: str, reason: object) -> ValueError:
    """Return the error for a file whose pixels cannot be had."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    return ValueError(f"{name} is damaged and cannot be decoded ({said}): repair or remove it")
