"""Denoise images with a model that was trained to, and measure by how much they improve."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from omnivae.data.config import OnError
from omnivae.jobs.evaluate import Split, images_for, load
from omnivae.jobs.reconstruct import read_for, reconstruct_files
from omnivae.metrics import MetricResult, bootstrap_interval, evaluate, psnr
from omnivae.models import VAE
from omnivae.training.corruption import DENOISING, Corruption
from omnivae.training.device import Precision

log = logging.getLogger(__name__)


class CorruptedImages:
    """Images of a data set with noise that belongs to each image's key, and the clean ones as targets.

    Args:
        images: map-style, items with ``x`` and ``key``.
        corruption: the noise.
        value_range: lowest and highest pixel value.
        seed: another number gives other noise.
    """

    def __init__(self, images: Any, corruption: Corruption, value_range: tuple[float, float], *, seed: int = 0) -> None:
        self.images, self.corruption, self.value_range, self.seed = images, corruption, value_range, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        item = self.images[index]
        digest = hashlib.sha256(f"{self.seed}/{item['key']}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        noisy, _ = self.corruption.corrupt(item["x"][None], self.value_range, generator)
        return {**item, "x": noisy[0], "target": item["x"]}


def denoise_files(
    model: str | Path,
    files: Sequence[str | Path],
    output: str | Path,
    *,
    on_error: OnError = "stop",
    cond: str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> list[Path]:
    """Encode and decode noisy image files with a denoising model; see :func:`omnivae.jobs.reconstruct.reconstruct_files`.

    Args:
        model: a model directory or a run, trained with ``training.corrupt``.
        files: images, or folders of them.
        output: directory to write to.
        on_error: "stop" at files that cannot be read or written, or "skip" them with a warning.
        cond: what the images are, for a conditional model: a class, or ``name=value`` separated by commas.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The files written.

    Raises:
        ValueError: when the model was not trained to denoise.
    """
    noise_of(load(model, precision))
    return reconstruct_files(model, files, output, on_error=on_error, cond=cond, precision=precision, progress=progress)


def noise_of(model: VAE) -> Corruption:
    """Return the noise that a model was trained to remove.

    Args:
        model: the model.

    Raises:
        ValueError: when there is none.
    """
    corruption = Corruption.of(model.statistics)
    if corruption.kind not in DENOISING:
        raise ValueError(
            "this model was not trained to denoise: train one with --training.corrupt gaussian --training.corrupt_strength 0.2 (or "
            "salt_and_pepper, mask), or use `omnivae reconstruct`"
        )
    return corruption


def compare_files(
    model: str | Path, noisy: Sequence[tuple[Path, Path]], clean: str | Path, *, precision: Precision = "auto"
) -> dict[str, MetricResult]:
    """Measure PSNR before and after denoising against clean images of the same names.

    Args:
        model: the model that denoised; says how images are read.
        noisy: pairs of a noisy file and its denoised one.
        clean: folder of the clean images.
        precision: of the networks; only how images are read matters here.

    Returns:
        "before" and "after" in decibels, with intervals over the images.

    Raises:
        FileNotFoundError: when a clean image is missing.
        ValueError: when sizes differ.
    """
    loaded = load(model, precision)
    low, high = loaded.value_range
    rows = []
    for before, after in noisy:
        reference = Path(clean) / before.name
        if not reference.is_file():
            raise FileNotFoundError(f"no clean image {reference} to compare {before} with")
        a, b, truth = (read_for(loaded, file).cpu() for file in (before, after, reference))
        if not a.shape == b.shape == truth.shape:
            raise ValueError(f"{before} and {reference} differ in size; expected the same image with and without noise")
        rows.append([float(psnr(image, truth, data_range=high - low)) for image in (a, b)])
    return _results(np.array(rows), 0)


def measure_denoising(
    model: str | Path,
    output: str | Path | None = None,
    *,
    path: str | None = None,
    split: Split = "auto",
    limit: int | None = None,
    seed: int = 0,
    precision: Precision = "32",
    progress: bool = True,
) -> dict[str, MetricResult]:
    """Add to clean images the noise that a model was trained under, and measure PSNR before and after it is removed.

    Args:
        model: a model directory or a run, trained with ``training.corrupt``.
        output: picture of clean, noisy and denoised images; none where it is ``None``.
        path: clean images; the run's own by default.
        split: which of them, see :func:`omnivae.jobs.evaluate.evaluate_model`.
        limit: at most so many images.
        seed: of the noise and the intervals.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        "before" and "after" in decibels, with 95 % intervals over the images.

    Raises:
        ValueError: when the model was not trained to denoise.
    """
    from PIL import Image

    from omnivae.jobs.look import _picture_path
    from omnivae.report import image_grid, reconstruct
    from omnivae.report.latent_ops import has_alpha

    if limit is not None and limit < 1:
        raise ValueError(f"got a limit of {limit} images (--data.limit); expected at least 1")
    target = None if output is None else _picture_path(output)
    loaded, clean, _ = images_for(model, path, split, None, precision)
    corruption = noise_of(loaded)
    images: Any = clean if limit is None else Subset(clean, range(min(limit, len(clean))))
    noisy = CorruptedImages(images, corruption, loaded.value_range, seed=seed)
    low, high = loaded.value_range
    after = evaluate(loaded, noisy, ["psnr"], seed=seed, progress=progress).per_image["psnr"]
    before = {}
    for i in range(len(noisy)):
        item = noisy[i]
        before[item["key"]] = float(psnr(item["x"][None], item["target"][None], data_range=high - low))
    if target is not None:
        shown = [noisy[i] for i in range(min(8, len(noisy)))]
        shown = [item for item in shown if item["x"].shape == shown[0]["x"].shape]
        x, truth = (torch.stack([item[name] for item in shown]) for name in ("x", "target"))
        cond = torch.stack([item["cond"] for item in shown]) if shown[0].get("cond") is not None else None
        rows = torch.cat([truth, x, reconstruct(loaded, x, cond).cpu()])
        grid = image_grid(rows, loaded.value_range, len(shown), alpha=has_alpha(loaded))
        Image.fromarray(grid).save(target)
    return _results(np.array([[before[key], after[key]] for key in sorted(after)]), seed)


def _results(rows: np.ndarray, seed: int) -> dict[str, MetricResult]:
    results = {}
    for name, column in zip(("before", "after"), rows.T, strict=True):
        low, high = bootstrap_interval(column, seed=seed)
        results[name] = MetricResult(float(column.mean()), low, high, "dB")
    return results
