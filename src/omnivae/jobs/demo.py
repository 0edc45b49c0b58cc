"""The demonstration: a TransVAE learns photographs, a beta-VAE handwritten digits and a 3-D VAE CT phantoms, on two CPU cores."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from omnivae.data import DataConfig, load_data
from omnivae.data.volume_config import VolumeConfig
from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import REPORT, train
from omnivae.models import VAE
from omnivae.training import TrainingConfig

log = logging.getLogger(__name__)


def demo_runs() -> dict[str, RunConfig]:
    """Return the demonstration's runs: small models, nothing to download.

    Returns:
        Name to configuration.
    """
    photos = RunConfig(
        model={
            "recipe": "transvae",
            "variant": "tiny",
            "compression_ratio": 8,
            "latent_dim": 16,
            "depths": [1, 1, 2],
            "base_dims": [64, 64, 128],
            "head_dim": 32,
        },
        data=DataConfig(path="photos", image_size=64, flip=True),
        losses={"l1": {"weight": 1.0, "per_element": True}, "ms_ssim": {"weight": 0.2}, "kl": {"weight": 1e-6}},
        training=TrainingConfig(
            batch_size=16, learning_rate=1.5e-3, max_steps=900, checkpoint_every=450, ema=0.99, val_images=64
        ),
    )
    digits = RunConfig(
        model={"recipe": "conv_vae", "latent_dim": 10, "channels": [32, 64, 128], "likelihood": "bernoulli"},
        data=DataConfig(path="digits", image_size=32),
        losses={"nll": {}, "kl": {"weight": 4.0}},
        training=TrainingConfig(
            batch_size=64, learning_rate=2e-3, max_steps=800, checkpoint_every=400, ema=0.99, val_images=128
        ),
    )
    ct = RunConfig(
        model={
            "recipe": "conv_vae",
            "latent": "spatial",
            "latent_dim": 8,
            "channels": [24, 48],
            "norm": "none",
            "likelihood": "laplace_fixed",
        },
        data=DataConfig(
            path="ct_phantoms",
            limit=12,
            volume=VolumeConfig(unit="HU", patch_size=32, patches_per_volume=8, foreground=0.9),
        ),
        losses={"l1": {"weight": 1.0, "per_element": True}, "kl": {"weight": 1e-7}},
        training=TrainingConfig(
            batch_size=4, learning_rate=3e-3, max_steps=500, checkpoint_every=250, validate_every=50, val_images=4
        ),
    )
    return {"photos": photos, "digits": digits, "ct": ct}


def demo(output: str | Path, *, steps: int | None = None, progress: bool = True) -> list[Path]:
    """Train the demonstration's models and write their reports; continues where it was interrupted.

    Args:
        output: directory for the runs.
        steps: optimiser steps of each run, instead of the demonstration's own.
        progress: show progress on standard error.

    Returns:
        The reports.
    """
    reports: list[Path] = []
    for name, config in demo_runs().items():
        if steps is not None:
            config = replace(config, training=replace(config.training, max_steps=steps))
        directory = Path(output) / name
        start = time.perf_counter()
        log.info("%s: training into %s", name, directory)
        result = train(config, directory, progress=progress)
        if result.stopped_by:
            log.info("%s: stopped at step %d; the same command continues", name, result.step)
            return reports
        log.info("%s: %d steps in %.0f s", name, result.step, time.perf_counter() - start)
        reports.append(directory / REPORT)
    log.info("picture: %s", overview(Path(output)))
    return reports


def overview(output: Path) -> Path:
    """Draw one picture of both runs: photographs beside their reconstructions, digits varied along the latent.

    Args:
        output: directory of the runs.

    Returns:
        The picture, ``overview.png``.
    """
    from PIL import Image

    from omnivae.report import image_grid, traverse_model

    model = VAE.from_pretrained(output / "photos")
    photos = load_data(demo_runs()["photos"].data, value_range=model.value_range).test
    x = torch.stack([photos[i]["x"] for i in range(6)])
    with torch.no_grad():
        decoded = model.decode(model.encode(x)).clamp(*model.value_range)
    pairs = image_grid(torch.cat([x, decoded]), model.value_range, 6, min_tile=128)
    digits_model = VAE.from_pretrained(output / "digits")
    digits = load_data(demo_runs()["digits"].data, value_range=digits_model.value_range).test
    references = torch.stack([digits[i]["x"] for i in range(128)])
    walk = traverse_model(digits_model, references[0], references, num_dimensions=4, steps=7)
    top = Image.fromarray(pairs)
    walk = walk.resize((top.width, round(walk.height * top.width / walk.width)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (top.width, top.height + 16 + walk.height), "white")
    canvas.paste(top, (0, 0))
    canvas.paste(walk, (0, top.height + 16))
    canvas.save(output / "overview.png")
    return output / "overview.png"
