"""``omnivae inspect`` on videos: files and the clips cut from them, in the units of their files rather than of pictures."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data import DataConfig
from omnivae.data.sources import ImageSource, Split
from omnivae.data.survey import find_duplicates
from omnivae.data.video import VideoFile, VideoSource, list_videos
from omnivae.jobs.advice import Need
from omnivae.jobs.choose_videos import clip_needs


def settle_clips(config: DataConfig) -> tuple[DataConfig, list[Need]]:
    """Return a configuration under which videos can be cut into clips, and the settings that it took.

    Args:
        config: as given; of videos.

    Returns:
        The configuration, and what was added to it with reasons.

    Raises:
        ValueError: when no video can be read.
        ImportError: without PyAV.
    """
    listing = list_videos(Path(config.path).expanduser(), replace(config, on_error="skip"))
    needs = clip_needs(listing.files, config)
    return replace(config, **{need.option: need.value for need in needs}), needs


def first_frames(source: VideoSource) -> VideoSource:
    """Return the first frame of every clip as stored, which is what can be measured and drawn of hours of video.

    Args:
        source: clips.
    """
    frames = copy.copy(source)
    frames.num_frames, frames.image_size = 1, None
    frames.sizes = np.array([(1, max(f.height for f in source.files), max(f.width for f in source.files))])
    return frames


def equal_videos(source: VideoSource, splits: Mapping[Split, np.ndarray]) -> list[list[tuple[str, Split]]]:
    """Find video files whose bytes are equal.

    Args:
        source: clips.
        splits: the clips of each split; a file is in that of the first of its clips.

    Returns:
        Groups of two or more: name and split of each file.
    """
    files = copy.copy(source)
    files.clips = np.stack([np.arange(len(source.files)), np.zeros(len(source.files), np.int64)], axis=1)
    members: dict[Split, list[int]] = {split: [] for split in splits}
    first: dict[int, tuple[int, Split]] = {}
    for split, part in splits.items():
        for clip in part.tolist():
            number = int(source.file_of_clip[clip])
            first[number] = min(first.get(number, (clip, split)), (clip, split))
    for number, (_, split) in first.items():
        members[split].append(number)
    groups = find_duplicates(files, {split: np.array(part, dtype=np.int64) for split, part in members.items()})
    return [[(name.rpartition("#")[0], split) for name, split in group] for group in groups]


def describe_videos(source: ImageSource) -> dict[str, Any]:
    """Return what the inspection of clips says of the files that they come from.

    Args:
        source: clips; of any other source there is nothing to say.

    Returns:
        ``videos`` (number of files, frames, rate), ``sizes``, ``channels`` and ``dtypes`` of the files; empty for images.
    """
    if not isinstance(source, VideoSource):
        return {}
    files: Sequence[VideoFile] = source.files
    lengths = np.array([len(file.times) for file in files])
    rates = Counter(None if file.rate is None else round(float(file.rate), 3) for file in files)
    sizes = np.array([(file.height, file.width) for file in files])
    return {
        "videos": {
            "files": len(files),
            "frames": [int(lengths.min()), int(np.median(lengths)), int(lengths.max())],
            "frames_per_second": {"unknown" if rate is None else f"{rate:g}": n for rate, n in rates.most_common()},
            "clip": source.num_frames,
            "stride": source.frame_stride,
        },
        "sizes": {
            "smallest": sizes.min(axis=0).tolist(),
            "median": np.median(sizes, axis=0).astype(int).tolist(),
            "largest": sizes.max(axis=0).tolist(),
            "distinct": len(np.unique(sizes, axis=0)),
        },
        "channels": dict(Counter(file.channels for file in files).most_common()),
        "dtypes": dict(Counter(file.dtype for file in files).most_common()),
    }
