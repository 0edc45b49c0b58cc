"""Load a trained model, find the images to show it, and measure it on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Subset

from omnivae.data import DataSplits, ImageDataset, load_data
from omnivae.data import world as world_named
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.jobs.conditions import needed_condition
from omnivae.jobs.factors import process_of, read_factors
from omnivae.jobs.provenance import provenance_of
from omnivae.jobs.run_data import data_for, is_same_data, run_data
from omnivae.jobs.volume_data import centres, in_tiles, shown_whole, usual_metrics
from omnivae.metrics import Evaluation, evaluate
from omnivae.metrics.registry import measurable
from omnivae.models import VAE
from omnivae.models.storage import find_model
from omnivae.training.device import Precision, for_inference

#: Images of a world that are measured unless a limit is given, and what is measured of them beside the usual.
WORLD_IMAGES, WORLD_METRICS = 2_000, ("mig", "sap", "dci_disentanglement")
Split = Literal["auto", "train", "val", "test", "all"]


def load(model: str | Path, precision: Precision = "auto") -> VAE:
    """Load a model directory or a run for inference: onto the GPU if there is one, in the layout that is fast there.

    Args:
        model: the directory.
        precision: "32", "bf16" (networks only; within 3 % of float32), "16" (for GPUs, within 2 %), or "auto": bf16
            where the device computes in it.

    Returns:
        The model, in evaluation mode.
    """
    loaded = VAE.from_pretrained(model)
    if not loaded.pixels:
        raise ValueError(
            f"{model} holds a model of sentences, and this command is for images: use evaluate, sample, interpolate, reconstruct "
            "or report"
        )
    for_inference(loaded.to("cuda") if torch.cuda.is_available() else loaded, precision=precision)
    return loaded


def evaluate_model(
    model: str | Path,
    *,
    path: str | None = None,
    world: str | None = None,
    factors: Sequence[str] = (),
    split: Split = "auto",
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    num_samples_nll: int = 100,
    seed: int = 0,
    precision: Precision = "32",
    progress: bool = True,
) -> Evaluation:
    """Evaluate a model on images prepared as in its training.

    Args:
        model: a model directory or a run.
        path: the images; the run's own by default.
        world: the name of a world instead of a path: a few thousand of its images, and by default also how well the code
            separates its factors.
        factors: numeric columns of a table of images, for scores of disentanglement.
        split: which of them. "auto" is the test split of the run's own data and of data that comes with one, and every
            image of any other folder.
        metrics: names of metrics; psnr, ssim, ms_ssim, mse, l1 and, where the posterior has a density, elbo
            by default; where it has codes, perplexity and code_usage. Of volumes psnr, ssim, mse, l1 and, of CT, the errors in
            HU of each display window.
        limit: at most so many images.
        image_size: another size than in training, for models that take any.
        batch_size: images loaded at once; changes no digit, see :func:`omnivae.evaluate`.
        num_workers: processes that load images; 0 loads in this one.
        num_samples_nll: K of the importance-weighted bound.
        seed: of the posterior noise and the bootstrap.
        precision: of the networks; float32 by default, so that the figures are the model's and not the rounding's.
        progress: show progress on a terminal.

    Returns:
        Means, intervals, values of each image and the card.
    """
    from omnivae.jobs.text import evaluate_text, is_text_model

    if is_text_model(model):
        if world is not None or factors or image_size is not None:
            raise ValueError(
                f"{model} is a model of sentences: --world, --factors and --data.image_size are for images"
            )
        return evaluate_text(
            model,
            path=path,
            split=split,
            metrics=metrics,
            limit=limit,
            num_samples_nll=num_samples_nll,
            seed=seed,
            progress=progress,
        )
    if world is not None:
        if path is not None:
            raise ValueError(f"got --world {world} and --data.path {path}; give one of them")
        path, limit = world_named(world).name, WORLD_IMAGES if limit is None else limit
    loaded, dataset, splits, chosen = _images(model, path, split, image_size, precision)
    if factors:
        read_factors(splits, data_for(loaded, path, run_data(find_model(model))), factors)
    if limit is not None:
        if limit < 1:
            raise ValueError(f"got a limit of {limit} images (--data.limit); expected at least 1")
        dataset = Subset(dataset, range(min(limit, len(dataset))))
    names = metrics
    if names is None:
        usual = measurable(
            ("psnr", "ssim", "ms_ssim", "mse", "l1", "elbo", "perplexity", "code_usage", "class_accuracy"), loaded
        )
        usual = list(usual_metrics(loaded)) if splits.intensity is not None else usual
        names = [*usual, *(WORLD_METRICS if world is not None else ())]
    return evaluate(
        in_tiles(loaded, dataset, names),
        dataset,
        names,
        batch_size=batch_size,
        num_workers=num_workers,
        num_samples_nll=num_samples_nll,
        seed=seed,
        provenance=provenance_of(model, splits, chosen),
        process=process_of(splits, loaded),
        factor_names=tuple(factors) or None,
        progress=progress,
    )


def images_for(
    model: str | Path,
    path: str | None,
    split: Split,
    image_size: int | None,
    precision: Precision,
    *,
    loaded: VAE | None = None,
) -> tuple[VAE, Any, DataSplits]:
    """Load a model, and the images that a command about it works on, without the random crops and flips of training.

    Args:
        model: a model directory or a run.
        path: the images; the run's own by default.
        split: which of them, see :func:`evaluate_model`.
        image_size: another size than in training.
        precision: of the networks, see :func:`load`.
        loaded: the model, where it was loaded before for other images.

    Returns:
        The model, the images and the data they are of.
    """
    loaded, dataset, splits, _ = _images(model, path, split, image_size, precision, loaded)
    return loaded, centres(dataset), splits


def _images(
    model: str | Path,
    path: str | None,
    split: Split,
    image_size: int | None,
    precision: Precision,
    loaded: VAE | None = None,
) -> tuple[VAE, Any, DataSplits, Split]:
    loaded = load(model, precision) if loaded is None else loaded
    own = run_data(find_model(model))
    config = replace(data_for(loaded, path, own), flip=False, random_crop=False)
    if image_size is not None:
        config = replace(config, image_size=image_size)
    splits = load_data(config, value_range=loaded.value_range, condition=needed_condition(loaded))
    if split == "auto":
        same = own is not None and (path is None or is_same_data(path, own))
        split = "test" if same or splits.official_test else "all"
    if split == "all":
        # Each image once and as it is: small data sets share images between splits, and training may crop and flip them.
        parts = (splits.test, splits.val, splits.train)
        numbers = list(dict.fromkeys(int(i) for part in parts for i in part.indices))
        test = splits.test
        if isinstance(test, VolumeDataset):
            volumes = shown_whole(loaded, test.whole(np.array(numbers, dtype=np.int64)))
            return loaded, volumes, replace(splits, test=volumes), split
        whole = ImageDataset(
            test.source,
            np.array(numbers, dtype=np.int64),
            split="test",
            transform=test.transform,
            seed=test.seed,
            told=test.told,
        )
        return loaded, whole, splits, split
    chosen = getattr(splits, split)
    if isinstance(chosen, VolumeDataset):
        chosen = shown_whole(loaded, chosen)
        splits = replace(splits, test=chosen)
    return loaded, chosen, splits, split
