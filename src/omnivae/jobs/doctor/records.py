"""What a run has written, as the doctor's rules see it: curves, configuration, flight records, a look at data and model."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnivae.jobs.config import RunConfig, read_yaml
from omnivae.training import CHECKPOINTS

#: Images that are looked at.
LOOK_IMAGES = 64


@dataclass(frozen=True)
class Curve:
    """One logged quantity.

    Attributes:
        steps: optimiser steps, ascending.
        values: float64; NaN and infinities are what was logged.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def finite(self) -> np.ndarray:
        """The finite values."""
        return self.values[np.isfinite(self.values)]

    def part(self, start: float, stop: float = 1.0) -> np.ndarray:
        """Return the finite values between two shares of the curve, at least one where there is any."""
        low = min(int(len(self) * start), max(0, len(self) - 1))
        chosen = self.values[low : max(low + 1, math.ceil(len(self) * stop))]
        return chosen[np.isfinite(chosen)]

    def level(self, start: float = 0.8, stop: float = 1.0) -> float:
        """Return the median of a part, by default of the last fifth; NaN where nothing there is finite."""
        chosen = self.part(start, stop)
        return float(np.median(chosen)) if len(chosen) else math.nan

    def smooth(self, windows: int = 40) -> Curve:
        """Return the medians of ``windows`` equal parts: robust against spikes, comparable between runs."""
        if len(self) <= windows:
            return self
        parts = np.array_split(np.arange(len(self)), windows)
        kept = [
            (self.steps[p[-1]], np.median(v)) for p in parts if len(v := self.values[p][np.isfinite(self.values[p])])
        ]
        return Curve(np.array([s for s, _ in kept]), np.array([v for _, v in kept]))


@dataclass(frozen=True)
class Look:
    """What a few of the run's images are, and what the model makes of them.

    Attributes:
        low: smallest value.
        high: largest value.
        value_range: what the model is trained on.
        constant: names of images without contrast.
        constant_channels: channels that are the same everywhere in every image.
        images: how many were looked at.
        saturated: share of reconstructed pixels within 1 % of either end of the range; ``None`` without a model.
        saturated_data: the same share of the images.
        latent_size: elements of an image's latent; ``None`` without a model.
        variation: deviation of reconstructions between images over that of the images; ``None`` without a model.
    """

    low: float
    high: float
    value_range: tuple[float, float]
    constant: tuple[str, ...] = ()
    constant_channels: tuple[int, ...] = ()
    images: int = LOOK_IMAGES
    saturated: float | None = None
    saturated_data: float = 0.0
    variation: float | None = None
    latent_size: int | None = None


@dataclass(frozen=True)
class Record:
    """A run, read.

    Attributes:
        directory: the run.
        config: its configuration as plain data.
        curves: column of ``metrics.csv`` to curve.
        dimensions: KL of each latent dimension in nats at the last logged steps, averaged, ``[D]``; empty where unknown.
        flights: flight records, oldest first.
        look: data and model, where they were looked at.
        notes: what could not be read, one sentence each.
        checkpoint: whether there is a checkpoint to continue from.
        parameters: of the model, where known.
    """

    directory: Path
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    dimensions: np.ndarray = field(default_factory=lambda: np.zeros(0))
    flights: tuple[Mapping[str, Any], ...] = ()
    look: Look | None = None
    notes: tuple[str, ...] = ()
    checkpoint: bool = True
    parameters: int | None = None

    @property
    def step(self) -> int:
        """The last logged step."""
        return int(max((c.steps[-1] for c in self.curves.values() if len(c)), default=0))

    @property
    def total_steps(self) -> int | None:
        """Steps asked for; ``None`` where only epochs are, and none has been logged."""
        training = self.config.get("training", {})
        if training.get("max_steps") is not None:
            return int(training["max_steps"])
        if training.get("num_epochs") is None:
            return 1000
        epoch = self.curves.get("epoch")
        if epoch is None or not len(epoch) or epoch.values[-1] <= 0:
            return None
        return round(training["num_epochs"] * float(epoch.steps[-1] / epoch.values[-1]))

    def option(self, name: str, default: Any = None) -> Any:
        """Return a value of the configuration by its dotted name."""
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return default if value is None else value

    def weight(self, loss: str) -> float | None:
        """Return the weight of a loss at the end, as logged or configured; ``None`` where there is no such loss."""
        logged = self.curves.get(f"train/weight/{loss}")
        if logged is not None and len(logged.finite):
            return float(logged.finite[-1])
        configured = self.option(f"losses.{loss}.weight")
        return float(configured) if isinstance(configured, (int, float)) else None

    def terms(self) -> dict[str, float]:
        """Return each loss's share of the total, weighted, at the end: absolute values over their sum."""
        names = [n.removeprefix("train/weight/") for n in self.curves if n.startswith("train/weight/")]
        sizes = {n: abs(self.curves[f"train/{n}"].level() * self.curves[f"train/weight/{n}"].level()) for n in names
                 if f"train/{n}" in self.curves}  # fmt: skip
        total = sum(v for v in sizes.values() if math.isfinite(v))
        return {n: v / total for n, v in sizes.items() if math.isfinite(v)} if total > 0 else {}


def read_run(run: str | Path, *, look: bool = True) -> Record:
    """Read what a run has written.

    Args:
        run: its directory.
        look: also load a few of its images and its model.

    Returns:
        The record; what is missing is named in its ``notes``.

    Raises:
        FileNotFoundError: when the directory holds no run.
        ValueError: when ``metrics.csv`` or a flight record is damaged; names it.
    """
    directory = Path(run)
    if not (directory / "config.yaml").is_file():
        raise FileNotFoundError(
            f"no run at {directory}: expected a directory that `omnivae train` wrote, with config.yaml"
        )
    config = read_yaml(directory / "config.yaml")
    notes: list[str] = []
    curves = read_curves(directory / "metrics.csv")
    if not curves:
        notes.append("metrics.csv is missing or empty: the run stopped before its first step was logged")
    flights = tuple(_read_flight(path) for path in sorted((directory / "flight").glob("**/*.json")))
    record = Record(
        directory,
        config,
        curves,
        dimensions=_dimensions(read_curves(directory / "kl_per_dimension.csv")),
        flights=flights,
        notes=tuple(notes),
        checkpoint=(directory / CHECKPOINTS).is_dir() and any((directory / CHECKPOINTS).iterdir()),
    )
    return _looked_at(record) if look else record


def read_curves(path: Path) -> dict[str, Curve]:
    """Read a table of a run.

    Args:
        path: a CSV file with a ``step`` column; cells of values that were not logged are empty.

    Returns:
        Column to curve, without columns that hold nothing; nothing where there is no file.

    Raises:
        ValueError: for a cell that is not a number; names the line.
    """
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row.values() or not row.get("step"):
                continue  # a kill can leave half a line; the step is repeated when the run continues
            try:
                step = int(row["step"])
                for name, cell in row.items():
                    if name != "step" and cell:
                        points.setdefault(name, {})[step] = float(cell)
            except ValueError as error:
                raise ValueError(f"line {reader.line_num} of {path} is not a row of numbers: {error}") from error
    # Of two values at one step the later line counts: a continued run repeats some.
    return {
        name: Curve(np.array(sorted(column)), np.array([column[s] for s in sorted(column)], dtype=np.float64))
        for name, column in points.items()
    }


def _read_flight(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"the flight record {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the flight record {path} holds no fields; expected step, cause, files, ...")
    return content | {"path": str(path)}


def _dimensions(curves: Mapping[str, Curve]) -> np.ndarray:
    columns = [curves[name].level(0.9) for name in curves if name.startswith("d") and name[1:].isdigit()]
    return np.array(columns, dtype=np.float64)


@torch.no_grad()
def _looked_at(record: Record) -> Record:
    from omnivae.data import load_data
    from omnivae.jobs.conditions import needed_condition
    from omnivae.jobs.evaluate import load

    model: Any = None
    notes = list(record.notes)
    try:
        model = load(record.directory, "32")
    except (FileNotFoundError, ValueError, OSError) as error:
        notes.append(f"the model was not looked at: {error}")
    try:
        # Files were checked when the run started.
        data = replace(RunConfig.from_dict(record.config).data, verify="headers")
        known = None if model is None else needed_condition(model)
        value_range = model.value_range if model is not None else (-1.0, 1.0)
        splits = load_data(data, value_range=value_range, condition=known)
        dataset = splits.val if len(splits.val) else splits.train
        items = [dataset[i] for i in range(min(LOOK_IMAGES, len(dataset)))]
    except (FileNotFoundError, ValueError, OSError, ImportError) as error:
        return replace(record, notes=(*notes, f"the images were not looked at: {error}"),
                       parameters=None if model is None else model.num_parameters())  # fmt: skip
    look = look_at(items, splits.value_range if model is None else model.value_range, model)
    return replace(record, look=look, notes=tuple(notes), parameters=None if model is None else model.num_parameters())


@torch.no_grad()
def look_at(items: Sequence[Mapping[str, Any]], value_range: tuple[float, float], model: Any = None) -> Look:
    """Measure a few images, and their reconstructions.

    Args:
        items: with ``x [C, *S]`` and optionally ``key``.
        value_range: what the model is trained on.
        model: in evaluation mode, or ``None``.

    Returns:
        What was seen.
    """
    low, high = value_range
    edge = 0.01 * (high - low)
    xs = [item["x"].float() for item in items]
    constant = tuple(str(i.get("key", n)) for n, (i, x) in enumerate(zip(items, xs, strict=True)) if x.min() == x.max())
    spread = torch.stack([x.flatten(1).amax(1) - x.flatten(1).amin(1) for x in xs]).amax(0)
    flat = tuple(torch.nonzero(spread == 0).flatten().tolist()) if len(constant) < len(xs) else ()

    def ends(images: list[torch.Tensor]) -> float:
        return float(torch.cat([((x <= low + edge) | (x >= high - edge)).float().flatten() for x in images]).mean())

    saturated = variation = latent_size = None
    if model is not None:
        device = next(model.parameters()).device
        conds = [None if item.get("cond") is None else item["cond"][None].to(device) for item in items]
        posteriors = [model.encode(x[None].to(device), cond) for x, cond in zip(xs, conds, strict=True)]
        decoded = [model.decode(posterior)[0].float().cpu() for posterior in posteriors]
        saturated = ends(decoded)
        latent_size = posteriors[0].shape[1:].numel()
        if len({x.shape for x in xs}) == 1 and len(xs) > 1:
            spreads = [float(torch.stack(images).std(0).mean()) for images in (decoded, xs)]
            variation = spreads[0] / spreads[1] if spreads[1] > 0 else None
    return Look(
        low=min(float(x.min()) for x in xs),
        high=max(float(x.max()) for x in xs),
        value_range=value_range,
        constant=constant,
        constant_channels=flat,
        images=len(xs),
        saturated=saturated,
        saturated_data=ends(xs),
        variation=variation,
        latent_size=latent_size,
    )
