"""Pictures of volumes: three planes in display windows, reconstructions, differences with a colour bar, and heat maps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from omnivae.metrics.volume import WINDOWS, Window
from omnivae.report.colours import to_pixels
from omnivae.report.planes import Plane, planes
from omnivae.report.plots import INK, MUTED, png_of
from omnivae.volume import Volume

#: Width of a figure of three planes, inches.
_WIDTH, _ROOM = 10.0, 1.15
_EDGE = {"fontsize": 8, "color": "#f5f6f8", "fontweight": "bold"}


@dataclass(frozen=True)
class Layer:
    """One row of a figure: a volume, and how its values become shades.

    Attributes:
        label: written beside it.
        volume: what is shown.
        low: shown as the first colour.
        high: shown as the last one.
        colours: a colour map of matplotlib; of several channels, which are laid over each other as lights, it is not used.
        unit: of the values, beside the colour bar; where it is ``None`` there is no bar.
        over: a volume shown in grey beneath, where this one is a heat map; its lowest values are clear.
        over_range: black and white of that volume.
    """

    label: str
    volume: Volume
    low: float
    high: float
    colours: str = "gray"
    unit: str | None = None
    over: Volume | None = None
    over_range: tuple[float, float] = (0.0, 1.0)


def display_range(volume: Volume) -> tuple[float, float]:
    """Return what is shown as black and white where no window is given: the soft tissue and lung of CT, percentiles of others.

    Args:
        volume: any.

    Returns:
        Two values, the first below the second: -1000 and 1000 HU; or the 0.5th and 99.5th percentile of a sample of the voxels.
    """
    if volume.unit == "HU":
        return -1000.0, 1000.0
    values = volume.array.reshape(-1)
    values = values[:: max(1, len(values) // 200_000)]
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not len(values):
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def slices_picture(layers: Sequence[Layer], at: Sequence[int] | None = None) -> bytes:
    """Draw three planes of volumes of one grid, a row each, in their true proportions.

    Args:
        layers: the rows.
        at: indices of the point that the planes go through; the middle by default.

    Returns:
        PNG bytes.

    Raises:
        ValueError: for no layer, or volumes of several sizes.
    """
    if not layers or len({layer.volume.size for layer in layers}) > 1:
        raise ValueError(
            f"got volumes of sizes {[layer.volume.size for layer in layers]}; expected at least one, all of one size"
        )
    first = planes(layers[0].volume, at)
    widths = [p.extent[1] for p in first]
    tallest = max(p.extent[0] for p in first)
    scale = (_WIDTH - 2 * _ROOM) / sum(widths)
    height = min(max(tallest * scale, 0.5), 6.0)
    figure = _figure(_WIDTH, len(layers) * (height + 0.12) + 0.35)
    grid = figure.add_gridspec(len(layers), 3, width_ratios=widths, wspace=0.03, hspace=0.04)
    figure.subplots_adjust(
        left=_ROOM / _WIDTH,
        right=1 - _ROOM / _WIDTH,
        bottom=0.1 / figure.get_figheight(),
        top=1 - 0.3 / figure.get_figheight(),
    )
    for row, layer in enumerate(layers):
        cuts = planes(layer.volume, at)
        below = None if layer.over is None else planes(layer.over, at)
        drawn = None
        for column, plane in enumerate(cuts):
            axes = figure.add_subplot(grid[row, column])
            drawn = _draw(axes, plane, layer, None if below is None else below[column])
            if row == 0:
                place = grid[0, column].get_position(figure)
                title = f"{plane.name}  {plane.index + 1}/{layer.volume.size[plane.axis]}"
                top = place.y1 + 0.06 / figure.get_figheight()
                figure.text((place.x0 + place.x1) / 2, top, title, ha="center", va="bottom", fontsize=9, color=MUTED)
            if column == 0:
                axes.text(
                    -0.02,
                    0.5,
                    layer.label,
                    transform=axes.transAxes,
                    ha="right",
                    va="center",
                    fontsize=9,
                    color=INK,
                    wrap=False,
                )
        if layer.unit is not None and drawn is not None:
            _colour_bar(figure, figure.axes[-1], drawn, layer)
    return png_of(figure)


def window_layers(original: Volume, reconstruction: Volume, window: Window) -> list[Layer]:
    """Return the rows "original" and "reconstruction" in a window of Hounsfield units.

    Args:
        original: in HU.
        reconstruction: in HU.
        window: level and width.

    Returns:
        Two layers.
    """
    return [
        Layer(name, volume, window.low, window.high)
        for name, volume in (("original", original), ("reconstruction", reconstruction))
    ]


def difference_layer(
    original: Volume, reconstruction: Volume, *, unit: str = "HU", limit: float | None = None
) -> Layer:
    """Return the row of differences, reconstruction minus original: blue where it is too low, red where too high.

    Args:
        original: the volume.
        reconstruction: of the same size.
        unit: of the values.
        limit: difference of the strongest colours; by default the 99.5th percentile of absolute differences, rounded up.

    Returns:
        A layer with a colour bar. Of several channels the signed difference of largest size is shown.
    """
    difference = reconstruction.array.astype(np.float32) - original.array.astype(np.float32)
    if len(difference) > 1:
        strongest = np.abs(difference).argmax(0)[None]
        difference = np.take_along_axis(difference, strongest, 0)
    if limit is None:
        sizes = np.abs(difference.reshape(-1)[:: max(1, difference.size // 500_000)])
        limit = round_up(float(np.percentile(sizes, 99.5)))
    volume = original.with_array(difference, channels=(), stored=None)
    return Layer("difference", volume, -limit, limit, colours="RdBu_r", unit=unit)


def comparison_pictures(
    original: Volume,
    reconstruction: Volume,
    *,
    at: Sequence[int] | None = None,
    windows: Sequence[str] = tuple(WINDOWS),
) -> list[tuple[str, bytes]]:
    """Draw a volume beside its reconstruction: in each window of Hounsfield units, or in its own range, and the difference.

    Args:
        original: the volume.
        reconstruction: of the same size and unit.
        at: indices of the point that the planes go through.
        windows: names from ``WINDOWS``; of volumes that are not in HU they are not used.

    Returns:
        Title and PNG bytes of each picture; the last one is the difference.
    """
    if original.unit == "HU":
        found = [
            (
                f"{name.replace('_', ' ')} window, {WINDOWS[name]} HU",
                window_layers(original, reconstruction, WINDOWS[name]),
            )
            for name in windows
        ]
        unit = "HU"
    else:
        low, high = display_range(original)
        rows = [Layer("original", original, low, high), Layer("reconstruction", reconstruction, low, high)]
        found, unit = [(f"{low:g} to {high:g}", rows)], ""
    found.append(("difference, reconstruction minus original", [difference_layer(original, reconstruction, unit=unit)]))
    return [(title, slices_picture(layers, at)) for title, layers in found]


def anomaly_picture(
    original: Volume,
    reconstruction: Volume,
    errors: Volume,
    *,
    lesions: np.ndarray | None = None,
    limit: float | None = None,
    unit: str = "HU",
    at: Sequence[int] | None = None,
) -> bytes:
    """Draw a volume, what a model made of it and where that is far off, in three planes through the worst place.

    Args:
        original: the volume.
        reconstruction: of the same size.
        errors: a map of one channel, 0 where all is well.
        lesions: where they are known to be, bool ``[I, J, K]``; a row of its own.
        limit: of the map's strongest colour; by default the map's 99.9th percentile, rounded up.
        unit: of the map.
        at: indices of the point that the planes go through; where the map, averaged over neighbours, is highest by default.

    Returns:
        PNG bytes.
    """
    from scipy.ndimage import uniform_filter

    if at is None:
        # Of a single voxel noise would say where.
        near = uniform_filter(errors.array[0], 3, mode="nearest")
        at = [int(i) for i in np.unravel_index(int(near.argmax()), near.shape)]
    low, high = display_range(original)
    limit = round_up(limit or float(np.percentile(errors.array, 99.9)))
    layers = [
        Layer("original", original, low, high),
        Layer("reconstruction", reconstruction, low, high),
        Layer("error", errors, 0, limit, colours="magma", unit=unit),
    ]
    if lesions is not None and lesions.any():
        marked = errors.with_array(lesions[None].astype(np.float32))
        layers.append(Layer("lesion", marked, 0, 1.4, colours="autumn", over=original, over_range=(low, high)))
    return slices_picture(layers, at)


def thumbnail(volume: Volume, *, side: int = 160) -> np.ndarray:
    """Return the three middle planes side by side as pixels.

    Args:
        volume: any.
        side: height of the picture in pixels.

    Returns:
        ``[side, width, 3]`` uint8.
    """
    from PIL import Image

    low, high = display_range(volume)
    tiles = []
    cuts = planes(volume)
    scale = side / max(length for plane in cuts for length in plane.extent)
    for plane in cuts:
        pixels = _shades(plane, low, high)
        tall, wide = plane.extent
        size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
        tile = Image.fromarray(pixels).resize(
            size, Image.Resampling.BOX if pixels.shape[0] > size[1] else Image.Resampling.NEAREST
        )
        canvas = Image.new("RGB", (size[0] + 4, side), (0, 0, 0))
        canvas.paste(tile, (2, (side - size[1]) // 2))
        tiles.append(np.asarray(canvas))
    return np.concatenate(tiles, axis=1)


def png_of_pixels(pixels: np.ndarray) -> bytes:
    """Return pixels ``[H, W, 3]`` uint8 as PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def round_up(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten; 1 for 0.

    Example:
        >>> round_up(37), round_up(120), round_up(0.011), round_up(0)
        (50.0, 200.0, 0.02, 1.0)
    """
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    nice = next(factor for factor in (1, 2, 5, 10) if value <= factor * power * (1 + 1e-9))
    return float(f"{nice * power:.12g}")


# -- inside


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _shades(plane: Plane, low: float, high: float) -> np.ndarray:
    values = torch.from_numpy(np.ascontiguousarray(plane.pixels).astype(np.float32))[None]
    if plane.pixels.shape[0] == 3:
        # Channels of a volume are signals, not red, green and blue: a fourth, dark one has them laid over each other.
        values = torch.cat([values, torch.full_like(values[:, :1], low)], 1)
    return to_pixels(values, (low, high))[0]


def _draw(axes: Any, plane: Plane, layer: Layer, below: Plane | None) -> Any:
    aspect = plane.spacing[0] / plane.spacing[1]
    look = {"aspect": aspect, "interpolation": "nearest"}
    if len(plane.pixels) > 1:
        drawn = axes.imshow(_shades(plane, layer.low, layer.high), **look)
    elif below is None:
        drawn = axes.imshow(plane.pixels[0], cmap=layer.colours, vmin=layer.low, vmax=layer.high, **look)
    else:
        axes.imshow(_shades(below, *layer.over_range), **look)
        values = plane.pixels[0].astype(np.float32)
        strength = np.clip((values - layer.low) / (layer.high - layer.low), 0, 1)
        drawn = axes.imshow(
            values, cmap=layer.colours, vmin=layer.low, vmax=layer.high, alpha=np.sqrt(strength).clip(0, 0.85), **look
        )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    left, right, top, bottom = plane.letters
    outline = _outline()
    for text, x, y, ha, va in (
        (left, 0.015, 0.5, "left", "center"),
        (right, 0.985, 0.5, "right", "center"),
        (top, 0.5, 0.985, "center", "top"),
        (bottom, 0.5, 0.015, "center", "bottom"),
    ):
        if text:
            axes.text(x, y, text, transform=axes.transAxes, ha=ha, va=va, path_effects=outline, **_EDGE)
    return drawn


def _outline() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.6, foreground="#000000")]


def _colour_bar(figure: Any, axes: Any, drawn: Any, layer: Layer) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # Of its own scale: that of a heat map would be as clear as its lowest values.
    scale = ScalarMappable(Normalize(layer.low, layer.high), drawn.cmap)
    place = axes.get_position()
    width, height = 0.012, max(place.height * 0.9, 0.35 / figure.get_figheight())
    middle = place.y0 + place.height / 2
    inset = figure.add_axes((1 - _ROOM / _WIDTH + 0.012, middle - height / 2, width, height))
    bar = figure.colorbar(scale, cax=inset)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    bar.set_ticks([layer.low, (layer.low + layer.high) / 2, layer.high])
    if layer.unit:
        bar.set_label(layer.unit, fontsize=8, color=MUTED)
