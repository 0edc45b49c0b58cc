"""A contact sheet: a choice of a data set's images with their names below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_INK, _PAPER, _FRAME = (34, 34, 34), (255, 255, 255), (225, 225, 225)
_MARGIN, _GAP, _CAPTION, _TITLE = 24, 14, 13, 20


def contact_sheet(
    tiles: Sequence[tuple[str, np.ndarray]], *, title: str, columns: int | None = None, side: int = 160
) -> Image:
    """Draw images in a grid, each whole and in its proportions, with its name below.

    Args:
        tiles: name and RGB pixels ``[H, W, 3]`` uint8 of each image; at least one.
        title: written above.
        columns: images in a row; about as many as make the sheet a third wider than high.
        side: side of the square that each image is fitted into, in pixels; small images are enlarged by whole factors.

    Returns:
        The sheet.

    Raises:
        ValueError: for no image.
    """
    from PIL import Image as images
    from PIL import ImageDraw, ImageFont

    if not tiles:
        raise ValueError("got no images for a contact sheet; expected at least 1")
    columns = columns or math.ceil(math.sqrt(4 / 3 * len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    cell = (side + _GAP, side + _CAPTION + _GAP + 4)
    top = _MARGIN + _TITLE + _GAP
    size = (2 * _MARGIN + columns * cell[0] - _GAP, top + rows * cell[1] - _GAP + _MARGIN)
    sheet = images.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading, small = ImageFont.load_default(_TITLE), ImageFont.load_default(_CAPTION - 2)
    draw.text((_MARGIN, _MARGIN), _shortened(title, heading, size[0] - 2 * _MARGIN), fill=_INK, font=heading)
    for number, (name, pixels) in enumerate(tiles):
        left, upper = _MARGIN + number % columns * cell[0], top + number // columns * cell[1]
        tile = _fitted(images.fromarray(pixels), side)
        corner = (left + (side - tile.width) // 2, upper + (side - tile.height) // 2)
        sheet.paste(tile, corner)
        draw.rectangle((left - 1, upper - 1, left + side, upper + side), outline=_FRAME)
        draw.text((left, upper + side + 4), _shortened(name, small, side), fill=_INK, font=small)
    return sheet


def _fitted(tile: Image, side: int) -> Image:
    from PIL import Image as images

    longest = max(tile.size)
    if longest <= side:
        factor = side // longest
        return tile.resize((tile.width * factor, tile.height * factor), images.Resampling.NEAREST)
    size = (max(1, round(tile.width * side / longest)), max(1, round(tile.height * side / longest)))
    return tile.resize(size, images.Resampling.LANCZOS)


def _shortened(text: str, font: Any, width: int) -> str:
    """Return a text that fits, its middle left out: the end of a file's name tells most."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2:
        head = keep // 3
        short = f"{text[:head]}…{text[len(text) - (keep - head) :]}"
        if font.getlength(short) <= width:
            return short
        keep -= 1
    return text[:1]
