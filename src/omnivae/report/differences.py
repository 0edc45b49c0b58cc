"""The picture of a comparison: the difference of every image, for each metric, with the mean and its interval."""

from __future__ import annotations

import math

import numpy as np

from omnivae.metrics import Comparison
from omnivae.report.plots import BLUE, GREY, INK, MUTED, ORANGE, figure_of, png_of, style_axes


def difference_picture(comparison: Comparison, *, columns: int = 3) -> bytes:
    """Draw the paired differences B - A: one panel a metric, images in the order of their difference.

    Blue bars are images on which B is better, orange ones images on which A is. The line is the mean difference and the
    band its 95 % interval; where the band leaves out zero, the difference is more than chance.

    Args:
        comparison: of two evaluations.
        columns: panels in a row.

    Returns:
        PNG bytes.
    """
    names = list(comparison.differences)
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = figure_of(3.9 * columns, 2.7 * rows)
    for index, name in enumerate(names):
        d = comparison.differences[name]
        axes = figure.add_subplot(rows, columns, index + 1)
        style_axes(axes, grid="y")
        values = np.sort(np.array(list(d.per_image.values())))
        for_b = values > 0 if d.better == "higher" else values < 0
        places = np.arange(len(values))
        for chosen, colour in ((for_b, BLUE), (~for_b, ORANGE)):
            # Filled steps: thin bars of thousands of images would vanish between the pixels.
            axes.fill_between(places, np.where(chosen, values, 0), step="mid", color=colour, alpha=0.75, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.axhspan(d.low, d.high, color=GREY, alpha=0.55, linewidth=0)
        axes.axhline(d.mean, color=INK, linewidth=1.2)
        verdict = f"{d.winner} better" if d.winner else "no difference shown"
        axes.set_title(f"{name}: {verdict}", loc="left", fontsize=9.5, color=INK)
        axes.set_ylabel(f"B − A{f' ({d.unit})' if d.unit else ''}", fontsize=8.5, color=MUTED)
        axes.set_xlim(-0.5, len(values) - 0.5)
        if index >= len(names) - columns:
            axes.set_xlabel(f"{len(values):,} images, by their difference", fontsize=8.5, color=MUTED)
    return png_of(figure)
