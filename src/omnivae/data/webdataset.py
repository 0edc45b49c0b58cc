"""Reader of tar shards: which members form a sample, which of them is the image, and where its label is."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.config import DataConfig
from omnivae.data.images import SUFFIXES
from omnivae.data.naming import split_files, to_classes
from omnivae.data.shards import Member, TarBytes, list_shards, read_index
from omnivae.data.sources import Found
from omnivae.data.stored import Collection, collect

logger = logging.getLogger(__name__)

_IMAGE_SUFFIXES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
_LABEL_SUFFIX = "cls"
_PROGRESS_FROM = 8


@dataclass(frozen=True, slots=True)
class _Sample:
    """The members of one sample that are used."""

    shard: int
    key: str
    image: Member
    label: Member | None


def read_shards(path: str, config: DataConfig) -> Found:
    """Read the headers of tar shards and list their samples.

    Members that share their folder and their name up to the first dot form a sample. Its image is the member with a suffix
    of image files; its label is ``.cls`` (a number or a name as text) or the entry ``data.label_column`` of ``.json``.
    Shards named after splits (``train-000.tar``, ``val/000.tar``) define them.

    Args:
        path: a folder, a tar file, a glob, or a brace pattern such as ``shards/train-{000..010}.tar``.
        config: says which members to use, where it cannot be told.

    Returns:
        All images, and the splits.

    Raises:
        FileNotFoundError: when shards are missing.
        ValueError: for damaged shards, samples without an image or with several, or two members of one name.
    """
    root, shards = list_shards(path)
    splits = split_files(shards, path) if len(shards) > 1 else ["train"] * len(shards)
    samples: list[_Sample] = []
    for number, members in enumerate(_indices([root / shard for shard in shards])):
        samples += _samples(number, shards[number], members, config, where=root / shards[number])
    if not samples:
        raise ValueError(
            f"no image in the {len(shards)} tar shards of {path} (looked for {', '.join(SUFFIXES)}): correct data.path"
        )
    shard = np.array([sample.shard for sample in samples])
    paths = [root / shard for shard in shards]
    blobs = _bytes_of(paths, shard, [sample.image for sample in samples])
    labels, classes = _labels(paths, shard, samples, config, path)
    name = Path(path).resolve().stem if Path(path).is_file() else root.resolve().name
    collection = Collection(
        name,
        blobs,
        [sample.key for sample in samples],
        np.array(splits)[shard],
        labels,
        classes,
        groups=np.bincount(shard, minlength=len(shards)),
        containers=paths,
    )
    return collect(collection, config)


def _indices(paths: list[Path]) -> Iterable[list[Member]]:
    # Threads overlap the waiting for a disk; parsing itself is Python.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(read_index, paths)
        if len(paths) < _PROGRESS_FROM or not sys.stderr.isatty():
            yield from results
            return
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(results, total=len(paths), description="Listing tar shards", console=console, transient=True)


def _samples(number: int, shard: str, members: list[Member], config: DataConfig, *, where: Path) -> list[_Sample]:
    """Group the members of one shard."""
    grouped: dict[str, dict[str, Member]] = {}
    for member in members:
        parts = grouped.setdefault(member.sample, {})
        if member.suffix in parts:
            raise ValueError(
                f"{where} has two members {member.sample}.{member.suffix}: every sample needs a name of its own"
            )
        parts[member.suffix] = member
    label_suffix = config.label_column or _LABEL_SUFFIX
    samples, without = [], []
    for name, parts in grouped.items():
        images = [suffix for suffix in parts if _is_image(suffix, config.image_column)]
        if len(images) > 1:
            raise ValueError(
                f"{where}: the sample {name} has several images ({', '.join(sorted(images))}): set data.image_column to one of "
                "these suffixes"
            )
        if not images:
            without.append(f"{name} ({', '.join(sorted(parts))})")
            continue
        label = parts.get(label_suffix) or (parts.get("json") if config.label_column else None)
        prefix = shard.rsplit(".", 1)[0]
        samples.append(_Sample(number, f"{prefix}/{name}.{images[0]}", parts[images[0]], label))
    if without and samples:
        raise ValueError(
            f"{where}: {len(without)} of {len(grouped)} samples have no image, e.g. {without[0]}: write the shard again, or set "
            "data.image_column to the suffix of the images"
        )
    if without:
        kinds = Counter(suffix for parts in grouped.values() for suffix in parts).most_common(5)
        wanted = f"with the suffix {config.image_column}" if config.image_column else f"({', '.join(SUFFIXES)})"
        raise ValueError(
            f"{where} holds no image {wanted}; it holds {', '.join(f'{n} .{suffix}' for suffix, n in kinds)}"
        )
    return samples


def _is_image(suffix: str, wanted: str | None) -> bool:
    if wanted is not None:
        return suffix == wanted.lower().removeprefix(".")
    return suffix.rsplit(".", 1)[-1] in _IMAGE_SUFFIXES


def _bytes_of(paths: list[Path], shard: np.ndarray, members: list[Member]) -> TarBytes:
    return TarBytes(paths, shard, np.array([m.offset for m in members]), np.array([m.size for m in members]))


def _labels(
    paths: list[Path], shard: np.ndarray, samples: list[_Sample], config: DataConfig, where: str
) -> tuple[np.ndarray | None, list[str] | None]:
    members = [sample.label for sample in samples if sample.label is not None]
    if not members and config.label_column is None:
        return None, None
    if len(members) < len(samples):
        lacking = next(sample for sample in samples if sample.label is None)
        wanted = config.label_column or _LABEL_SUFFIX
        raise ValueError(
            f"{where}: {len(samples) - len(members)} of {len(samples)} samples have no label {wanted}, e.g. {lacking.key}: write "
            "the shards again, or correct data.label_column"
        )
    texts = _bytes_of(paths, shard, members)
    values: list[Any] = []
    for i, member in enumerate(members):
        text = texts[i].decode("utf-8", errors="replace").strip()
        values.append(_entry(text, config.label_column or "", samples[i].key) if member.suffix == "json" else text)
    if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
        values = [int(value) for value in values]
    return to_classes(values, f"{where}: labels")


def _entry(text: str, name: str, key: str) -> Any:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{key}: its .json is not JSON ({error}): write the shard again") from error
    if not isinstance(values, dict) or name not in values:
        has = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{key}: its .json has no entry {name!r} (it has {has}): correct data.label_column")
    return values[name]
