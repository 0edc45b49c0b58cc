"""``omnivae encode``: images to a posterior store that can be killed, continued and brought up to date."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from omnivae.data.config import OnError
from omnivae.data.latents import FORMAT, KIND, STORE, PosteriorStore, identity
from omnivae.jobs.evaluate import load
from omnivae.jobs.images import ImageList, Part, encode_batches, images_to_encode, not_gaussian, plan_batches
from omnivae.jobs.progress import progress_bar
from omnivae.jobs.run_data import data_for, run_data
from omnivae.jobs.store import (
    Dtype,
    Entry,
    StoreWriter,
    alone,
    compact,
    entry_of,
    locked,
    next_generation,
    write_info,
)
from omnivae.jobs.text import is_text_model
from omnivae.models import VAE
from omnivae.models.storage import find_model, model_hash
from omnivae.training.device import Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodeResult:
    """What a run of :func:`encode_images` did.

    Attributes:
        store: the store.
        encoded: images that went through the encoder.
        copied: entries taken from an equal image in the store (a renamed or relabelled file).
        kept: entries that were there already.
        removed: keys whose images are gone; their entries are dropped.
        total: images of this process's share of the data.
    """

    store: Path
    encoded: int
    copied: int
    kept: int
    removed: list[str]
    total: int

    def __str__(self) -> str:
        gone = f", {len(self.removed)} removed" if self.removed else ""
        copied = f", {self.copied} copied" if self.copied else ""
        return f"{self.store}: {self.total} images, {self.encoded} encoded{copied}, {self.kept} kept{gone}"


def encode_images(
    model: str | Path,
    output: str | Path,
    *,
    path: str | None = None,
    part: Part = "all",
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    on_error: OnError | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    dtype: Dtype = "float32",
    precision: Precision = "32",
    shard_mib: float = 64.0,
    progress: bool = True,
) -> EncodeResult:
    """Encode images into a posterior store, or bring one up to date: new and changed images are encoded, gone ones dropped.

    The same command goes on after a kill. Under ``torchrun`` each process encodes its share (by the hash of the image's
    name) into shards of its own. In float32 on a CPU, another batch size changes a latent by rounding only.

    Args:
        model: a model directory or a run.
        output: the store.
        path: the images; the run's own by default.
        part: which split of them.
        image_size: side of the central square to resize to. By default images keep their size where the model takes any,
            and are prepared as in its training where it does not.
        channels: 1 or 3 to convert images to.
        limit: at most so many images.
        on_error: "stop" at a file that cannot be read, or "skip" it; as in training by default.
        batch_size: images at once.
        num_workers: processes that read images.
        dtype: what means and log-variances are stored in.
        precision: of the networks; float32 by default, as latents outlive the machine that made them.
        shard_mib: size of a shard in MiB.
        progress: show progress on a terminal.

    Returns:
        What was done.

    Raises:
        ValueError: when the store holds latents of another model or transform, or an image cannot be encoded.
        OSError: when the store cannot be written; what was written stays whole.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"got dtype={dtype!r}; expected one of {', '.join(get_args(Dtype))}")
    if not shard_mib > 0:
        raise ValueError(f"got shard_mib={shard_mib}; expected a size above 0")
    rank, world_size = _launch()
    directory = find_model(model)
    if is_text_model(directory):
        raise ValueError(
            f"{model} holds a model of sentences, and a posterior store is of images: encode sentences in Python with "
            "model.encode(model.to_tokens(sentences))"
        )
    loaded = load(directory, precision)
    if "diagonal" not in getattr(loaded.posterior, "provides", {"diagonal"}):
        # Before a store is made: an empty one would be left behind.
        raise ValueError(not_gaussian(loaded, type(loaded.posterior).__name__))
    config = data_for(loaded, path, run_data(directory))
    config = replace(
        config,
        image_size=config.image_size if image_size is None else image_size,
        channels=config.channels if channels is None else channels,
        limit=limit,
        on_error=on_error or config.on_error,
    )
    images = images_to_encode(loaded, config, part=part, native=image_size is None and loaded.image_size is None)
    info = {
        "kind": KIND,
        "format": FORMAT,
        "model": _describe(loaded, directory),
        "transform": images.describe(),
        "dtype": dtype,
        "precision": _precision(loaded),
        "classes": images.source.classes,
        "recipe": {"data": config.path, "split": part, "limit": limit, "omnivae": version("omnivae")},
    }
    target = Path(output)
    write_info(target, _agree(target, info))
    with locked(target, rank=rank, world_size=world_size):
        store = PosteriorStore(target)
        removed = sorted(set(store.keys).difference(images.keys))
        if len(store) and len(removed) == len(store):
            raise ValueError(
                f"none of the {len(store)} images in {target} is among the {len(images)} images of {config.path}; give "
                "these another --output"
            )
        if removed and rank == 0:
            shown = ", ".join(removed[:3]) + (", ..." if len(removed) > 3 else "")
            log.warning("%d images of the store are gone from the data and are dropped: %s", len(removed), shown)
        mine = [i for i, key in enumerate(images.keys) if _share(key, world_size) == rank]
        writer = StoreWriter(
            target, info, rank=rank, world_size=world_size, generation=next_generation(target), shard_mib=shard_mib
        )
        with progress_bar("encoding", len(mine), progress and rank == 0) as advance:
            todo, copies = _sort_out(store, images, mine, removed)
            advance(len(mine) - len(todo) - len(copies))
            for i, number in copies.items():
                entry = replace(entry_of(store, number), key=images.keys[i], label=images.label(i), cond=images.cond(i))
                writer.add(entry, *store.posterior(number))
                writer.flush_if_due()
                advance(1)
            try:
                for batch in encode_batches(
                    loaded, images, plan_batches(images, todo, batch_size), num_workers=num_workers
                ):
                    for row, i in enumerate(batch.numbers):
                        label, file = images.label(i), batch.file[row]
                        cond = None if batch.cond is None else batch.cond[row].tolist()
                        entry = Entry(images.keys[i], batch.content[row], label, batch.input_size, file, cond)
                        writer.add(entry, batch.mean[row], batch.logvar[row])
                    writer.flush_if_due()
                    advance(len(batch.numbers))
            except BaseException:
                # Ctrl-C, or an image that cannot be read: the work done so far is kept.
                if not writer.failed:
                    writer.flush()
                raise
            writer.flush()
        if world_size == 1:
            _finish(target, info, images, shard_mib)
    if world_size > 1:
        with alone(target) as last:
            if last:
                _finish(target, info, images, shard_mib)
    return EncodeResult(target, len(todo), len(copies), len(mine) - len(todo) - len(copies), removed, len(mine))


# -- inside


def _launch() -> tuple[int, int]:
    """Return rank and number of processes as torchrun sets them, and choose this process's GPU."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(
            f"got RANK={rank} and WORLD_SIZE={world_size} from the environment; expected 0 <= RANK < WORLD_SIZE"
        )
    if world_size > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return rank, world_size


def _share(key: str, world_size: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % world_size


def _precision(model: VAE) -> str:
    """Return what "auto" came to: the precision of the networks' weights."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return "bf16" if torch.bfloat16 in dtypes else "16" if torch.float16 in dtypes else "32"


def _describe(model: VAE, directory: Path) -> dict[str, Any]:
    return {
        "sha256": model_hash(directory),
        "name": f"{type(model).__name__} in {directory.parent.name if directory.name == 'model' else directory.name}",
        "latent_dim": model.latent_dim,
        "value_range": list(model.value_range),
    }


def _agree(target: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Return the description to write before anything is encoded; refuse a store of something else."""
    if not (target / STORE).is_file():
        if target.is_dir() and any(not file.name.startswith(".") for file in target.iterdir()):
            raise FileExistsError(f"{target} holds something else than a posterior store; give --output another folder")
        return info
    old = PosteriorStore(target).info
    ours, theirs = identity(info), identity(old)
    for name in ours:
        if ours[name] == theirs[name]:
            continue
        if name == "model":
            got = f"of {info['model']['name']} ({ours[name]['sha256'][:12]})"
            had = f"of {old['model']['name']} ({theirs[name]['sha256'][:12]})"
        elif name == "transform":
            keys = [k for k in ours[name] if ours[name][k] != theirs[name].get(k)]
            got = "with the transform " + ", ".join(f"{k}={ours[name][k]}" for k in keys)
            had = "with " + ", ".join(f"{k}={theirs[name].get(k)}" for k in keys)
        else:
            got, had = f"with {name} {ours[name]}", f"with {name} {theirs[name]}"
        raise ValueError(f"{target} holds latents {had}, not {got}; give these another --output")
    _refuse_fewer(target, info["recipe"], old.get("recipe", {}))
    # Entries of classes that are gone stay readable until they are dropped at the end.
    known = list(info["classes"] or [])
    return info | {"classes": known + [c for c in old["classes"] or [] if c not in known] or None}


def _refuse_fewer(target: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse to take the images that a narrower choice leaves out for images that are gone."""
    for name, option, narrower in (
        ("split", "--data.split", ours["split"] not in ("all", theirs.get("split", "all"))),
        ("limit", "--data.limit", ours["limit"] is not None and ours["limit"] < (theirs.get("limit") or math.inf)),
    ):
        if narrower:
            raise ValueError(
                f"{target} was encoded with {option} {theirs.get(name) or 'all'}, and {option} {ours[name]} would drop entries "
                f"from it: repeat the command without {option}, or give these images another --output"
            )


def _sort_out(
    store: PosteriorStore, images: ImageList, mine: list[int], removed: list[str]
) -> tuple[list[int], dict[int, int]]:
    """Return the images to encode, and those whose latent is in the store but under another name or label."""
    # A renamed file is one that is gone and one that is new; without any gone, new files need no look.
    gone = {store.content_hash(number): number for number in map(store.number, removed)}
    known = [i for i in mine if gone or images.keys[i] in store]
    todo, copies = [i for i in mine if not (gone or images.keys[i] in store)], {}
    for i, content in zip(known, _hashes(images, known), strict=True):
        key = images.keys[i]
        # A latent is also a function of what the model was told: under another condition the image is encoded anew.
        if key in store and store.content_hash(store.number(key)) == content:
            if store.cond(store.number(key)) != images.cond(i):
                todo.append(i)
            elif store.stored_label(store.number(key)) != images.label(i):
                copies[i] = store.number(key)
        elif content in gone and store.cond(gone[content]) == images.cond(i):
            copies[i] = gone[content]
        else:
            todo.append(i)
    return todo, copies


def _hashes(images: ImageList, numbers: list[int]) -> Iterator[str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(numbers), 256):  # a future for each of a million files would take gigabytes
            yield from pool.map(images.content_hash, numbers[start : start + 256])


def _finish(target: Path, info: dict[str, Any], images: ImageList, shard_mib: float) -> None:
    compact(target, info, keep=set(images.keys), shard_mib=shard_mib)
    write_info(target, info)
