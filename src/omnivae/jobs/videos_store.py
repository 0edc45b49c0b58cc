"""``omnivae encode`` and ``decode`` on video files: whole clips to a posterior store, and back at the same size and rate."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnivae.data.config import OnError
from omnivae.data.latents import PosteriorStore
from omnivae.data.video_writing import write_video
from omnivae.jobs.evaluate import load
from omnivae.jobs.file_list import FileItem, FileList, on_cpu, one_by_one
from omnivae.jobs.filling import (
    Encoded,
    EncodeResult,
    check_options,
    check_posterior,
    describe_store,
    fill_store,
    launch,
)
from omnivae.jobs.store import Dtype, Entry
from omnivae.jobs.videos import as_input, as_pixels, list_videos, read_clip
from omnivae.jobs.volumes_codec import Mode, check_precision
from omnivae.jobs.volumes_decode import Item, Write, decode_each
from omnivae.models import VAE, Tiled
from omnivae.models.storage import find_model
from omnivae.models.tiled.memory import parse_bytes
from omnivae.training.device import Precision


def encode_videos(
    model: str | Path,
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    on_error: OnError = "stop",
    limit: int | None = None,
    memory: str | None = None,
    mode: Mode = "exact",
    dtype: Dtype = "float32",
    precision: Precision = "32",
    shard_mib: float = 64.0,
    loaded: VAE | None = None,
    progress: bool = True,
) -> EncodeResult:
    """Encode video files into a posterior store, or bring one up to date: each whole, as the model sees clips.

    Args:
        model: a model directory or a run, of clips.
        paths: videos, or folders of them.
        output: the store.
        on_error: "stop" at a file that cannot be used, or "skip" it with a warning.
        limit: at most so many videos.
        memory: budget of encoding, such as "4GB": it goes tile by tile, see :class:`omnivae.Tiled`; the frames are in memory.
        mode: of the tiles.
        dtype: what means and log-variances are stored in.
        precision: of the networks.
        shard_mib: size of a shard in MiB; a shard holds at least one video.
        loaded: the model of that directory, where it is loaded already, in that precision.
        progress: show progress on a terminal.

    Returns:
        What was done.

    Raises:
        ValueError: when the store holds something else, or a file is not usable.
        OSError: when the store cannot be written; what was written stays whole.
    """
    check_options(dtype, shard_mib)
    check_precision(memory, mode, precision)
    launch()
    directory = find_model(model)
    loaded = load(directory, precision) if loaded is None else loaded
    check_posterior(loaded)
    codec = _codec(loaded, memory, mode)
    found = [pair for path in map(Path, paths) for pair in list_videos(path)]
    twice = [name for name, count in Counter(name for _, name in found).items() if count > 1]
    if twice:
        raise ValueError(f"several videos are named {twice[0]}; a store has one of a name: give one folder")
    items = [FileItem(name, partial(read_clip, path, loaded), partial(_content, path)) for path, name in found]
    videos = FileList(items, "videos", limit)
    tiles = f"blended in {parse_bytes(memory)} bytes" if memory is not None and mode == "blended" else "exact"
    info = describe_store(
        loaded,
        directory,
        transform={"kind": "videos", "channels": loaded.in_channels, "range": list(loaded.value_range), "tiles": tiles},
        dtype=dtype,
        recipe={"data": None, "model": str(model), "split": "all", "limit": limit},
    )

    @torch.no_grad()
    def encode(item: FileItem, content: str, tell: Callable[[float], None]) -> Encoded:
        clip, rate = item.read()
        mean, logvar = on_cpu(loaded, codec.encode(as_input(clip, loaded)))
        file = {"video": {"rate": str(rate)}}
        yield Entry(item.name, content, None, clip.shape[:3], file), mean, logvar

    return fill_store(
        Path(output),
        info,
        videos,
        one_by_one(videos, encode, on_error),
        source=", ".join(map(str, paths)),
        shard_mib=shard_mib,
        steps=100,
        progress=progress,
    )


def decode_videos(
    chosen: Sequence[Item],
    loaded: VAE,
    output: Path,
    *,
    memory: str | None = None,
    mode: Mode = "exact",
    sample: bool = False,
    seed: int = 0,
    precision: str = "32",
    progress: bool = True,
) -> list[Path]:
    """Decode posteriors of videos into files of the same name, number of frames, size and rate; without sound.

    Args:
        chosen: stores, and numbers of entries.
        loaded: the model that encoded them.
        output: directory of the results.
        memory: budget of decoding, such as "4GB".
        mode: of the tiles.
        sample: decode a draw from each posterior instead of its mode.
        seed: of the draws.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The files written, in the order of the entries.

    Raises:
        ValueError: for names that lead out of the directory, or meet.
        FileExistsError: when a result would overwrite a file of somebody else.
    """
    codec = _codec(loaded, memory, mode)

    @torch.no_grad()
    def decode(store: PosteriorStore, i: int, z: Tensor, tell: Callable[[float], None]) -> tuple[str, Write]:
        file = store.file(i)
        assert file is not None, "every video of a store is described"
        z = z[None].to(next(loaded.parameters()).device)
        decoded = codec.decode(z, size=store.input_size(i)).float().clamp(*loaded.value_range).cpu()
        frames, rate = as_pixels(decoded, loaded), Fraction(file["video"]["rate"])
        return store.keys[i], lambda path: write_video(path, frames, rate=rate)

    settings = {"mode": mode if memory is not None else "whole"}
    return decode_each(
        chosen, output, decode, settings, sample=sample, seed=seed, precision=precision, progress=progress
    )


# -- inside


def _codec(loaded: VAE, memory: str | None, mode: Mode) -> Any:
    return loaded if memory is None else Tiled(loaded.eval(), memory=memory, mode=mode)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
