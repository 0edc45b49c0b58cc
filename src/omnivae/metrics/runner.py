"""``evaluate``: runs metrics over a dataset, the same for every batch size and order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.evaluation import Evaluation, MetricResult
from omnivae.metrics.inference import Inference, LatentStatistics
from omnivae.metrics.registry import Metric, resolve

#: How far outside the value range a pixel may lie: rounding of a resize, not another scale.
RANGE_TOLERANCE = 1e-4

logger = logging.getLogger(__name__)


class ImageDataset(Protocol):
    """A map-style dataset: items are dicts with ``x [C, *S]`` and ``key``, optionally ``cond`` and ``target``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def evaluate(
    model: Any,
    dataset: ImageDataset,
    metrics: Sequence[str] = ("psnr", "ssim"),
    *,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    num_samples_nll: int = 100,
    num_samples_elbo: int = 10,
    seed: int = 0,
    bootstrap: int = 1000,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a model on a dataset.

    Reconstructions are decoded posterior modes, clamped to the value range. Posterior noise is seeded for each image
    from ``seed`` and the image's key, and means are taken in float64 in the order of the keys: batch size and order of
    the dataset do not matter. Intervals are 95 % percentile bootstraps of the mean over images.

    Args:
        model: a VAE; evaluated without gradients, in evaluation mode, and left as it was.
        dataset: map-style, items with ``x [C, *S]`` in the model's value range and a unique ``key``; sizes may differ.
        metrics: names from ``METRICS``.
        batch_size: images at once (of equal size), >= 1.
        device: where to compute; the model's own device by default.
        num_samples_nll: posterior samples K of the importance-weighted bound, >= 1.
        num_samples_elbo: posterior samples for the ELBO's expectation, >= 1.
        seed: seed of the posterior noise and of the bootstrap.
        bootstrap: number of resamples; 0 leaves the intervals out.
        progress: show a progress bar where standard error is a terminal.

    Returns:
        Means, intervals and per-image values.

    Raises:
        ValueError: for an unknown metric, an empty dataset, a repeated key, NaN, or values outside the value range.
    """
    chosen = resolve(metrics)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("num_samples_nll", num_samples_nll, 1),
        ("num_samples_elbo", num_samples_elbo, 1),
        ("bootstrap", bootstrap, 0),
    ):
        if value < least:
            raise ValueError(f"got {name}={value}; expected at least {least}")
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; evaluation needs at least one image")

    low, high = model.value_range
    values: dict[str, dict[str, float]] = {m.name: {} for m in chosen if m.scope != "dataset"}
    latents = LatentStatistics()
    with torch.no_grad(), _evaluating(model, device) as where:
        for items in _batches(dataset, model, batch_size, progress):
            stack = {
                name: torch.stack([item[name] for item in items]).to(where)
                for name in ("x", "cond", "target")
                if name in items[0]
            }
            inference = Inference(
                model,
                stack["x"],
                [item["key"] for item in items],
                cond=stack.get("cond"),
                target=stack.get("target"),
                num_samples_elbo=num_samples_elbo,
                num_samples_nll=num_samples_nll,
                seed=seed,
            )
            latents.update(inference)
            for m in chosen:
                if m.scope != "dataset":
                    result = _compute(m, inference, data_range=high - low).double().cpu().tolist()
                    values[m.name].update(zip(inference.keys, result, strict=True))

    per_image = {name: dict(sorted(of.items())) for name, of in values.items()}
    results = {}
    for m in chosen:
        if m.scope == "dataset":
            results[m.name] = MetricResult(float(m.function(latents)), None, None, m.unit)
        else:
            array = np.array(list(per_image[m.name].values()), dtype=np.float64)
            lower, upper = bootstrap_interval(array, bootstrap, seed=seed)
            results[m.name] = MetricResult(float(array.mean()), lower, upper, m.unit)
    return Evaluation(
        metrics=results,
        images=len(dataset),
        per_image=per_image,
        kl_per_dimension=latents.kl_per_dimension(),
        settings={
            "metrics": [m.name for m in chosen],
            "seed": seed,
            "num_samples_elbo": num_samples_elbo,
            "num_samples_nll": num_samples_nll,
            "bootstrap": bootstrap,
            "interval": "95 % percentile bootstrap of the mean over images",
            "value_range": [low, high],
        },
    )


def bootstrap_interval(
    values: np.ndarray, resamples: int = 1000, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """Return the percentile bootstrap interval of the mean (Efron, Bootstrap methods, 1979).

    Args:
        values: one number an image, ``[N]``.
        resamples: number of resamples; 0 returns no interval.
        level: coverage, between 0 and 1.
        seed: seed of the resampling.

    Returns:
        Lower and upper end; ``(None, None)`` without resamples.

    Example:
        >>> bootstrap_interval(np.ones(5))
        (1.0, 1.0)
    """
    if resamples == 0:
        return None, None
    random = np.random.default_rng(seed)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    # Order statistics instead of interpolation: defined where some means are infinite.
    low = np.quantile(means, (1 - level) / 2, method="lower")
    high = np.quantile(means, (1 + level) / 2, method="higher")
    return float(low), float(high)


# -- inside


def _compute(metric: Metric, inference: Inference, *, data_range: float) -> Tensor:
    if metric.scope == "reconstruction":
        return metric.function(inference.reconstruction, inference.target, data_range=data_range)
    return metric.function(inference)


def _batches(dataset: ImageDataset, model: Any, batch_size: int, progress: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield checked items in lists of equal size and equal fields."""
    waiting: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    seen: set[str] = set()
    with _progress_bar(len(dataset), progress) as advance:
        for index in range(len(dataset)):
            item = _checked(dataset[index], index, model)
            if item["key"] in seen:
                raise ValueError(f"the key {item['key']!r} occurs twice; expected a unique key for each image")
            seen.add(item["key"])
            group = tuple((name, tuple(item[name].shape)) for name in ("x", "cond", "target") if name in item)
            bucket = waiting.setdefault(group, [])
            bucket.append(item)
            if len(bucket) == batch_size:
                yield waiting.pop(group)
                advance(batch_size)
        for bucket in waiting.values():
            yield bucket
            advance(len(bucket))


def _checked(item: Mapping[str, Any], index: int, model: Any) -> dict[str, Any]:
    if "x" not in item or "key" not in item:
        raise ValueError(f"item {index} of the dataset has {sorted(item)}; expected at least 'x' and 'key'")
    key = str(item["key"])
    low, high = model.value_range
    checked: dict[str, Any] = {"key": key}
    for name in ("x", "cond", "target"):
        if item.get(name) is not None:
            checked[name] = torch.as_tensor(item[name])
    for name in ("x", "target"):
        if name not in checked:
            continue
        x = checked[name]
        if not x.is_floating_point():
            raise ValueError(
                f"image {key!r} has {x.dtype} values; expected floating point values in [{low:g}, {high:g}]"
            )
        if name == "x" and (x.ndim < 2 or x.shape[0] != model.in_channels):
            raise ValueError(f"image {key!r} has shape {tuple(x.shape)}; this model takes [{model.in_channels}, *S]")
        if not x.numel():
            raise ValueError(f"image {key!r} is empty, shape {tuple(x.shape)}")
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise ValueError(f"image {key!r} has {bad} NaN or infinite values; mend or remove it")
        least, most = float(x.min()), float(x.max())
        if least < low - RANGE_TOLERANCE or most > high + RANGE_TOLERANCE:
            raise ValueError(
                f"image {key!r} has values in [{least:g}, {most:g}], outside the model's range [{low:g}, {high:g}]; "
                "scale the data to the range that the model was trained on"
            )
    return checked


@contextmanager
def _evaluating(model: Any, device: str | torch.device | None) -> Iterator[torch.device]:
    """Evaluation mode on a device; modes and device are restored."""
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    where = home if device is None else torch.device(device)
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model.to(where)
        yield where
    finally:
        model.to(home)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _progress_bar(total: int, enabled: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda count: None
        return
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda count: bar.advance(task, count)
