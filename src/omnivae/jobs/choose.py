"""A sensible recipe for data that comes without a configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from omnivae.data import DataConfig, DataSplits, is_text, load_data
from omnivae.data.formats import recognise

#: Largest side that a vector latent and a plain convolutional stack serve well.
SMALL = 64


def choose_for(data: DataConfig) -> dict[str, Any]:
    """Look at the data and choose everything that a run needs for it: what ``omnivae train`` does without a configuration.

    Args:
        data: what to train on.

    Returns:
        Sections model, losses and training, and data where the side of the images has to be chosen too.

    Raises:
        FileNotFoundError: when there is no such data.
        ValueError: for data that cannot be trained on.
    """
    if is_text(data):
        from omnivae.jobs.text import choose_for_text

        return choose_for_text(data)
    if recognise(data) == "video":
        from omnivae.jobs.choose_videos import choose_for_videos

        return choose_for_videos(data)
    side = None
    try:
        splits = load_data(data)
    except ValueError as error:
        if data.image_size is not None or "image_size" not in str(error):
            raise
        # Pictures of several sizes: look at them squared; the side to train on is chosen from their true sizes.
        splits = load_data(replace(data, image_size=2 * SMALL))
        side = choose_image_size(splits)
    # Volumes have data.volume.patch_size instead of a side.
    if splits.intensity is None and data.image_size is None and max(splits.native.max_size) > SMALL:
        side = choose_image_size(splits)
    if side is None:
        return choose(splits)
    return {**choose(load_data(replace(data, image_size=side))), "data": {"image_size": side}}


def choose(splits: DataSplits) -> dict[str, Any]:
    """Choose model, losses and training from the data: small images get a convolutional VAE, larger ones a TransVAE, volumes MAISI.

    Args:
        splits: the data.

    Returns:
        Sections model, data, losses and training; what the user gives replaces their entries.
    """
    smallest = min(splits.image_size)
    if splits.intensity is not None and len(splits.image_size) == 3:
        # A convolutional model takes whole volumes later, whatever the patches were.
        widths = [64, 128, 256] if torch.cuda.is_available() else [16, 32, 64]
        return {
            "model": {"recipe": "maisi_vae", "num_channels": widths, "norm_num_groups": 16},
            "losses": {"l1": {"weight": 1.0, "per_element": True}, "kl": {"weight": 1e-7}},
            "training": {"batch_size": min(4, len(splits.train)), "learning_rate": 1e-4, "max_steps": 2000},
        }
    batch_size = min(64 if smallest <= SMALL else 16, len(splits.train))
    if max(splits.image_size) <= SMALL:
        # Grey of 8 bits is ink on paper more often than a measurement; more bits are one.
        likelihood = "bernoulli" if splits.channels == 1 and splits.native.bit_depth <= 8 else "gaussian"
        channels = [32, 64, 128][: max(2, (smallest - 1).bit_length() - 2)]
        norm = {"norm": "none"} if batch_size == 1 else {}
        return {
            "model": {"recipe": "conv_vae", **norm, "latent_dim": 32, "channels": channels, "likelihood": likelihood},
            "losses": {"nll": {}, "kl": {"weight": 1.0}},
            "training": {"batch_size": batch_size, "learning_rate": 1e-3, "max_steps": 2000},
        }
    losses = {"l1": {"weight": 1.0, "per_element": True}, "ms_ssim": {"weight": 0.5}, "kl": {"weight": 1e-6}}
    training = {"batch_size": batch_size, "learning_rate": 2e-4, "max_steps": 2000}
    if torch.cuda.is_available():
        return {"model": {"recipe": "transvae", "variant": "tiny"}, "losses": losses, "training": training}
    # On a CPU the 44M parameters of "tiny" would take hours: a thirteenth of them, with the same stages.
    small = {"depths": [1, 1, 1, 1, 1], "base_dims": [64, 64, 128, 128, 256], "head_dim": 32}
    return {"model": {"recipe": "transvae", "variant": "tiny", **small}, "losses": losses, "training": training}


def choose_image_size(splits: DataSplits) -> int:
    """Return the side to train a TransVAE on: at most 256 (128 on a CPU), a multiple of 16, not larger than the median image.

    Args:
        splits: the data at its native size.

    Returns:
        Side in pixels.
    """
    most = 256 if torch.cuda.is_available() else 128
    return max(16, min(most, *splits.native.median_size) // 16 * 16)
