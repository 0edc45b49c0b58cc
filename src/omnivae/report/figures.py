"""Pictures of images: grids, comparisons with error maps, interpolations and traversals, as uint8 arrays.

Shape legend: N images, C channels, H and W pixels, D slices; every function returns ``[height, width, 3]`` uint8.
How channels become colours says :mod:`omnivae.report.colours`; ``alpha`` says that the last of two or four channels is alpha.
Clips and volumes ``[N, C, D, H, W]`` are shown by a strip of frames, first to last.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from omnivae.report.colours import colour_names, strip, to_pixels

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

#: Tiles are enlarged by whole factors to at least MIN_TILE pixels and reduced to at most MAX_TILE.
MIN_TILE, MAX_TILE = 96, 256
GAP, FONT_SIZE = 4, 13
INK, PAPER = (75, 80, 92), (255, 255, 255)


def image_grid(
    x: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    columns: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    min_tile: int = MIN_TILE,
    max_tile: int = MAX_TILE,
    alpha: bool = False,
) -> np.ndarray:
    """Arrange images in a grid, small ones enlarged by whole factors without smoothing.

    Args:
        x: ``[N, C, H, W]``, N >= 1.
        value_range: what becomes black and white.
        columns: images in a row; about a square by default.
        labels: a short text under each image.
        min_tile: least length of a tile's longer side in pixels.
        max_tile: greatest length of a tile's longer side in pixels.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: for no image, or labels that are not one for each image.

    Example:
        >>> import torch
        >>> image_grid(torch.zeros(3, 1, 8, 8), columns=3).shape
        (96, 296, 3)
    """
    if not len(x):
        raise ValueError("got no image; expected at least one")
    if labels is not None and len(labels) != len(x):
        raise ValueError(f"got {len(labels)} labels for {len(x)} images; expected one for each")
    columns = min(len(x), columns or math.ceil(math.sqrt(len(x))))
    tiles = _tiles(to_pixels(x, value_range, alpha=alpha), min_tile, max_tile)
    rows = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    captions = None
    if labels is not None:
        captions = [list(labels[i : i + columns]) for i in range(0, len(labels), columns)]
    return _assemble(rows, captions=captions)


def comparison_grid(
    originals: Tensor,
    reconstructions: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    labels: Sequence[str] | None = None,
    samples: Tensor | None = None,
    min_tile: int = MIN_TILE,
    max_tile: int = MAX_TILE,
    alpha: bool = False,
) -> np.ndarray:
    """Show originals, reconstructions and error maps under each other.

    The error is the absolute difference averaged over channels, in matplotlib's magma on one scale for all images, from
    zero to the largest error; the scale stands beside the maps.

    Args:
        originals: ``[N, C, H, W]``.
        reconstructions: of the same shape.
        value_range: what becomes black and white.
        labels: a short text under each column.
        samples: images for a further row, ``[N, C, H, W]``.
        min_tile: least length of a tile's longer side in pixels.
        max_tile: greatest length of a tile's longer side in pixels.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: for unequal shapes or labels that are not one for each image.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"got originals {tuple(originals.shape)} and reconstructions {tuple(reconstructions.shape)}; "
            "expected equal shapes"
        )
    if labels is not None and len(labels) != len(originals):
        raise ValueError(f"got {len(labels)} labels for {len(originals)} images; expected one for each")
    low, high = value_range
    a, b = strip(originals), strip(reconstructions)
    error = (a.detach().float() - b.detach().float().clamp(low, high)).abs().mean(1).cpu().numpy()
    largest = float(np.nanmax(error)) or (high - low)
    maps = _magma(error / largest)
    pixels = [to_pixels(a, value_range, alpha=alpha), to_pixels(b, value_range, alpha=alpha), maps]
    names = ["original", "reconstruction", "error"]
    captions = [None, None, None if labels is None else list(labels)]
    if samples is not None:
        pixels.append(to_pixels(samples, value_range, alpha=alpha))
        names.append("sample")
        captions.append(None)
    rows = [list(_tiles(p, min_tile, max_tile)) for p in pixels]
    grid = _assemble(rows, row_labels=names, captions=captions)
    bar = _scale_bar(rows[2][0].shape[0], largest)
    top = 2 * (rows[0][0].shape[0] + GAP)
    canvas = np.full((grid.shape[0], grid.shape[1] + bar.shape[1], 3), 255, np.uint8)
    canvas[:, : grid.shape[1]] = grid
    canvas[top : top + bar.shape[0], grid.shape[1] :] = bar
    return canvas


def class_grid(
    rows: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    names: Sequence[str],
    headings: Sequence[str] | None = None,
    min_tile: int = MIN_TILE,
    max_tile: int = MAX_TILE,
    alpha: bool = False,
) -> np.ndarray:
    """Show one class a row, with its name beside it.

    Args:
        rows: ``[R, N, C, H, W]``.
        value_range: what becomes black and white.
        names: one for each row.
        headings: a short text above each column.
        min_tile: least length of a tile's longer side in pixels.
        max_tile: greatest length of a tile's longer side in pixels.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: for names that are not one for each row.
    """
    if len(names) != len(rows):
        raise ValueError(f"got {len(names)} names for {len(rows)} rows; expected one for each")
    tiles = [list(_tiles(to_pixels(row, value_range, alpha=alpha), min_tile, max_tile)) for row in rows]
    return _assemble(tiles, row_labels=list(names), headings=None if headings is None else list(headings))


def interpolation_grid(
    frames: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    ends: Tensor | None = None,
    names: Sequence[str] | None = None,
    min_tile: int = MIN_TILE,
    max_tile: int = MAX_TILE,
    alpha: bool = False,
) -> np.ndarray:
    """Show one interpolation a row, the two originals at its ends.

    Args:
        frames: decoded paths, ``[R, steps, C, H, W]``.
        value_range: what becomes black and white.
        ends: the original images, ``[R, 2, C, H, W]``.
        names: a short text beside each row.
        min_tile: least length of a tile's longer side in pixels.
        max_tile: greatest length of a tile's longer side in pixels.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.
    """
    steps = frames.shape[1]
    headings = [f"{a:.2f}" for a in np.linspace(0, 1, steps)]
    rows = [list(_tiles(to_pixels(row, value_range, alpha=alpha), min_tile, max_tile)) for row in frames]
    if ends is not None:
        for row, pair in zip(rows, ends, strict=True):
            first, last = _tiles(to_pixels(pair, value_range, alpha=alpha), min_tile, max_tile)
            row.insert(0, _margin(first, right=2 * GAP))
            row.append(_margin(last, left=2 * GAP))
        headings = ["original", *headings, "original"]
    return _assemble(rows, row_labels=None if names is None else list(names), headings=headings)


def traversal_grid(
    frames: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    dimensions: Sequence[int] | None = None,
    kl: Sequence[float] | None = None,
    factors: Sequence[str] | None = None,
    span: float = 3.0,
    min_tile: int = MIN_TILE,
    max_tile: int = MAX_TILE,
    alpha: bool = False,
) -> np.ndarray:
    """Show one latent dimension a row, labelled with its number and its KL.

    Args:
        frames: what :func:`omnivae.report.traverse` returned, ``[R, steps, C, H, W]``.
        value_range: what becomes black and white.
        dimensions: the number of each row's dimension; 0, 1, ... by default.
        kl: KL of every latent dimension in nats, indexed by dimension.
        factors: what every latent dimension tells of, indexed by dimension; empty where it tells nothing.
        span: standard deviations at the ends, for the headings.
        min_tile: least length of a tile's longer side in pixels.
        max_tile: greatest length of a tile's longer side in pixels.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.
    """
    dimensions = range(len(frames)) if dimensions is None else dimensions
    names = [
        f"z{d}"
        + (f"\n{kl[d]:.{2 if kl[d] < 100 else 0}f} nats" if kl is not None and len(kl) else "")
        + (f"\n{factors[d]}" if factors is not None and factors[d] else "")
        for d in dimensions
    ]
    headings = [f"{v:+.1f} σ".replace("-", "−") if v else "mean" for v in np.linspace(-span, span, frames.shape[1])]
    rows = [list(_tiles(to_pixels(row, value_range, alpha=alpha), min_tile, max_tile)) for row in frames]
    return _assemble(rows, row_labels=names, headings=headings)


def channel_grid(
    original: Tensor, reconstruction: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), *, most: int = 8
) -> np.ndarray:
    """Show the channels of one image alone, in grey, above those of its reconstruction.

    Args:
        original: ``[C, H, W]`` or ``[C, D, H, W]``.
        reconstruction: of the same shape.
        value_range: what becomes black and white.
        most: channels to show, from the first.

    Returns:
        ``[height, width, 3]`` uint8.
    """
    count = min(most, len(original))
    names = colour_names(len(original)) or [""] * len(original)
    headings = [f"{i + 1} {name}".strip() for i, name in enumerate(names[:count])]
    rows = [
        list(_tiles(to_pixels(image[:count].unsqueeze(1), value_range), MIN_TILE, 128))
        for image in (original, reconstruction)
    ]
    return _assemble(rows, row_labels=["original", "reconstruction"], headings=headings)


def to_png(pixels: np.ndarray) -> bytes:
    """Encode pixels as PNG.

    Args:
        pixels: ``[H, W, 3]`` uint8.

    Returns:
        The file's bytes.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# -- inside


def _magma(unit: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["magma"](np.nan_to_num(unit))[..., :3] * 255).round().astype(np.uint8)


def _tiles(pixels: np.ndarray, min_tile: int, max_tile: int) -> np.ndarray:
    """Enlarge small images by a whole factor, reduce large ones by area."""
    from PIL import Image

    height, width = pixels.shape[1:3]
    if max(height, width) < min_tile:
        factor = math.ceil(min_tile / max(height, width))
        return pixels.repeat(factor, 1).repeat(factor, 2)
    if max(height, width) > max_tile:
        scale = max_tile / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pixels])
    return pixels


def _margin(tile: np.ndarray, *, left: int = 0, right: int = 0) -> np.ndarray:
    return np.pad(tile, ((0, 0), (left, right), (0, 0)), constant_values=255)


def _assemble(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    row_labels: Sequence[str] | None = None,
    headings: Sequence[str] | None = None,
    captions: Sequence[Sequence[str] | None] | None = None,
) -> np.ndarray:
    """Put tiles on white paper: labels left of rows, headings above columns, captions under tiles."""
    from PIL import Image, ImageDraw

    font = _font()
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = FONT_SIZE + 6
    widths = [row_tile.shape[1] for row_tile in rows[0]]
    left = 0
    if row_labels is not None:
        left = 16 + max(math.ceil(pen.textlength(part, font=font)) for text in row_labels for part in text.split("\n"))
    captions = captions or [None] * len(rows)
    top = line if headings is not None else 0
    # The planes of a volume are low, and a label of two or three lines may be higher.
    lines = [0 if row_labels is None else len(text.split("\n")) for text in row_labels or [""] * len(rows)]
    tall = [max(row[0].shape[0], n * (FONT_SIZE + 4)) for row, n in zip(rows, lines, strict=True)]
    heights = [height + (line if caption else 0) for height, caption in zip(tall, captions, strict=True)]
    size = (left + sum(widths) + GAP * (len(widths) - 1), top + sum(heights) + GAP * (len(rows) - 1))
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)

    def write(text: str, centre: float, middle: float, room: float) -> None:
        pen.text((centre, middle), _fitted(text, font, room, pen), fill=INK, font=font, anchor="mm")

    y = top
    for index, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        x = left
        height = tall[index]
        if row_labels is not None:
            pen.multiline_text(
                (left - 12, y + height / 2), row_labels[index], fill=INK, font=font, anchor="rm", align="right"
            )
        for column, tile in enumerate(row):
            canvas.paste(Image.fromarray(tile), (x, y + (height - tile.shape[0]) // 2))
            if headings is not None and index == 0:
                write(headings[column], x + tile.shape[1] / 2, line / 2 - 2, tile.shape[1])
            if caption:
                write(caption[column], x + tile.shape[1] / 2, y + height + line / 2, tile.shape[1])
            x += tile.shape[1] + GAP
        y += heights[index] + GAP
    return np.asarray(canvas)


@cache
def _font() -> FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: it has Greek letters and a true minus, Pillow's own font has not."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE)


def _fitted(text: str, font: Any, room: float, pen: Any) -> str:
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"


def _scale_bar(height: int, largest: float) -> np.ndarray:
    """A vertical magma scale from 0 to the largest error, with its numbers."""
    from PIL import Image, ImageDraw

    font = _font()
    top, bottom = f"{largest:.2g}", "0"
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = 12 + 14 + 6 + math.ceil(max(pen.textlength(t, font=font) for t in (top, bottom))) + 2
    canvas = Image.new("RGB", (width, height), PAPER)
    ramp = _magma(np.linspace(1, 0, height))[:, None].repeat(14, 1)
    canvas.paste(Image.fromarray(ramp), (12, 0))
    pen = ImageDraw.Draw(canvas)
    pen.text((32, 1), top, fill=INK, font=font, anchor="lt")
    pen.text((32, height - 1), bottom, fill=INK, font=font, anchor="lb")
    return np.asarray(canvas)
