"""Encode and decode video files: as many frames, of the same size and at the same rate, beside a strip to look at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omnivae.data.config import OnError
from omnivae.data.folder import walk
from omnivae.data.pixels import convert_channels
from omnivae.data.video import GIF, SUFFIXES, read_frames, read_video_header, video_rate
from omnivae.data.video_writing import write_video
from omnivae.files import write_atomic
from omnivae.jobs.evaluate import load
from omnivae.jobs.progress import progress_bar
from omnivae.models import VAE, Tiled
from omnivae.training.device import Precision

log = logging.getLogger(__name__)


def are_videos(files: Sequence[str | Path]) -> bool:
    """Return whether every path is a video file, or a folder that holds some.

    Args:
        files: files and folders.
    """
    return bool(files) and all(bool(list_videos(Path(file))) for file in files)


@torch.no_grad()
def reconstruct_videos(
    model: str | Path | VAE,
    files: Sequence[str | Path],
    output: str | Path,
    *,
    on_error: OnError = "stop",
    precision: Precision = "auto",
    memory: str | int | None = None,
    mode: Literal["exact", "blended"] = "exact",
    progress: bool = True,
) -> list[Path]:
    """Encode and decode video files; results keep name, number of frames, size and rate.

    Beside each result lies ``NAME.png``: frames from first to last of the original, the reconstruction and their difference, with
    the PSNR of each.
    A model of grey frames gives grey videos. A file has 8 bits a sample.

    Args:
        model: a model directory, a run, or a loaded model of clips.
        files: videos (mp4, m4v, mov, avi, mkv, webm, gif), or folders, of which every video is taken.
        output: directory to write to.
        on_error: "stop" at a file that cannot be read, or "skip" it with a warning.
        precision: of the networks.
        memory: budget of :class:`omnivae.Tiled` for encoding and decoding, such as "4GB", beside the clip itself; ``None`` computes
            without tiles.
        mode: of the tiles: "exact", or "blended".
        progress: show progress on a terminal.

    Returns:
        The videos written.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for files that are not usable, or a result that would overwrite an original or another result.
    """
    from omnivae.report.clips import clip_grid
    from omnivae.report.figures import to_png

    found = [(path, name) for file in map(Path, files) for path, name in list_videos(file)]
    missing = [file for file in map(Path, files) if not file.exists()]
    if missing:
        raise FileNotFoundError(f"no such file or folder: {missing[0]}")
    targets = [(Path(output) / name).resolve() for _, name in found]
    if len(set(targets)) < len(targets) or {path.resolve() for path, _ in found} & set(targets):
        raise ValueError("a reconstruction would overwrite an original or another one; give --output another directory")
    loaded = model if isinstance(model, VAE) else load(model, precision)
    codec = loaded if memory is None else Tiled(loaded.eval(), memory=memory, mode=mode)
    low, high = loaded.value_range
    written: list[Path] = []
    with progress_bar("reconstructing", len(found), progress and len(found) > 1) as advance:
        for path, name in found:
            target = Path(output) / name
            try:
                clip, rate = read_clip(path, loaded)
            except ValueError as error:
                if on_error != "skip":
                    raise
                log.warning("left out: %s", error)
                continue
            x = as_input(clip, loaded)
            decoded = codec.decode(codec.encode(x)).float().clamp(low, high).cpu()
            if isinstance(codec, Tiled) and codec.seams is not None:
                log.warning("%s: %s", path, codec.seams)
            write_video(target, as_pixels(decoded, loaded), rate=rate)
            picture = clip_grid(x.cpu(), decoded, (low, high))
            write_atomic(target.with_name(f"{target.name}.png"), to_png(picture))
            written.append(target)
            advance(1)
    return written


def read_clip(path: Path, model: Any) -> tuple[np.ndarray, Fraction]:
    """Read a whole video in the channels that a model takes.

    Args:
        path: the file.
        model: of clips.

    Returns:
        Frames ``[T, H, W, C]`` uint8, and their rate.

    Raises:
        ValueError: for damaged files, more than 8 bits a sample, and channels that cannot be converted.
    """
    file = read_video_header(path)
    if file.dtype != "uint8":
        raise ValueError(f"{path} has more than 8 bits a sample, which results would lose: convert it to 8 bits first")
    clip = read_frames(file, range(len(file.times)))
    if clip.shape[-1] != model.in_channels:
        if model.in_channels not in (1, 3):
            raise ValueError(f"{path} has {clip.shape[-1]} channels and the model takes {model.in_channels}")
        clip = np.stack([convert_channels(frame, model.in_channels) for frame in clip])
    return clip, video_rate(path)


def as_input(clip: np.ndarray, model: VAE) -> torch.Tensor:
    """Return what a model of clips takes, on its device.

    Args:
        clip: frames ``[T, H, W, C]`` uint8.
        model: of clips.

    Returns:
        ``[1, C, T, H, W]`` in the model's value range.
    """
    low, high = model.value_range
    x = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float().div(255).mul(high - low).add(low)
    return x.to(next(model.parameters()).device)


def as_pixels(decoded: torch.Tensor, model: VAE) -> np.ndarray:
    """Return frames of what a model decoded: the inverse of :func:`as_input`.

    Args:
        decoded: ``[1, C, T, H, W]``, within the model's value range.
        model: of clips.

    Returns:
        ``[T, H, W, C]`` uint8.
    """
    low, high = model.value_range
    return decoded[0].permute(1, 2, 3, 0).sub(low).div(high - low).mul(255).round().to(torch.uint8).numpy()


def list_videos(path: Path) -> list[tuple[Path, str]]:
    """List the videos at a path.

    Args:
        path: a file or folder.

    Returns:
        Each file, and its name relative to the folder.
    """
    suffixes = (*SUFFIXES, GIF)
    if path.is_dir():
        return [(path / name, name) for name in sorted(walk(path)) if Path(name).suffix.lower() in suffixes]
    return [(path, path.name)] if path.suffix.lower() in suffixes else []
