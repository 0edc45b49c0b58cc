"""The picture and the page of a comparison of recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from omnivae.report.page import facts as facts_table
from omnivae.report.page import page, picture, section, table
from omnivae.report.plots import BLUE, INK, MUTED, figure_of, png_of, style_axes


@dataclass(frozen=True)
class Column:
    """One figure of every recipe.

    Attributes:
        name: of the metric.
        unit: of the values; an empty string where there is none.
        better: "higher" or "lower".
        meaning: one sentence.
        values: recipe to its values over seeds; empty where it has none.
    """

    name: str
    unit: str
    better: str
    meaning: str
    values: Mapping[str, Sequence[float]]

    @property
    def heading(self) -> str:
        """Name, unit and an arrow that points to the better end."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.name}{unit} {'↑' if self.better == 'higher' else '↓'}"


def family_figure(columns: Sequence[Column], recipes: Sequence[str], *, per_row: int = 3) -> bytes:
    """Draw one panel a figure: a dot for each seed, and mean and standard deviation of each recipe.

    Args:
        columns: the figures.
        recipes: from top to bottom.
        per_row: panels in a row.

    Returns:
        PNG bytes.
    """
    per_row = min(per_row, len(columns))
    rows = math.ceil(len(columns) / per_row)
    figure = figure_of(3.9 * per_row, (0.9 + 0.3 * len(recipes)) * rows)
    for index, column in enumerate(columns):
        axes = figure.add_subplot(rows, per_row, index + 1)
        style_axes(axes, grid="x")
        for place, recipe in enumerate(recipes):
            values = column.values[recipe]
            if not values:
                axes.annotate(
                    "none", (0.02, place), xycoords=("axes fraction", "data"), fontsize=8, color=MUTED, va="center"
                )
                continue
            axes.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.35, markersize=4, linestyle="none")
            spread = stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(mean(values), place, xerr=spread, fmt="|", color=INK, capsize=3, markersize=9, linewidth=1.2)
        axes.set_yticks(range(len(recipes)), recipes if index % per_row == 0 else [""] * len(recipes))
        axes.set_ylim(len(recipes) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(column.heading, loc="left", fontsize=9.5, color=INK)
    return png_of(figure)


def family_page(
    title: str,
    notes: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    figure: bytes,
    facts: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """Return the page of a comparison.

    Args:
        title: heading.
        notes: budget and remarks; the first is the lead.
        columns: the figures.
        rows: cells of the table, the recipe first.
        figure: PNG of :func:`family_figure`.
        facts: recipe, and what it minimises.
        pictures: recipe, and a PNG of images, reconstructions and samples.

    Returns:
        HTML, self-contained.
    """
    cells = table(["recipe", *(c.heading for c in columns)], rows, ["", *["number"] * len(columns)])
    how = "A dot a seed; bar and whiskers: mean and standard deviation over seeds. Arrows point to better."
    shown = "Test images, their reconstructions and draws from the prior, at the end of training."
    sections = [
        section("Table", notes[0], cells),
        section("Figure", how, picture(figure, "one panel a figure, one row a recipe", scale=2 / 3)),
        section("Recipes", "What each of them minimises.", facts_table(facts)),
        *(section(name, shown, picture(png, f"images of {name}")) for name, png in pictures),
        section("What the figures are", "", facts_table([(c.name, c.meaning) for c in columns])),
    ]
    if len(notes) > 1:
        sections.append(section("Notes", "", facts_table([(str(i + 1), note) for i, note in enumerate(notes[1:])])))
    return page(title, notes[0], sections, "Written by omnivae bench-family.")
