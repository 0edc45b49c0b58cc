"""The result of a comparison: differences with intervals and tests, a verdict in words, JSON and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnivae.metrics.card import SHOWN, write_json
from omnivae.metrics.paired import ALPHA, fewest_images

if TYPE_CHECKING:
    from rich.table import Table

#: Images named at either end of a metric's differences.
EXTREMES = 3
HEADER = ("metric", "A", "B", "B - A", "95 % interval", "p", "better")


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations, image by image.

    Attributes:
        unit: of all values.
        better: which direction is better.
        mean_a: mean of A over the images compared.
        mean_b: mean of B.
        mean: mean of B - A.
        low: lower end of its 95 % bootstrap interval, images resampled in pairs.
        high: upper end.
        p: of the sign-flip test, as it is.
        p_corrected: corrected for the number of metrics compared (Holm).
        p_wilcoxon: of the signed-rank test, as it is.
        detectable: smallest true difference that these images would show in 80 % of repetitions.
        per_image: B - A of each image, by key, in sorted order.
    """

    unit: str
    better: Literal["higher", "lower"]
    mean_a: float
    mean_b: float
    mean: float
    low: float
    high: float
    p: float
    p_corrected: float
    p_wilcoxon: float
    detectable: float
    per_image: dict[str, float]

    @property
    def winner(self) -> Literal["A", "B"] | None:
        """The model that is better by more than chance, or ``None``."""
        if self.p_corrected >= ALPHA or self.mean == 0:
            return None
        return "B" if (self.mean > 0) == (self.better == "higher") else "A"

    def extremes(self) -> dict[str, list[tuple[str, float]]]:
        """Return the images on which B is furthest ahead of A ("B") and furthest behind ("A"), with their differences."""
        sign = 1 if self.better == "higher" else -1
        ranked = sorted(self.per_image.items(), key=lambda pair: (-sign * pair[1], pair[0]))
        return {
            "B": [pair for pair in ranked[:EXTREMES] if sign * pair[1] > 0],
            "A": [pair for pair in ranked[::-1][:EXTREMES] if sign * pair[1] < 0],
        }


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns.

    Attributes:
        differences: result of each metric, by name.
        images: number of images compared.
        cards: the cards of A and B.
        whole: means of metrics of the whole dataset in A and B, which no test can tell apart.
        notes: what a reader must know: metrics left out and why, differences of machine or seed.
        settings: number of sign flips and resamples, and their seed.
    """

    differences: dict[str, Difference]
    images: int
    cards: tuple[dict[str, Any], dict[str, Any]]
    whole: dict[str, tuple[float, float]]
    notes: list[str]
    settings: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The result in words; differences are the better model's value minus the other's."""
        if all(not any(d.per_image.values()) for d in self.differences.values()):
            return f"A and B are equal to the last digit on all {self.images:,} images."
        sides = {side: [n for n, d in self.differences.items() if d.winner == side] for side in ("A", "B")}
        open_ = [n for n, d in self.differences.items() if d.winner is None]
        sentences = []
        if sides["A"] and sides["B"]:
            sentences.append("Neither is better in everything.")
        sentences += [
            f"{side} is better: {'; '.join(self._finding(n) for n in names)}." for side, names in sides.items() if names
        ]
        if open_:
            sentences.append(self._open(open_))
        return " ".join(sentences)

    def _finding(self, name: str) -> str:
        d = self.differences[name]
        unit = f" {d.unit}" if d.unit else ""
        mean, low, high = (d.mean, d.low, d.high) if d.winner == "B" else (-d.mean, -d.high, -d.low)
        gap = f"{name} {_signed(mean)}{unit} [{_brief(low)}, {_brief(high)}]"
        return f"{gap}, {_p(d.p_corrected)}"

    def _open(self, names: list[str]) -> str:
        tests = len(self.differences)
        fewest = fewest_images(tests)
        if self.images < fewest:
            return f"{self.images} images are too few to tell: with {tests} metric{'s' * (tests > 1)} it takes at least {fewest}."
        parts = []
        for name in names:
            d = self.differences[name]
            size = f"{_short(d.detectable)}{f' {d.unit}' if d.unit else ''}"
            parts.append(f"{name} {'all equal' if d.detectable == 0 else size}")
        return (
            f"No difference that these {self.images:,} images could show in {', '.join(names)}; the smallest that they would "
            f"show in 80 % of repetitions: {', '.join(parts)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file; B - A throughout."""
        return {
            "verdict": self.verdict,
            "images": self.images,
            "differences": {
                name: {
                    "unit": d.unit,
                    "better": d.better,
                    "a": d.mean_a,
                    "b": d.mean_b,
                    "mean": d.mean,
                    "low": d.low,
                    "high": d.high,
                    "p": d.p,
                    "p_corrected": d.p_corrected,
                    "p_wilcoxon": d.p_wilcoxon,
                    "detectable": d.detectable,
                    "winner": d.winner,
                    "most": {side: [list(pair) for pair in pairs] for side, pairs in d.extremes().items()},
                    "per_image": d.per_image,
                }
                for name, d in self.differences.items()
            },
            "whole": {name: list(pair) for name, pair in self.whole.items()},
            "notes": self.notes,
            "settings": self.settings,
            "cards": {"A": self.cards[0], "B": self.cards[1]},
        }

    def to_json(self, path: str | Path) -> Path:
        """Write the result; the file appears whole or not at all.

        Args:
            path: where; missing folders are created.

        Returns:
            The path.
        """
        return write_json(Path(path), self.to_dict())

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each metric, see ``HEADER``."""
        rows: list[tuple[str, ...]] = []
        for name, d in self.differences.items():
            rows.append(
                (
                    f"{name} ({d.unit})" if d.unit else name,
                    _short(d.mean_a),
                    _short(d.mean_b),
                    _signed(d.mean),
                    f"{_brief(d.low)} to {_brief(d.high)}",
                    _p(d.p_corrected).removeprefix("p ").removeprefix("= "),
                    d.winner or "open",
                )
            )
        for name, (a, b) in self.whole.items():
            rows.append((name, _short(a), _short(b), _signed(b - a), "no test", "", ""))
        return rows

    def table(self) -> Table:
        """Return a rich table of the metrics."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
        for column in HEADER:
            table.add_column(column, justify="left" if column in ("metric", "better") else "right", no_wrap=True)
        for row in self.rows():
            table.add_row(*row)
        return table

    def lines(self) -> list[str]:
        """Return what belongs around the table: the two models, the extreme images, the notes and the verdict."""
        lines = []
        for side, card in zip("AB", self.cards, strict=True):
            model, data = card["model"], card["data"]
            known = f", sha256 {model['hash'][:SHOWN]}" if model["hash"] else ""
            lines.append(f"{side}  {model['recipe'] or model['name']}, {model['parameters']:,} parameters{known}")
        data = self.cards[0]["data"]
        of = f" of {data['name']}" if data["name"] else ""
        tests = len(self.differences)
        lines.append(
            f"{self.images:,} images{of}; p of a sign-flip test"
            + (f", corrected for {tests} metrics (Holm)" if tests > 1 else "")
        )
        disagree = [n for n, d in self.differences.items() if (d.winner is not None) != (d.p_wilcoxon < ALPHA / tests)]
        lines.append(
            f"Wilcoxon's signed-rank test disagrees about {', '.join(disagree)}"
            if disagree
            else "Wilcoxon's signed-rank test agrees"
        )
        name, d = next(iter(self.differences.items()))
        for side, pairs in d.extremes().items():
            if pairs:
                shown = ", ".join(f"{key} ({_signed(value)})" for key, value in pairs)
                lines.append(f"{name} speaks most for {side}: {shown}")
        lines += [f"note: {note}" for note in self.notes]
        if any(d.winner for d in self.differences.values()):
            lines.append(
                "note: this tells two trained models apart; the same recipe with another seed is another model"
            )
        return lines


def _short(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    return f"{value:.4g}"


def _brief(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def _signed(value: float) -> str:
    return f"+{_short(value)}" if value > 0 else _short(value)


def _p(value: float) -> str:
    # 10,000 random sign patterns cannot give less.
    return "p ≤ 0.0001" if value <= 1.0001e-4 else f"p = {value:.2g}"
