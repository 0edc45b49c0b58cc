"""Writing of posterior stores: shards that appear whole or not at all, one writer at a time, and compaction.

Kill-safe by construction: a shard is written beside its place, flushed to disk and renamed; there is no index to fall out
of step with, since readers take it from the shards' headers. New entries are written before the ones they replace are
removed, and the later run counts, so at every moment the store holds each image at most once and loses none.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from omnivae.data.latents import COLUMNS, FORMAT, KIND, SHARDS, STORE, SUFFIX, PosteriorStore, Shard, read_shard
from omnivae.data.moments import ChannelMoments
from omnivae.files import replace_atomic, system_error, write_atomic

log = logging.getLogger(__name__)

Dtype = Literal["float32", "float16", "bfloat16"]
LOCK = ".lock"


@dataclass(frozen=True)
class Entry:
    """What is known of one image besides its latent.

    Attributes:
        key: its name.
        content: SHA-256 of it as it is stored.
        label: class name, class number or factor values, or None.
        input_size: spatial size before padding.
        file: what it takes to write another file like the image's (type, colour mode, ...), or None.
        cond: what a conditional model was told about the image, ``E`` numbers, or None.
    """

    key: str
    content: str
    label: Any
    input_size: tuple[int, ...]
    file: dict[str, Any] | None = None
    cond: list[float] | None = None


class StoreWriter:
    """Collects posteriors and writes them shard by shard; memory is bounded by the size of one shard.

    Args:
        directory: the store.
        info: what the latents are, as ``store.json`` holds it.
        rank: number of this process; it names its shards, so that processes never meet in one.
        world_size: number of processes.
        generation: number of this run; entries of later runs replace those of earlier ones.
        shard_mib: size of a shard in MiB.
        flush_s: write what there is after so many seconds, so that a kill never costs more work than that.
    """

    def __init__(
        self,
        directory: Path,
        info: dict[str, Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        generation: int = 1,
        shard_mib: float = 64.0,
        flush_s: float = 120.0,
    ) -> None:
        self.directory, self.info, self.generation = directory, info, generation
        self.prefix = "shard-" if world_size == 1 else f"shard-rank{rank:03d}-"
        self.dtype = getattr(torch, info["dtype"])
        self.shard_bytes, self.flush_s = shard_mib * 2**20, flush_s
        self.failed = False
        self._groups: dict[tuple[int, ...], tuple[list[Entry], list[Tensor], list[Tensor]]] = {}
        self._bytes, self._begun = 0, time.monotonic()

    def add(self, entry: Entry, mean: Tensor, logvar: Tensor) -> None:
        """Take in one posterior; write a shard when enough are there.

        Args:
            entry: the image.
            mean: ``[C, *S]``.
            logvar: ``[C, *S]``.

        Raises:
            ValueError: when a value is not finite, or too large for the store's dtype.
            OSError: when the shard cannot be written; what was written before is safe.
        """
        pair = (self._cast(mean, entry.key), self._cast(logvar, entry.key))
        entries, means, logvars = self._groups.setdefault(tuple(mean.shape), ([], [], []))
        entries.append(entry)
        means.append(pair[0])
        logvars.append(pair[1])
        self._bytes += sum(t.numel() * t.element_size() for t in pair)

    def flush_if_due(self) -> None:
        """Write a shard if it is full or old; called between batches, so that a resumed run forms the same batches."""
        if self._bytes >= self.shard_bytes or time.monotonic() - self._begun >= self.flush_s:
            self.flush()

    def flush(self) -> None:
        """Write what there is into a shard."""
        groups, self._groups, self._bytes, self._begun = self._groups, {}, 0, time.monotonic()
        if not groups:
            return
        tensors, moments = {}, ChannelMoments(next(iter(groups))[0])
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        files: list[Any] = []  # most images of a data set are of one kind: kinds are numbered
        for number, (_, (entries, means, logvars)) in enumerate(sorted(groups.items())):
            for name, rows in (("mean", means), ("logvar", logvars)):
                tensors[f"{name}.{number}"] = torch.stack(rows)
                rows.clear()  # a shard is in memory once, not twice
            moments.update(tensors[f"mean.{number}"], tensors[f"logvar.{number}"])
            for entry in entries:
                if entry.file not in files:
                    files.append(entry.file)
                for name, value in (vars(entry) | {"file": files.index(entry.file), "tensor": number}).items():
                    columns[name].append(value)
        metadata = {
            "kind": KIND,
            "format": str(FORMAT),
            "generation": str(self.generation),
            "store": json.dumps(self.info),
            "entries": json.dumps(columns),
            "files": json.dumps(files),
            "moments": json.dumps(moments.to_dict()),
        }

        def write(beside: Path) -> None:
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            try:
                save_file(tensors, beside, metadata=metadata)
            except SafetensorError as error:
                raise system_error(error) from error

        try:
            replace_atomic(self._next(), write)
        except OSError:
            self.failed = True
            raise

    def _next(self) -> Path:
        numbers = [0]
        for file in (self.directory / SHARDS).glob(f"{self.prefix}*{SUFFIX}"):
            tail = file.name.removeprefix(self.prefix).removesuffix(SUFFIX)
            if tail.isdecimal():
                numbers.append(int(tail) + 1)
        return self.directory / SHARDS / f"{self.prefix}{max(numbers):05d}{SUFFIX}"

    def _cast(self, values: Tensor, key: str) -> Tensor:
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"the posterior of {key} has NaN or infinite values; evaluate the model with --precision 32"
            )
        cast = values.detach().to("cpu", self.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise ValueError(
                f"the posterior of {key} reaches {float(values.abs().max()):.3g}, beyond the range of {self.info['dtype']} "
                f"({torch.finfo(self.dtype).max:.3g}): choose --dtype float32 or bfloat16"
            )
        return cast.contiguous()


def write_info(directory: Path, info: dict[str, Any]) -> None:
    """Write ``store.json``.

    Args:
        directory: the store, created where missing.
        info: what its latents are.

    Raises:
        OSError: when the store cannot be written.
    """
    text = json.dumps(info, indent=2) + "\n"
    if not (directory / STORE).is_file() or (directory / STORE).read_text() != text:
        write_atomic(directory / STORE, text.encode())


#: How long a process of a launch waits for one that holds the store for a moment.
_PATIENCE_S = 60.0


@contextmanager
def locked(directory: Path, *, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """Hold a store for writing: one process alone, or the processes of one launch, each once.

    Args:
        directory: the store.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        BlockingIOError: when another process writes to it.
    """
    with (directory / LOCK).open("ab") as everybody, (directory / f"{LOCK}-rank{rank:03d}").open("ab") as own:
        # Another process of this launch may be done already, and be looking whether it was the last.
        end = time.monotonic() + (_PATIENCE_S if world_size > 1 else 0.0)
        while not (held := _lock(everybody, shared=world_size > 1)) and time.monotonic() < end:
            time.sleep(0.1)
        if not (held and _lock(own)):
            raise BlockingIOError(f"another `omnivae encode` is writing to {directory}: wait for it, or stop it")
        # A killed run leaves the file it was writing; nobody else writes under this name while the lock is held.
        prefix = "shard-" if world_size == 1 else f"shard-rank{rank:03d}-"
        for file in (directory / SHARDS).glob(f".{prefix}*.tmp"):
            file.unlink(missing_ok=True)
        yield


@contextmanager
def alone(directory: Path) -> Iterator[bool]:
    """Try to hold a store for rewriting; tells whether it is held, which it is for the last process of a launch.

    Args:
        directory: the store.
    """
    with (directory / LOCK).open("ab") as everybody:
        yield _lock(everybody)


def _lock(file: Any, *, shared: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:
        log.warning("this system has no file locks: do not write to one store from two commands at once")
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): do not write to one store from two commands", file.name, error)
    return True


def compact(directory: Path, info: dict[str, Any], *, keep: Collection[str], shard_mib: float) -> int:
    """Rewrite the shards that hold superseded or removed entries, and unite small ones; everything else is left alone.

    Args:
        directory: the store, held by :func:`alone`.
        info: what its latents are.
        keep: keys of the images that the data still has.
        shard_mib: size of a shard in MiB.

    Returns:
        Number of entries that were dropped.
    """
    store = PosteriorStore(directory)
    live: dict[Path, list[int]] = {}
    for i, key in enumerate(store.keys):
        if key in keep:
            live.setdefault(store.shard_of(i), []).append(i)
    shards = [read_shard(file) for file in sorted((directory / SHARDS).glob(f"*{SUFFIX}"))]
    dropped = {s.path: len(s.key) - len(live.get(s.path, [])) for s in shards}
    small = [s.path for s in shards if s.path.stat().st_size < shard_mib * 2**19 and not dropped[s.path]]
    rewrite = [path for path, count in dropped.items() if count] + (small if len(small) > 1 else [])
    rewritten = [i for path in sorted(rewrite) for i in live.get(path, [])]
    if rewritten:
        generation = 1 + max(shard.generation for shard in shards)
        writer = StoreWriter(directory, info, generation=generation, shard_mib=shard_mib, flush_s=float("inf"))
        for i in rewritten:
            writer.add(entry_of(store, i), *store.posterior(i))
            writer.flush_if_due()
        writer.flush()
    for path in rewrite:
        path.unlink()
    return sum(dropped.values())


def entry_of(store: PosteriorStore, i: int) -> Entry:
    """Return what a store knows of an image besides its latent.

    Args:
        store: the store.
        i: number of the entry.
    """
    label, size, file = store.stored_label(i), store.input_size(i), store.file(i)
    return Entry(store.keys[i], store.content_hash(i), label, size, file, store.cond(i))


def safe_name(store: PosteriorStore, i: int, output: Path) -> str:
    """Return the key of an entry, which is to be the name of a file.

    Args:
        store: the store.
        i: number of the entry.
        output: directory of the file.

    Raises:
        ValueError: for a name that leads out of the directory.
    """
    name = store.keys[i]
    key = PurePosixPath(name)
    if key.is_absolute() or ".." in key.parts or "\\" in name or ":" in name or not key.name:
        raise ValueError(f"{store.path} names an entry {name!r}, which would lie outside of {output}")
    return name


def next_generation(directory: Path) -> int:
    """Return the number of a run that starts now.

    Args:
        directory: the store.
    """
    shards: Iterator[Shard] = (read_shard(file) for file in (directory / SHARDS).glob(f"*{SUFFIX}"))
    return 1 + max((shard.generation for shard in shards), default=0)
