"""The result of an evaluation: means with intervals, per-image values, the card, JSON and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from omnivae.metrics.card import FORMAT, describe, write_json
from omnivae.metrics.registry import METRICS

if TYPE_CHECKING:
    from rich.table import Table


HEADER = ("metric", "mean", "95 % interval", "unit", "better")
RIGHT = ("mean", "95 % interval")


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
        card: what was measured, on what, with which versions, see :func:`~omnivae.metrics.card.make_card`.
        inputs: first digits of the hash of each image, by key, in sorted order.
        remarks: a sentence for each metric of whose numbers a reader must know something.
        details: what else there is of a metric, such as a matrix of mutual information, by its name.
    """

    metrics: dict[str, MetricResult]
    images: int
    per_image: dict[str, dict[str, float]]
    kl_per_dimension: list[float] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, str]:
        """The remarks, and a sentence for each metric with infinite or undefined values, which JSON writes as ``null``."""
        notes = dict(self.remarks)
        for name, values in self.per_image.items():
            infinite = sum(math.isinf(v) for v in values.values())
            undefined = sum(math.isnan(v) for v in values.values())
            if infinite:
                reason = " (the reconstruction equals the image)" if name == "psnr" else ""
                _append(
                    notes, name, f"{infinite} of {len(values)} values are infinite{reason}; they are written as null"
                )
            if undefined:
                _append(notes, name, f"{undefined} of {len(values)} values are not a number; they are written as null")
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
            "card": self.card,
            "inputs": self.inputs,
        }
        if self.remarks:
            content["remarks"] = self.remarks
        if self.details:
            content["details"] = self.details
        if self.notes:
            content["notes"] = self.notes
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "this card") -> Self:
        """Return the evaluation that :meth:`to_dict` described; ``null`` becomes NaN.

        Args:
            content: the content of the JSON file.
            source: where it is from, for messages.

        Raises:
            ValueError: when it is no card, or one of a newer omnivae.
        """
        card = content.get("card")
        if not isinstance(card, dict) or "format" not in card:
            raise ValueError(
                f"{source} is not the card of an evaluation; write one with `omnivae evaluate MODEL --json FILE`"
            )
        if card["format"] > FORMAT:
            raise ValueError(
                f"{source} was written by a newer omnivae (card format {card['format']}, this one reads {FORMAT}): upgrade omnivae"
            )
        try:
            return cls(
                metrics={
                    name: MetricResult(_number(r["mean"]), r["low"], r["high"], card["metrics"][name]["unit"])
                    for name, r in content["metrics"].items()
                },
                images=content["images"],
                per_image={
                    name: {key: _number(value) for key, value in values.items()}
                    for name, values in content["per_image"].items()
                },
                kl_per_dimension=[_number(value) for value in content["kl_per_dimension"]],
                settings=content["settings"],
                card=card,
                inputs=content["inputs"],
                remarks=content.get("remarks", {}),
                details=content.get("details", {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{source} is damaged: {type(error).__name__} {error}; evaluate again") from error

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a card.

        Args:
            path: the JSON file, or a run that holds one as ``evaluation.json``.

        Returns:
            The evaluation.

        Raises:
            FileNotFoundError: when there is none.
            ValueError: when the file is no card.
        """
        path = Path(path)
        file = path / "evaluation.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"no evaluation card at {file}; write one with `omnivae evaluate MODEL --json {file.name}`"
            )
        try:
            content = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not the card of an evaluation: not JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} is not the card of an evaluation: it holds a {type(content).__name__}")
        return cls.from_dict(content, str(file))

    def to_json(self, path: str | Path) -> Path:
        """Write ``{"metrics": {name: {"mean", "low", "high"}}, "images", "per_image", "settings", ...}``.

        Infinite and undefined values become ``null``, with a sentence under ``notes``. The file appears whole or
        not at all.

        Args:
            path: where; missing folders are created.

        Returns:
            The path.
        """
        return write_json(Path(path), self.to_dict())

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return a row for each metric: name, mean, 95 % interval, unit, and which direction is better."""
        rows: list[tuple[str, str, str, str, str]] = []
        for name, result in self.metrics.items():
            interval = (
                "-" if result.low is None or result.high is None else f"{_short(result.low)} to {_short(result.high)}"
            )
            better = METRICS[name].better if name in METRICS else ""
            rows.append((name, _short(result.mean), interval, result.unit, better))
        return rows

    def table(self) -> Table:
        """Return a rich table of the metrics; :meth:`lines` belongs below it."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for column in HEADER:
            table.add_column(column, justify="right" if column in RIGHT else "left", no_wrap=column == "metric")
        for row in self.rows():
            table.add_row(*row)
        return table

    def to_text(self) -> str:
        """Return the table as plain text."""
        rows = [HEADER, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        lines = [
            "  ".join(
                cell.rjust(width) if HEADER[i] in RIGHT else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(len(line) for line in lines))
        return "\n".join([*lines, *self.lines()])

    def lines(self) -> list[str]:
        """Return the card in a few lines, and the notes."""
        known = describe(self.card) if self.card else [("images", f"{self.images:,} images")]
        width = max(len(heading) for heading, _ in known)
        notes = [f"{name}: {note}" for name, note in self.notes.items()]
        return [*(f"{heading:<{width}}  {line}" for heading, line in known), *notes]


def _append(notes: dict[str, str], name: str, sentence: str) -> None:
    notes[name] = f"{notes[name]}; {sentence}" if name in notes else sentence


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:#.5g}".rstrip(".")
