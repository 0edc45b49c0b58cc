"""What a folder of videos is trained with where nothing is said: the form of a clip, and a VAE of video that fits the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from omnivae.data import DataConfig, DataSplits, load_data
from omnivae.data.video import VideoFile, list_videos
from omnivae.jobs.advice import Need, plural

#: Frames of a clip, as in configs/video.yaml.
FRAMES = 16


def clip_needs(files: Sequence[VideoFile], config: DataConfig) -> list[Need]:
    """Say which clips to cut from videos, where that is not settled: all clips have one length, side and number of channels.

    Args:
        files: the videos.
        config: what was given; nothing is said about what it settles.

    Returns:
        Settings with reasons; empty where the videos are short, small and alike.
    """
    needs = []
    lengths = sorted(len(file.times) for file in files)
    frames = min(FRAMES, len(range(0, lengths[0], config.frame_stride)))
    if config.num_frames is None and (len(set(lengths)) > 1 or len(range(0, lengths[0], config.frame_stride)) > frames):
        said = f"{lengths[0]} to {lengths[-1]}" if lengths[0] < lengths[-1] else f"{lengths[0]}"
        reason = f"the videos have {said} frames; clips of {plural(frames, 'frame')} are cut from them"
        needs.append(Need("num_frames", frames, reason, False))
    sizes = sorted({(file.height, file.width) for file in files})
    most = _largest_side()
    if config.image_size is None and (len(sizes) > 1 or max(sizes[0]) > most):
        side = max(8, min(most, *(min(size) for size in sizes)) // 8 * 8)
        said = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
        needs.append(
            Need("image_size", side, f"the frames are {said}; a model learns them squared and small first", False)
        )
    if config.channels is None and len({file.channels for file in files}) > 1:
        needs.append(Need("channels", 3, "some videos are grey and some coloured, and a model takes one number", False))
    return needs


def choose_for_videos(data: DataConfig) -> dict[str, Any]:
    """Choose the form of the clips and everything else that a run on videos needs.

    Args:
        data: what to train on; videos.

    Returns:
        Sections model, losses and training, and data where something has to be chosen of the clips.

    Raises:
        ValueError: for videos that cannot be trained on.
    """
    listing = list_videos(Path(data.path).expanduser(), data)
    form = {need.option: need.value for need in clip_needs(listing.files, data)}
    chosen = choose_video_model(load_data(replace(data, **form)))
    return {**chosen, "data": form} if form else chosen


def choose_video_model(splits: DataSplits) -> dict[str, Any]:
    """Choose a VAE of video in the form of configs/video.yaml; without a GPU a quarter as wide, which trains in an hour or so.

    Args:
        splits: clips.

    Returns:
        Sections model, losses and training.
    """
    losses = {"l1": {"weight": 1.0, "per_element": True}, "kl": {"weight": 1e-6}}
    model: dict[str, Any] = {"recipe": "video_vae", "latent_dim": 4}
    if torch.cuda.is_available():
        training = {"batch_size": 4, "learning_rate": 1e-4, "max_steps": 2000, "gradient_checkpointing": True}
    else:
        model |= {"base_channels": 16, "num_res_blocks": 1, "num_groups": 8}
        training = {"batch_size": 2, "learning_rate": 5e-4, "max_steps": 2000}
    training["batch_size"] = min(int(training["batch_size"]), len(splits.train))
    return {"model": model, "losses": losses, "training": training}


def _largest_side() -> int:
    return 128 if torch.cuda.is_available() else 64
