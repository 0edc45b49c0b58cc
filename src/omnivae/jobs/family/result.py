"""What a comparison of recipes found: figures with error bars over seeds, as table, picture and page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from omnivae.files import write_atomic
from omnivae.jobs.family.plan import Plan
from omnivae.metrics import Evaluation
from omnivae.metrics.registry import METRICS
from omnivae.recipes import MEMBERS
from omnivae.report.family import Column, family_figure, family_page

if TYPE_CHECKING:
    from rich.table import Table

#: What every run has beside the metrics: name -> (unit, better, meaning).
COSTS = {
    "seconds": ("s", "lower", "wall-clock seconds of the training process, start included"),
    "memory": ("MiB", "lower", "largest resident memory of the training process"),
    "parameters": ("M", "lower", "parameters of the model, in millions"),
}


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        recipe: its name.
        seed: of weights, order and noise.
        parameters: of the model.
        seconds: of the training process.
        peak_mib: its largest resident memory.
        evaluation: on the common test images.
        missing: reason for each metric that the model or the data lack.
    """

    recipe: str
    seed: int
    parameters: int
    seconds: float
    peak_mib: float
    evaluation: Evaluation
    missing: dict[str, str]

    def value(self, name: str) -> float:
        """Return a figure by name; NaN where there is none."""
        costs = {"seconds": self.seconds, "memory": self.peak_mib, "parameters": self.parameters / 1e6}
        if name in costs:
            return costs[name]
        found = self.evaluation.metrics.get(name)
        return math.nan if found is None else found.mean


@dataclass(frozen=True)
class FamilyResult:
    """All runs of a comparison.

    Attributes:
        plan: what was trained.
        metrics: names of the metrics that were asked for.
        runs: one for each recipe and seed.
    """

    plan: Plan
    metrics: Sequence[str]
    runs: Sequence[Run]

    def columns(self) -> list[Column]:
        """Return the columns that any run has a figure for: name, unit, direction and each recipe's values over seeds."""
        result = []
        for name in (*self.metrics, *COSTS):
            if name in COSTS:
                unit, better, meaning = COSTS[name]
            else:
                unit, better, meaning = METRICS[name].unit, METRICS[name].better, METRICS[name].meaning
            values = {
                recipe: [v for r in self.runs if r.recipe == recipe and not math.isnan(v := r.value(name))]
                for recipe in self.plan.recipes
            }
            if any(values.values()):
                result.append(Column(name, unit, better, meaning, values))
        return result

    def notes(self) -> list[str]:
        """Return what a reader must know: the budget, the error bars, what is missing and why."""
        plan = self.plan
        bars = "mean ± standard deviation over seeds" if len(plan.seeds) > 1 else "one seed, so no error bars"
        lines = [
            f"{plan.steps} steps of {plan.batch_size} images each, seeds {', '.join(map(str, plan.seeds))}; {bars}; "
            f"{self.runs[0].evaluation.images} test images; NLL with {plan.num_samples_nll} importance samples",
            *plan.ignored(),
        ]
        reasons: dict[tuple[str, str], list[str]] = {}
        for run in self.runs:
            for name, reason in run.missing.items():
                owners = reasons.setdefault((name, reason), [])
                if run.recipe not in owners:
                    owners.append(run.recipe)
        everyone = list(plan.recipes)
        lines += [
            f"no {name}{'' if owners == everyone else ' for ' + ', '.join(owners)}: {reason}"
            for (name, reason), owners in reasons.items()
        ]
        remarks = {f"{name}: {text}" for run in self.runs for name, text in run.evaluation.remarks.items()}
        return lines + sorted(remarks)

    def rows(self) -> list[list[str]]:
        """Return the cells of the table, one row a recipe, its name first."""
        columns = self.columns()
        return [[recipe, *(cell(column.values[recipe]) for column in columns)] for recipe in self.plan.recipes]

    def table(self) -> Table:
        """Return the table for a terminal: a column for each recipe, as there are more figures than fit side by side."""
        from rich.table import Table

        table = Table(title=f"{self.plan.data.path}, {self.plan.steps} steps")
        table.add_column("")
        for recipe in self.plan.recipes:
            table.add_column(recipe, justify="right")
        for column in self.columns():
            table.add_row(column.heading, *(cell(column.values[recipe]) for recipe in self.plan.recipes))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the plan, and every figure of every run."""
        return {
            "plan": self.plan.to_dict(),
            "members": {r: {"paper": MEMBERS[r].paper, "equation": MEMBERS[r].equation} for r in self.plan.recipes},
            "columns": {
                c.name: {"unit": c.unit, "better": c.better, "meaning": c.meaning, "values": c.values}
                for c in self.columns()
            },
            "notes": self.notes(),
        }

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        columns = self.columns()
        lines = [
            f"| recipe | {' | '.join(c.heading for c in columns)} |",
            f"|---|{'---:|' * len(columns)}",
            *(f"| {' | '.join(row)} |" for row in self.rows()),
            "",
            *(f"- {note}" for note in self.notes()),
        ]
        return "\n".join(lines) + "\n"

    def write(self, directory: Path) -> None:
        """Write ``family.json``, ``family.md``, ``family.png`` and ``family.html``."""
        columns = self.columns()
        figure = family_figure(columns, list(self.plan.recipes))
        pictures = []
        for recipe in self.plan.recipes:
            found = sorted(
                (directory / "runs" / recipe / f"seed-{self.plan.seeds[0]}" / "run" / "pictures").glob("*.png")
            )
            if found:
                pictures.append((recipe, found[-1].read_bytes()))
        facts = [(r, f"{MEMBERS[r].equation} — {MEMBERS[r].paper}") for r in self.plan.recipes]
        page = family_page(
            f"The family on {Path(self.plan.data.path).name}",
            self.notes(),
            columns,
            self.rows(),
            figure,
            facts,
            pictures,
        )
        write_atomic(directory / "family.json", json.dumps(self.to_dict(), indent=2, ensure_ascii=False).encode())
        write_atomic(directory / "family.md", self.to_markdown().encode())
        write_atomic(directory / "family.png", figure)
        write_atomic(directory / "family.html", page.encode())


def cell(values: Sequence[float]) -> str:
    """Return a mean and its standard deviation over seeds, as many digits as the deviation allows.

    Args:
        values: one for each seed.

    Returns:
        Text; a dash where there is no value.

    Example:
        >>> cell([101.23, 101.31, 101.5]), cell([0.5]), cell([])
        ('101.35 ± 0.14', '0.5', '–')
    """
    if not values:
        return "–"
    if len(values) == 1 or stdev(values) == 0:
        return f"{values[0]:.4g}"
    spread = stdev(values)
    digits = min(4, max(0, 1 - math.floor(math.log10(spread))))
    return f"{mean(values):.{digits}f} ± {spread:.{digits}f}"
