"""What metrics of many images together look at: the codes of an evaluation's images, in an order of their own.

Shapes: N images of the population, S samples of each, D elements of a latent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian
from omnivae.metrics.evaluation import MetricResult
from omnivae.metrics.inference import Inference
from omnivae.metrics.intervals import bootstrap_interval

#: Images of a population at most: those with the smallest SHA-256 of their key, whatever the order they come in.
MAX_IMAGES = 4096

Collector = Callable[[Inference], Mapping[str, Tensor]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Estimate:
    """A number of many images together, and the rows whose resampling gives its interval.

    Attributes:
        rows: what each image contributes, ``[N, ...]``.
        statistic: the number that rows give; their mean by default.
        remark: what a reader must know about the number, or ``None``.
        interval: whether resampled rows tell how uncertain the number is; not where it is biased by repeated images.
        details: what else the JSON file is to hold, ready for it.
    """

    rows: np.ndarray
    statistic: Callable[[np.ndarray], float] | None = None
    remark: str | None = None
    interval: bool = True
    details: Mapping[str, Any] | None = None

    @property
    def value(self) -> float:
        """The number."""
        return float(self.rows.mean() if self.statistic is None else self.statistic(self.rows))

    def result(self, unit: str, resamples: int, seed: int) -> MetricResult:
        """Return the number with its 95 % bootstrap interval over the rows.

        Args:
            unit: of the number.
            resamples: 0 leaves the interval out.
            seed: of the resampling.
        """
        if math.isnan(self.value) or not self.interval:
            return MetricResult(self.value, None, None, unit)
        low, high = bootstrap_interval(self.rows, resamples, seed=seed, statistic=self.statistic)
        return MetricResult(self.value, low, high, unit)


class Population:
    """Codes and labels of an evaluation's images, sorted by the SHA-256 of their keys.

    Args:
        collectors: what is kept of each group of images, see :attr:`Metric.collect`.
        seed: of every draw.
    """

    def __init__(self, collectors: Sequence[Collector], *, seed: int = 0) -> None:
        self._collectors = list(dict.fromkeys(collectors))
        self._rows: dict[str, dict[Collector, dict[str, Tensor]]] = {}
        self._labels: dict[str, Tensor | None] = {}
        self._memory: dict[Any, Any] = {}
        self.seed = seed
        #: Images of the evaluation, of which the population may be a part.
        self.seen = 0
        self.model: Any = None
        #: What made the images (see :class:`omnivae.metrics.factors.Process`), and names of the labels' columns, where known.
        self.process: Any = None
        self.factor_names: tuple[str, ...] | None = None
        self.device = torch.device("cpu")

    def add(self, images: Sequence[tuple[str, Tensor | None]], inference: Inference) -> None:
        """Take in one group.

        Args:
            images: key and label of its first images; the others are repetitions.
            inference: the group.
        """
        if not self._collectors:
            return
        self.seen += len(images)
        tables = {c: {name: t.detach().float().cpu() for name, t in c(inference).items()} for c in self._collectors}
        for i, (key, label) in enumerate(images):
            # A copy: a view would keep the tensor of the whole group.
            self._rows[key] = {c: {name: t[i].clone() for name, t in of.items()} for c, of in tables.items()}
            self._labels[key] = label
        if len(self._rows) > 2 * MAX_IMAGES:
            self._drop()

    def finish(self, model: Any, device: torch.device) -> None:
        """Say that all images have come.

        Args:
            model: the VAE, in evaluation mode.
            device: where it is.
        """
        self._drop()
        self.model, self.device = model, device

    def _drop(self) -> None:
        for key in sorted(self._rows, key=_place)[MAX_IMAGES:]:
            del self._rows[key], self._labels[key]

    @cached_property
    def keys(self) -> list[str]:
        """Key of each image, in the population's order."""
        return sorted(self._rows, key=_place)

    def table(self, collector: Collector, name: str) -> Tensor:
        """Return what a collector kept under a name, ``[N, ...]`` float32.

        Args:
            collector: the function.
            name: key of what it returns.

        Raises:
            ValueError: when the images differ in shape.
        """
        rows = [self._rows[key][collector][name] for key in self.keys]
        shapes = sorted({tuple(row.shape) for row in rows})
        if len(shapes) > 1:
            raise ValueError(
                f"the latents of these images have shapes {shapes[0]} and {shapes[-1]}, and this metric compares them element by "
                "element: evaluate images of one size (--data.image_size)"
            )
        return torch.stack(rows)

    def names(self, collector: Collector) -> list[str]:
        """Return the names under which a collector kept something."""
        return list(self._rows[self.keys[0]][collector])

    def labels(self, metric: str) -> np.ndarray:
        """Return the label of each image, ``[N]`` or ``[N, F]``.

        Args:
            metric: who asks, for the message.

        Raises:
            ValueError: when an image has none.
        """
        if any(self._labels[key] is None for key in self.keys):
            raise ValueError(
                f"{metric} needs a label of every image, and these images have none: give them labels (class folders, or "
                "data.label_column of a table), or leave the metric out"
            )
        return np.stack([np.asarray(self._labels[key]) for key in self.keys])

    def once(self, function: Callable[[Population], Result]) -> Result:
        """Return ``function(self)``, computed by the first who asks.

        Args:
            function: of the population alone.
        """
        if function not in self._memory:
            self._memory[function] = function(self)
        return self._memory[function]

    @property
    def remark(self) -> str | None:
        """A sentence where the population is not all images."""
        if self.seen == len(self._rows):
            return None
        return f"of {len(self._rows):,} of the {self.seen:,} images, chosen by the hash of their keys"

    def noted(self, *notes: str | None) -> str | None:
        """Return the notes and :attr:`remark` as one remark, or ``None`` where there are none.

        Args:
            notes: sentences or ``None``.
        """
        return "; ".join(note for note in (*notes, self.remark) if note) or None

    def demand(self, metric: str, least: int) -> None:
        """Refuse too few images.

        Args:
            metric: who asks.
            least: number of images needed.

        Raises:
            ValueError: when there are fewer.
        """
        if len(self._rows) < least:
            raise ValueError(
                f"{metric} needs at least {least} images, got {len(self._rows)}; evaluate more, or leave it out"
            )


def gaussian_codes(inference: Inference) -> dict[str, Tensor]:
    """Collect the posterior of each image: ``mean`` and ``logvar``, ``[B, C, *S]``.

    Args:
        inference: the group.

    Raises:
        ValueError: for a posterior that is not a diagonal Gaussian.
    """
    q = inference.posterior
    if not isinstance(q, DiagonalGaussian):
        raise ValueError(
            "the metrics of the aggregate posterior need a diagonal Gaussian posterior, whose density at another image's code is "
            f"known; this model has {type(q).__name__}: leave out {', '.join(_AGGREGATE)}"
        )
    return {"mean": q.mean, "logvar": q.logvar}


_AGGREGATE = ("mutual_information", "aggregate_kl", "total_correlation", "dimension_wise_kl", "prior_holes")


def codes(inference: Inference) -> dict[str, Tensor]:
    """Collect the posterior mode of each image: ``z [B, C, *S]``, of any posterior.

    Args:
        inference: the group.
    """
    return {"z": inference.posterior.mode()}


def _place(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
