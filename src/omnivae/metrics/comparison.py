"""``compare``: is the difference between two evaluations on the same images real?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omnivae.component import suggestion
from omnivae.metrics.card import SHOWN
from omnivae.metrics.compatibility import check_inputs, comparable_metrics, remarks
from omnivae.metrics.evaluation import Evaluation
from omnivae.metrics.intervals import bootstrap_interval
from omnivae.metrics.paired import (
    ALPHA,
    detectable_difference,
    fewest_images,
    holm,
    sign_flip_test,
    wilcoxon_test,
)

if TYPE_CHECKING:
    from rich.table import Table

#: Images named at either end of a metric's differences.
EXTREMES = 3
HEADER = ("metric", "A", "B", "B - A", "95 % interval", "p", "Wilcoxon", "verdict")


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
        """The result in words."""
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
        gap = f"{name} {_signed(d.mean)}{unit} [{_short(d.low)}, {_short(d.high)}]"
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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with beside.open("w") as file:
                file.write(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path

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
                    f"{_short(d.low)} to {_short(d.high)}",
                    _p(d.p_corrected).removeprefix("p = ").removeprefix("p "),
                    _p(d.p_wilcoxon).removeprefix("p = ").removeprefix("p "),
                    f"{d.winner} is better" if d.winner else "no difference shown",
                )
            )
        for name, (a, b) in self.whole.items():
            rows.append((name, _short(a), _short(b), _signed(b - a), "", "", "", "no test: one number each"))
        return rows

    def table(self) -> Table:
        """Return a rich table of the metrics."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for column in HEADER:
            table.add_column(column, justify="left" if column in ("metric", "verdict") else "right")
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
        lines.append(f"{self.images:,} images{of}, p corrected for {len(self.differences)} metrics (Holm)")
        name, d = next(iter(self.differences.items()))
        for side, pairs in d.extremes().items():
            if pairs:
                shown = ", ".join(f"{key} ({_signed(value)})" for key, value in pairs)
                lines.append(f"{name} speaks most for {side}: {shown}")
        lines += [f"note: {note}" for note in self.notes]
        return lines


def compare(
    a: Evaluation | str | Path,
    b: Evaluation | str | Path,
    *,
    metrics: Sequence[str] | None = None,
    common: bool = False,
    flips: int = 10_000,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations on the same images: pair their values by key and test the mean difference.

    For each metric: the mean of B - A with its 95 % bootstrap interval (images resampled in pairs), the p-value of a
    sign-flip permutation test, corrected for the number of metrics (Holm), and that of Wilcoxon's signed-rank test. A
    difference is called real where the corrected p-value is below 0.05.

    What is tested is whether B would be ahead on other images like these; two trainings of one configuration also differ
    by their seeds, which one model of each cannot show.

    Args:
        a: an evaluation, its JSON file, or a run that holds one.
        b: the other.
        metrics: names; by default all that both have and that can be compared.
        common: compare the images that both have, where they are not the same.
        flips: random sign patterns; all patterns where there are no more.
        bootstrap: resamples of the interval.
        seed: of both.

    Returns:
        The differences and a verdict.

    Raises:
        FileNotFoundError: when a card does not exist.
        ValueError: where the images, their preprocessing or the versions of a metric differ, and where nothing is left to
            compare; says which.

    Example:
        >>> from omnivae import DataConfig, conv_vae, evaluate, load_data
        >>> digits = load_data(DataConfig("digits"), value_range=(0, 1)).test
        >>> small, large = (evaluate(conv_vae(in_channels=1, image_size=8, latent_dim=n), digits) for n in (2, 16))
        >>> compare(small, large).images
        180
    """
    if flips < 100 or bootstrap < 100:
        raise ValueError(f"got flips={flips} and bootstrap={bootstrap}; expected at least 100 of each")
    first, second = (x if isinstance(x, Evaluation) else Evaluation.from_json(x) for x in (a, b))
    for name, evaluation in (("A", first), ("B", second)):
        if not evaluation.card or not evaluation.inputs:
            raise ValueError(
                f"evaluation {name} has no card, so its images are not known; make it with omnivae.evaluate"
            )
    _check_names(metrics, first, second)
    keys = check_inputs(first, second, common=common)
    notes = remarks(first, second, len(keys))
    chosen, left_out = comparable_metrics(first, second, metrics)
    notes += left_out

    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    whole: dict[str, tuple[float, float]] = {}
    for name in chosen:
        if name not in first.per_image:
            whole[name] = (first.metrics[name].mean, second.metrics[name].mean)
            continue
        pair = tuple(np.array([e.per_image[name][key] for key in keys]) for e in (first, second))
        undefined = int((~(np.isfinite(pair[0]) & np.isfinite(pair[1]))).sum())
        if undefined:
            notes.append(f"{name} is left out: {undefined} of {len(keys)} pairs have an infinite or undefined value")
        else:
            values[name] = (pair[0], pair[1])
    if not values:
        raise ValueError(" ".join(["there is no metric to compare.", *(f"{note}." for note in notes)]))
    if len(keys) != first.images and whole:
        notes.append(f"{', '.join(whole)}: of all images of each card, not of the common ones")
    corrected = holm([sign_flip_test(y - x, flips=flips, seed=seed) for x, y in values.values()])
    differences = {
        name: _difference(
            first, name, keys, pair, p_corrected=p, tests=len(values), flips=flips, bootstrap=bootstrap, seed=seed
        )
        for (name, pair), p in zip(values.items(), corrected, strict=True)
    }
    return Comparison(
        differences=differences,
        images=len(keys),
        cards=(first.card, second.card),
        whole=whole,
        notes=notes,
        settings={"flips": flips, "bootstrap": bootstrap, "seed": seed, "alpha": ALPHA, "correction": "Holm"},
    )


# -- inside


def _difference(
    evaluation: Evaluation,
    name: str,
    keys: Sequence[str],
    pair: tuple[np.ndarray, np.ndarray],
    *,
    p_corrected: float,
    tests: int,
    flips: int,
    bootstrap: int,
    seed: int,
) -> Difference:
    known: Mapping[str, Any] = evaluation.card["metrics"][name]
    differences = pair[1] - pair[0]
    low, high = bootstrap_interval(differences, bootstrap, seed=seed)
    assert low is not None  # at least 100 resamples
    assert high is not None
    return Difference(
        unit=known["unit"],
        better=known["better"],
        mean_a=float(pair[0].mean()),
        mean_b=float(pair[1].mean()),
        mean=float(differences.mean()),
        low=low,
        high=high,
        p=sign_flip_test(differences, flips=flips, seed=seed),
        p_corrected=p_corrected,
        p_wilcoxon=wilcoxon_test(differences),
        detectable=detectable_difference(differences, tests=tests),
        per_image=dict(zip(keys, differences.tolist(), strict=True)),
    )


def _check_names(metrics: Sequence[str] | None, a: Evaluation, b: Evaluation) -> None:
    if metrics is not None and not metrics:
        raise ValueError("got no metric to compare; leave metrics out to compare all")
    for name in metrics or ():
        for side, evaluation in (("A", a), ("B", b)):
            if name not in evaluation.metrics:
                raise ValueError(
                    f"card {side} has no metric {name!r}{suggestion(name, evaluation.metrics)}; it has "
                    f"{', '.join(evaluation.metrics)}"
                )


def _short(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    return f"{value:.4g}"


def _signed(value: float) -> str:
    return f"+{_short(value)}" if value > 0 else _short(value)


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"
