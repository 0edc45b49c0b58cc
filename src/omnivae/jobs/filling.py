"""Bringing a posterior store up to date: what is new or changed is encoded, what is gone dropped, and a kill loses little."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from omnivae.data.latents import FORMAT, KIND, STORE, PosteriorStore, identity
from omnivae.jobs.images import not_gaussian
from omnivae.jobs.progress import progress_bar
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
from omnivae.models import VAE
from omnivae.models.storage import model_hash

log = logging.getLogger(__name__)

#: What a store is filled with: entries and their means and log-variances, as many at once as were encoded at once.
Encoded = Iterable[tuple[Entry, Tensor, Tensor]]


class Items(Protocol):
    """What a store is filled from: images, volumes or clips.

    Attributes:
        keys: their names, sorted.
        what: they are, for messages: "images", "volumes", "videos".
        skipped: numbers of those that turned out to be unusable and are left out.
    """

    keys: list[str]
    what: str
    skipped: set[int]

    def label(self, i: int) -> Any:
        """Return the label of number ``i``, ready for JSON, or None."""

    def cond(self, i: int) -> list[float] | None:
        """Return what a conditional model is told about number ``i``, or None."""

    def content_hash(self, i: int) -> str:
        """Return the SHA-256 of number ``i`` as it is stored."""


@dataclass(frozen=True)
class EncodeResult:
    """What a run of ``omnivae encode`` did.

    Attributes:
        store: the store.
        encoded: images that went through the encoder.
        copied: entries taken from an equal image in the store (a renamed or relabelled file).
        kept: entries that were there already.
        removed: keys whose images are gone; their entries are dropped.
        total: images of this process's share of the data.
        skipped: keys of those that could not be used and were left out.
        what: they are: "images", "volumes", "videos".
    """

    store: Path
    encoded: int
    copied: int
    kept: int
    removed: list[str]
    total: int
    skipped: tuple[str, ...] = ()
    what: str = "images"

    def __str__(self) -> str:
        gone = f", {len(self.removed)} removed" if self.removed else ""
        copied = f", {self.copied} copied" if self.copied else ""
        left = f", {len(self.skipped)} left out" if self.skipped else ""
        return f"{self.store}: {self.total} {self.what}, {self.encoded} encoded{copied}, {self.kept} kept{gone}{left}"


def launch() -> tuple[int, int]:
    """Return rank and number of processes as torchrun sets them, and choose this process's GPU: before a model is loaded.

    Raises:
        ValueError: for a rank that cannot be.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(
            f"got RANK={rank} and WORLD_SIZE={world_size} from the environment; expected 0 <= RANK < WORLD_SIZE"
        )
    if world_size > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return rank, world_size


def check_options(dtype: str, shard_mib: float) -> None:
    """Raise ``ValueError`` for options of a store that cannot be.

    Args:
        dtype: what means and log-variances are stored in.
        shard_mib: size of a shard in MiB.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"got dtype={dtype!r}; expected one of {', '.join(get_args(Dtype))}")
    if not shard_mib > 0:
        raise ValueError(f"got shard_mib={shard_mib}; expected a size above 0")


def check_posterior(model: VAE) -> None:
    """Raise ``ValueError`` for a model whose posterior a store cannot hold, before a store is made.

    Args:
        model: the model.
    """
    if "diagonal" not in getattr(model.posterior, "provides", {"diagonal"}):
        raise ValueError(not_gaussian(model, type(model.posterior).__name__))


def describe_store(
    model: VAE,
    directory: Path,
    *,
    transform: dict[str, Any],
    dtype: str,
    classes: Sequence[str] | None = None,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """Return what ``store.json`` says.

    Args:
        model: that encodes, in the precision that it encodes in.
        directory: of the model.
        transform: everything that happens between a file and the model.
        dtype: what means and log-variances are stored in.
        classes: names of the classes.
        recipe: what the run was asked for.
    """
    return {
        "kind": KIND,
        "format": FORMAT,
        "model": _describe(model, directory),
        "transform": transform,
        "dtype": dtype,
        "precision": _precision(model),
        "classes": None if classes is None else list(classes),
        "recipe": recipe | {"omnivae": version("omnivae")},
    }


def fill_store(
    target: Path,
    info: dict[str, Any],
    items: Items,
    encode: Callable[[list[int], Callable[[int], None]], Iterator[Encoded]],
    *,
    source: str,
    shard_mib: float = 64.0,
    steps: int = 1,
    progress: bool = True,
) -> EncodeResult:
    """Bring a store up to date with a list of images, volumes or clips.

    Args:
        target: the store.
        info: what its latents are.
        items: what is to be in it.
        encode: encodes the items of some numbers; is given them and a function to call with the steps done. After each of its
            results a shard is written if one is due.
        source: where the items come from, for messages.
        shard_mib: size of a shard in MiB.
        steps: of the progress bar, for each item.
        progress: show progress on a terminal.

    Returns:
        What was done.

    Raises:
        ValueError: when the store holds something else.
        OSError: when the store cannot be written; what was written stays whole.
    """
    rank, world_size = launch()
    what, unit = items.what, items.what if steps == 1 else "%"
    write_info(target, _agree(target, info))
    with locked(target, rank=rank, world_size=world_size):
        store = PosteriorStore(target)
        removed = sorted(set(store.keys).difference(items.keys))
        if len(store) and len(removed) == len(store) and not _renamed(store, items):
            raise ValueError(
                f"none of the {len(store)} {what} in {target} is among the {len(items.keys)} {what} of {source}; give "
                "these another --output"
            )
        if removed and rank == 0:
            shown = ", ".join(removed[:3]) + (", ..." if len(removed) > 3 else "")
            log.warning("%d %s of the store are gone from the data and are dropped: %s", len(removed), what, shown)
        mine = [i for i, key in enumerate(items.keys) if _share(key, world_size) == rank]
        writer = StoreWriter(
            target, info, rank=rank, world_size=world_size, generation=next_generation(target), shard_mib=shard_mib
        )
        with progress_bar("encoding", steps * len(mine), progress and rank == 0, unit) as advance:
            todo, copies = _sort_out(store, items, mine, removed)
            advance(steps * (len(mine) - len(todo) - len(copies)))
            for i, number in copies.items():
                entry = replace(entry_of(store, number), key=items.keys[i], label=items.label(i), cond=items.cond(i))
                writer.add(entry, *store.posterior(number))
                writer.flush_if_due()
                advance(steps)
            try:
                for batch in encode(todo, advance):
                    for entry, mean, logvar in batch:
                        writer.add(entry, mean, logvar)
                    writer.flush_if_due()
            except BaseException:
                # Ctrl-C, or an image that cannot be read: the work done so far is kept.
                if not writer.failed:
                    writer.flush()
                raise
            writer.flush()
        if world_size == 1:
            _finish(target, info, items, shard_mib)
    if world_size > 1:
        with alone(target) as last:
            if last:
                _finish(target, info, items, shard_mib)
    kept, skipped = len(mine) - len(todo) - len(copies), tuple(items.keys[i] for i in sorted(items.skipped))
    return EncodeResult(
        target, len(todo) - len(skipped), len(copies), kept, removed, len(mine) - len(skipped), skipped, what
    )


# -- inside


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
        ("series", "--series", ours.get("series") not in (None, theirs.get("series"))),
        ("limit", "--data.limit", ours["limit"] is not None and ours["limit"] < (theirs.get("limit") or math.inf)),
    ):
        if narrower:
            raise ValueError(
                f"{target} was encoded with {option} {theirs.get(name) or 'all'}, and {option} {ours[name]} would drop entries "
                f"from it: repeat the command without {option}, or give these images another --output"
            )


def _sort_out(
    store: PosteriorStore, items: Items, mine: list[int], removed: list[str]
) -> tuple[list[int], dict[int, int]]:
    """Return what to encode, and those whose latent is in the store but under another name or label."""
    known = [i for i in mine if items.keys[i] in store]
    todo, copies, contents = [], {}, {}
    for i, content in zip(known, _hashes(items, known), strict=True):
        number = store.number(items.keys[i])
        # A latent is also a function of what the model was told: under another condition the image is encoded anew.
        if store.content_hash(number) != content:
            contents[i] = content
        elif store.cond(number) != items.cond(i):
            todo.append(i)
        elif store.stored_label(number) != items.label(i):
            copies[i] = number
    new = [i for i in mine if items.keys[i] not in store]
    if removed or contents:
        # A renamed file is one that is gone, or changed, and one that is new; otherwise new files need no look.
        contents |= dict(zip(new, _hashes(items, new), strict=True))
        owners = {store.content_hash(number): number for number in range(len(store))}
        for i, content in contents.items():
            number = owners.get(content, -1)
            if number >= 0 and store.cond(number) == items.cond(i):
                copies[i] = number
            else:
                todo.append(i)
    else:
        todo += new
    return sorted(todo), copies


def _renamed(store: PosteriorStore, items: Items) -> bool:
    """Return whether half of a store or more is among the items under other names."""
    contents = {store.content_hash(number) for number in range(len(store))}
    return 2 * len(contents.intersection(_hashes(items, list(range(len(items.keys)))))) >= len(contents)


def _hashes(items: Items, numbers: list[int]) -> Iterator[str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(numbers), 256):  # a future for each of a million files would take gigabytes
            yield from pool.map(items.content_hash, numbers[start : start + 256])


def _finish(target: Path, info: dict[str, Any], items: Items, shard_mib: float) -> None:
    keep = {key for i, key in enumerate(items.keys) if i not in items.skipped}
    compact(target, info, keep=keep, shard_mib=shard_mib)
    write_info(target, info)
