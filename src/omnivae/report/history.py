"""Reads a run's ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path


def read_history(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run.

    Args:
        path: a CSV file with a header ``step,epoch,<name>,...``; cells of values that were not logged are empty. A
            folder means the ``metrics.csv`` in it.

    Returns:
        Points (step, value) by name, in the order of the steps; of two values at one step the later line counts (a
        resumed run repeats some). "step", "epoch" and columns without any value are left out.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file without a step column, or a cell that is not a number; names the line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no training history at {path}; expected the metrics.csv of a run")
    history: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or []):
            raise ValueError(
                f"{path} has columns {reader.fieldnames or []}; expected 'step' and one for each logged value"
            )
        for row in reader:
            try:
                step = int(float(row["step"]))
                for name, cell in row.items():
                    if name not in ("step", "epoch", None) and cell:
                        history.setdefault(name, {})[step] = float(cell)
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {reader.line_num} of {path} is not a row of numbers: {error}") from error
    return {name: sorted(points.items()) for name, points in history.items()}
