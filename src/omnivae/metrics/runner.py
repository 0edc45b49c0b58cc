"""``evaluate``: runs metrics over a dataset, to the same digit for every batch size, order and number of workers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.card import Provenance, make_card, shorten
from omnivae.metrics.evaluation import Evaluation, MetricResult
from omnivae.metrics.factors import Process
from omnivae.metrics.inference import Inference
from omnivae.metrics.intervals import bootstrap_interval
from omnivae.metrics.items import ImageDataset, Item, load_items
from omnivae.metrics.latents import LatentStatistics
from omnivae.metrics.population import Population
from omnivae.metrics.registry import Metric, resolve
from omnivae.metrics.volume import hu_contract

#: Pixel values of one group on an accelerator, and the most images of one.
GROUP_BUDGET, LARGEST_GROUP = 2**22, 64
#: Pixel values of an image up to which one thread of the CPU is faster than many that wait for each other.
SMALL_IMAGE = 2**13
#: Metrics of these scopes are of all images together, and have no value for one of them.
TOGETHER = ("dataset", "population")


def evaluate(
    model: Any,
    dataset: ImageDataset,
    metrics: Sequence[str] = ("psnr", "ssim"),
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    num_samples_nll: int = 100,
    num_samples_elbo: int = 10,
    seed: int = 0,
    bootstrap: int = 1000,
    provenance: Provenance | None = None,
    process: Process | None = None,
    factor_names: Sequence[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a model on a dataset.

    Reconstructions are decoded posterior modes, clamped to the value range. Intervals are 95 % percentile bootstraps of
    the mean over images.

    Batch size, order of the dataset, number of workers, and which other images are evaluated change no digit of an image's
    numbers: posterior noise is seeded from ``seed`` and the image's key; the model sees images in groups that depend on
    the image's shape and the kind of device alone (see :func:`group_size`); means are taken in float64 in the order of
    the keys. Another device, precision, number of threads or version of torch may change the last digits; the card
    records them.

    Args:
        model: a VAE; evaluated without gradients, in evaluation mode, and left as it was.
        dataset: map-style, items with ``x [C, *S]`` in the model's value range and a unique ``key``; sizes may differ.
            Where an item has a ``mask [1, *S]``, only pixels inside it count.
        metrics: names from ``METRICS``.
        batch_size: images loaded at once, >= 1; a matter of speed alone.
        num_workers: processes that load images; 0 loads in this one.
        device: where to compute; the model's own device by default.
        num_samples_nll: posterior samples K of the importance-weighted bound, >= 1.
        num_samples_elbo: posterior samples for the ELBO's expectation, >= 1.
        seed: seed of the posterior noise and of the bootstrap.
        bootstrap: number of resamples; 0 leaves the intervals out.
        provenance: what the caller knows about the model and the images, for the card.
        process: what made the images from known factors, for scores of disentanglement.
        factor_names: names of the labels' columns, where images have several.
        progress: show a progress bar where standard error is a terminal.

    Returns:
        Means, intervals, per-image values and the card.

    Raises:
        ValueError: for an unknown metric, an empty dataset, a repeated key, NaN, values outside the value range, a mask
            that a metric cannot honour, or a metric in Hounsfield units of a model whose values are none.
    """
    chosen = resolve(metrics)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("num_samples_nll", num_samples_nll, 1),
        ("num_samples_elbo", num_samples_elbo, 1),
        ("bootstrap", bootstrap, 0),
    ):
        if value < least:
            raise ValueError(f"got {name}={value}; expected at least {least}")
    if any(m.scope == "hounsfield" for m in chosen):
        hu_contract(model)  # refused before anything is computed
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; evaluation needs at least one image")

    low, high = model.value_range
    tally = _Tally(chosen, data_range=high - low, seed=seed)
    with torch.no_grad(), _evaluating(model, device) as where, _progress_bar(model, len(dataset), progress) as advance:
        items = load_items(dataset, model, batch_size=batch_size, num_workers=num_workers)
        for group in _groups(items, where):
            shape = group[0].tensors["x"].shape
            _check_mask(group[0], chosen)
            with _threads_for(shape, where):
                # Filled up by repeating the last image, and in memory of its own: kernels may also differ with alignment.
                full = group + group[-1:] * (group_size(shape, where) - len(group))
                stack = {
                    name: torch.stack([item.tensors[name] for item in full]).to(where) for name in group[0].tensors
                }
                inference = Inference(
                    model,
                    stack["x"],
                    [item.key for item in full],
                    cond=stack.get("cond"),
                    target=stack.get("target"),
                    num_samples_elbo=num_samples_elbo,
                    num_samples_nll=num_samples_nll,
                    seed=seed,
                )
                tally.add(group, inference, stack.get("mask"))
            advance(len(group))
        stored = all(known is not None for known in tally.content.values())
        inputs = {key: str(known) for key, known in tally.content.items()} if stored else tally.pixels
        card = make_card(
            model,
            chosen,
            inputs=inputs,
            pixels=tally.pixels,
            stored=stored,
            device=where,
            seed=seed,
            provenance=provenance or Provenance(),
        )
        tally.population.finish(model, where)
        tally.population.process = process
        tally.population.factor_names = None if factor_names is None else tuple(factor_names)
        estimates = {m.name: m.function(tally.population) for m in chosen if m.scope == "population"}

    per_image = {name: dict(sorted(of.items())) for name, of in tally.values.items()}
    results = {}
    for m in chosen:
        if m.scope == "dataset":
            results[m.name] = MetricResult(float(m.function(tally.latents)), None, None, m.unit)
        elif m.scope == "population":
            results[m.name] = estimates[m.name].result(m.unit, bootstrap, seed)
        else:
            array = np.array(list(per_image[m.name].values()), dtype=np.float64)
            lower, upper = bootstrap_interval(array, bootstrap, seed=seed)
            results[m.name] = MetricResult(float(array.mean()), lower, upper, m.unit)
    return Evaluation(
        metrics=results,
        images=len(tally.pixels),
        per_image=per_image,
        kl_per_dimension=tally.latents.kl_per_dimension(),
        settings={
            "metrics": [m.name for m in chosen],
            "seed": seed,
            "num_samples_elbo": num_samples_elbo,
            "num_samples_nll": num_samples_nll,
            "bootstrap": bootstrap,
            "interval": "95 % percentile bootstrap of the mean over images",
            "value_range": [low, high],
        },
        card=card,
        inputs=shorten(inputs.items()),
        remarks=tally.summary()
        | {name: estimate.remark for name, estimate in estimates.items() if estimate.remark is not None},
        details={name: dict(of.details) for name, of in estimates.items() if of.details is not None},
    )


def group_size(shape: Sequence[int], device: torch.device) -> int:
    """Return how many images of a shape the model sees at once: a function of nothing else.

    Convolutions and matrix products choose their kernels by the number of images, and kernels differ in the last digits. On
    a CPU every image therefore goes alone. Measured on two cores against groups of 16, that takes 1.15 to 1.25 times as long
    for TransVAE tiny at 64 and 256 pixels, 1.9 times for a small KL autoencoder at 64 pixels (19 against 10 ms an image)
    and 4 times for an MNIST-sized model (0.7 against 0.2 ms an image).

    An accelerator would idle over single images. There a group is as many as fit a fixed number of pixel values, and the
    last group is filled up by repeating its last image, so that all run through the same kernels.

    Args:
        shape: of one image, ``(C, *S)``.
        device: where it is computed.

    Returns:
        A power of two; 1 on a CPU.

    Example:
        >>> group_size((3, 256, 256), torch.device("cpu")), group_size((3, 256, 256), torch.device("cuda"))
        (1, 16)
    """
    if device.type == "cpu":
        return 1
    fits = min(LARGEST_GROUP, max(1, GROUP_BUDGET // math.prod(shape)))
    return 1 << (fits.bit_length() - 1)


# -- inside


class _Tally:
    """Everything that is remembered of the images while they pass."""

    def __init__(self, metrics: Sequence[Metric], *, data_range: float, seed: int) -> None:
        self.metrics = metrics
        self.data_range = data_range
        self.values: dict[str, dict[str, float]] = {m.name: {} for m in metrics if m.scope not in TOGETHER}
        self.remarks: dict[str, Counter[str]] = {m.name: Counter() for m in metrics}
        self.content: dict[str, str | None] = {}
        self.pixels: dict[str, str] = {}
        self.latents = LatentStatistics()
        self.population = Population([m.collect for m in metrics if m.collect is not None], seed=seed)

    def add(self, group: list[Item], inference: Inference, mask: Tensor | None) -> None:
        """Measure a group, whose first images are new and whose others repeat the last of them."""
        self.latents.update(inference, len(group))
        self.population.add([(item.key, item.label) for item in group], inference)
        for m in self.metrics:
            remark = m.remark(tuple(inference.x.shape[1:])) if m.remark else None
            if remark is not None:
                self.remarks[m.name][remark] += len(group)
            if m.scope not in TOGETHER:
                result = _compute(m, inference, mask, data_range=self.data_range).double().cpu().tolist()
                self.values[m.name].update(zip((item.key for item in group), result, strict=False))
        self.content.update((item.key, item.content) for item in group)
        self.pixels.update((item.key, item.pixels) for item in group)

    def summary(self) -> dict[str, str]:
        """Return a sentence for each metric with remarks."""
        return {
            name: "; ".join(f"{n} of {len(self.pixels)} images are {text}" for text, n in sorted(of.items()))
            for name, of in self.remarks.items()
            if of
        }


def _groups(items: Iterable[Item], device: torch.device) -> Iterator[list[Item]]:
    """Yield items in lists of equal shapes; only the last list of a shape may be smaller than its group."""
    waiting: dict[Any, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(item.shapes, [])
        group.append(item)
        if len(group) == group_size(item.tensors["x"].shape, device):
            yield waiting.pop(item.shapes)
    yield from waiting.values()


def _check_mask(item: Item, metrics: Sequence[Metric]) -> None:
    if "mask" not in item.tensors:
        return
    refusing = [m.name for m in metrics if not m.masks]
    if refusing:
        raise ValueError(
            f"image {item.key!r} has a mask, which {', '.join(refusing)} cannot honour; measure "
            f"{', '.join(m.name for m in metrics if m.masks) or 'psnr or mse'} only, or drop the mask"
        )


def _compute(metric: Metric, inference: Inference, mask: Tensor | None, *, data_range: float) -> Tensor:
    if metric.scope == "hounsfield":
        contract = hu_contract(inference.model)
        pair = contract.to_hu(inference.reconstruction), contract.to_hu(inference.target)
        return metric.function(*pair, mask=mask)
    if metric.scope != "reconstruction":
        return metric.function(inference)
    if mask is None:
        return metric.function(inference.reconstruction, inference.target, data_range=data_range)
    return metric.function(inference.reconstruction, inference.target, data_range=data_range, mask=mask)


@contextmanager
def _evaluating(model: Any, device: str | torch.device | None) -> Iterator[torch.device]:
    """Evaluation mode on a device, with reproducible kernels; modes, device and settings are restored."""
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    where = home if device is None else torch.device(device)
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model.to(where)
        with _reproducible_kernels(where):
            yield where
    finally:
        model.to(home)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _threads_for(shape: Sequence[int], device: torch.device) -> Iterator[None]:
    """Small images on a CPU are computed by one thread: faster, and the same on machines of any number of cores."""
    before = torch.get_num_threads()
    if device.type != "cpu" or math.prod(shape) > SMALL_IMAGE:
        yield
        return
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _reproducible_kernels(device: torch.device) -> Iterator[None]:
    """On CUDA: kernels chosen by shape instead of by a stopwatch, and float32 that is not rounded to TensorFloat-32."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        cudnn.conv.fp32_precision = matmul.fp32_precision = "ieee"
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision = before


@contextmanager
def _progress_bar(model: Any, total: int, enabled: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda count: None
        return
    items = "images" if getattr(model, "pixels", True) else "sentences"
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn(items), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda count: bar.advance(task, count)
