"""The result of an evaluation: means with intervals, per-image values, JSON and tables."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnivae.metrics.registry import METRICS

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class MetricResult:
    """One metric over a dataset.

    Attributes:
        mean: mean over images, or the value itself for a metric of the whole dataset.
        low: lower end of the 95 % bootstrap interval of the mean, or ``None`` where there is none.
        high: upper end.
        unit: unit of all three.
    """

    mean: float
    low: float | None
    high: float | None
    unit: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`~omnivae.metrics.evaluate` returns.

    Attributes:
        metrics: result of each metric, by name.
        images: number of images.
        per_image: value of each per-image metric for each image's key, in sorted order.
        kl_per_dimension: mean KL of each latent dimension in nats; empty where the KL does not factorise.
        settings: seed, sample counts and value range that the numbers depend on.
    """

    metrics: dict[str, MetricResult]
    images: int
    per_image: dict[str, dict[str, float]]
    kl_per_dimension: list[float] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, str]:
        """A sentence for each metric that has infinite or undefined values, which JSON writes as ``null``."""
        notes = {}
        for name, values in self.per_image.items():
            infinite = sum(math.isinf(v) for v in values.values())
            undefined = sum(math.isnan(v) for v in values.values())
            if infinite:
                reason = " (the reconstruction equals the image)" if name == "psnr" else ""
                notes[name] = f"{infinite} of {len(values)} values are infinite{reason}; they are written as null"
            if undefined:
                notes[name] = f"{undefined} of {len(values)} values are not a number; they are written as null"
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file: only finite numbers, strings, lists, dicts and ``None``."""
        content: dict[str, Any] = {
            "metrics": {
                name: {"mean": _finite(r.mean), "low": _finite(r.low), "high": _finite(r.high)}
                for name, r in self.metrics.items()
            },
            "images": self.images,
            "per_image": {
                name: {key: _finite(value) for key, value in values.items()} for name, values in self.per_image.items()
            },
            "kl_per_dimension": [_finite(value) for value in self.kl_per_dimension],
            "settings": self.settings,
        }
        if self.notes:
            content["notes"] = self.notes
        return content

    def to_json(self, path: str | Path) -> Path:
        """Write ``{"metrics": {name: {"mean", "low", "high"}}, "images", "per_image", "settings", ...}``.

        Infinite and undefined values become ``null``, with a sentence under ``notes``. The file appears whole or
        not at all.

        Args:
            path: where; missing folders are created.

        Returns:
            The path.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return a row for each metric: name, mean, 95 % interval, unit, and which direction is better."""
        rows: list[tuple[str, str, str, str, str]] = []
        for name, result in self.metrics.items():
            interval = (
                "" if result.low is None or result.high is None else f"{_short(result.low)} to {_short(result.high)}"
            )
            better = METRICS[name].better if name in METRICS else ""
            rows.append((name, _short(result.mean), interval, result.unit, better))
        return rows

    def table(self) -> Table:
        """Return a rich table of the metrics."""
        from rich.table import Table

        table = Table(
            title=f"{self.images} images", title_justify="left", caption=self._caption(), caption_justify="left"
        )
        for column, justify in (
            ("metric", "left"),
            ("mean", "right"),
            ("95 % interval", "right"),
            ("unit", "left"),
            ("better", "left"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in self.rows():
            table.add_row(*row)
        return table

    def to_text(self) -> str:
        """Return the table as plain text."""
        header = ("metric", "mean", "95 % interval", "unit", "better")
        rows = [header, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.rjust(width) if i in (1, 2) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(len(line) for line in lines))
        caption = self._caption()
        return "\n".join([*lines, f"{self.images} images", *([caption] if caption else [])])

    def _caption(self) -> str | None:
        return "\n".join(f"{name}: {note}" for name, note in self.notes.items()) or None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:#.5g}".rstrip(".")
