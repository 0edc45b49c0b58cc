"""Posterior stores: latents of a data set as distributions, read at random.

A store is a folder: ``store.json`` says what its latents are, ``shards/*.safetensors`` hold them. The shards alone are the
truth: each carries the names, content hashes and sizes of its entries in its header, and whatever was written last counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnivae.data.moments import ChannelMoments

STORE, SHARDS, SUFFIX = "store.json", "shards", ".safetensors"
KIND, FORMAT = "omnivae posterior store", 1
#: What a shard's header holds of each entry.
COLUMNS = ("key", "content", "label", "input_size", "file", "cond", "tensor")
#: Shards that one process keeps open; the least recently used is closed.
MAX_OPEN = 64


@dataclass(frozen=True)
class Shard:
    """The header of one shard: what it holds, without its tensors.

    Attributes:
        path: the file.
        generation: run that wrote it; of two entries with one key, that of the later run counts.
        store: what the latents are, as in ``store.json``.
        key: name of each image.
        content: SHA-256 of each image as it is stored.
        label: class name, class number or factor values of each image, or None.
        input_size: spatial size of each image before padding.
        file: what it takes to write another file like each image's, or None.
        cond: what a conditional model was told about each image, or None.
        tensor: number of the pair of tensors ``mean.N``, ``logvar.N`` that holds each entry.
        moments: moments of all entries.
    """

    path: Path
    generation: int
    store: dict[str, Any]
    key: list[str]
    content: list[str]
    label: list[Any]
    input_size: list[list[int]]
    file: list[dict[str, Any] | None]
    cond: list[list[float] | None]
    tensor: list[int]
    moments: ChannelMoments

    @property
    def rows(self) -> list[int]:
        """Row of each entry in its tensors: entries of one tensor follow each other in order."""
        seen: dict[int, int] = {}
        rows = []
        for number in self.tensor:
            rows.append(seen.get(number, 0))
            seen[number] = rows[-1] + 1
        return rows


def read_shard(path: str | Path) -> Shard:
    """Read the header of a shard.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        ValueError: when the file is damaged, no shard, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and run `omnivae encode` again, which encodes its images anew"
        ) from error
    if metadata.get("kind") != KIND:
        raise ValueError(f"{path} is no shard of a posterior store; `omnivae encode` writes them")
    if int(metadata["format"]) > FORMAT:
        raise ValueError(
            f"{path} was written by a newer omnivae (format {metadata['format']}, this one reads {FORMAT}): upgrade omnivae"
        )
    entries = json.loads(metadata["entries"])
    kinds = json.loads(metadata["files"])
    entries["file"] = [kinds[number] for number in entries["file"]]
    entries.setdefault("cond", [None] * len(entries["key"]))  # a column that came later
    shard = Shard(
        path=path,
        generation=int(metadata["generation"]),
        store=json.loads(metadata["store"]),
        moments=ChannelMoments.from_dict(json.loads(metadata["moments"])),
        **{name: entries[name] for name in COLUMNS},
    )
    missing = {f"{kind}.{number}" for number in set(shard.tensor) for kind in ("mean", "logvar")} - names
    lengths = {len(entries[name]) for name in COLUMNS}
    if missing or len(lengths) != 1:
        raise ValueError(f"{path} is damaged (its header does not fit its tensors): delete it and encode again")
    return shard


class PosteriorStore(Sequence):
    """Posteriors q(z|x) of a data set as ``omnivae encode`` wrote them, by number or by key, read when asked for.

    Files are mapped, not loaded; each process opens its own. The store can be pickled into data-loading processes.

    Args:
        path: the store, or one of its shards.

    Raises:
        FileNotFoundError: when there is no store.
        ValueError: when it is damaged, or written by a newer version.

    Attributes:
        info: what the latents are: model, transform, dtype, precision, class names.
        keys: names of the images, sorted.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files, self.info = _find(self.path)
        shards = [read_shard(file) for file in files]
        # Later runs replace entries of earlier ones; names break ties so that every reader decides alike.
        shards.sort(key=lambda shard: (shard.generation, shard.path.name))
        if not self.info and shards:
            self.info = shards[-1].store
        for shard in shards:
            if identity(shard.store) != identity(self.info):
                raise ValueError(
                    f"{shard.path} holds latents of another model or transform than {self.path / STORE} says"
                )
        self._index(shards)
        self._forget()

    def _index(self, shards: list[Shard]) -> None:
        starts = np.cumsum([0, *(len(shard.key) for shard in shards)])
        newest: dict[str, int] = {}
        for start, shard in zip(starts, shards, strict=False):
            newest.update(zip(shard.key, range(int(start), int(start) + len(shard.key)), strict=True))
        self.keys = sorted(newest)
        order = np.fromiter((newest[key] for key in self.keys), dtype=np.int64, count=len(self.keys))

        def column(values: Iterator[Any], dtype: Any, *width: int) -> np.ndarray:
            return np.array(list(values), dtype=dtype).reshape(int(starts[-1]), *width)[order]

        axes = len(shards[0].input_size[0]) if len(self.keys) else 0
        # Arrays instead of an object for each entry: a million entries take some 100 MB.
        self._files = [shard.path for shard in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(starts))[order]
        self._tensor = column((n for s in shards for n in s.tensor), np.int32)
        self._row = column((n for s in shards for n in s.rows), np.int32)
        self._size = column((size for s in shards for size in s.input_size), np.int32, axes)
        self._content = column((bytes.fromhex(c) for s in shards for c in s.content), "V32")
        self._file = [file for s in shards for file in s.file] if len(self.keys) else []
        self._file = [self._file[i] for i in order]
        labels = [label for s in shards for label in s.label]
        self._label = None if all(label is None for label in labels) else [labels[i] for i in order]
        counts = np.bincount(self._shard, minlength=len(shards))
        conds = [cond for s in shards for cond in s.cond]
        self._cond = None if all(cond is None for cond in conds) else [conds[i] for i in order]
        # Moments of a shard are of all its entries; where some of them are superseded, they are measured again.
        self._moments = [s.moments if counts[i] == len(s.key) else None for i, s in enumerate(shards)]
        self.num_superseded = int(starts[-1]) - len(self.keys)

    # -- what is there

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find_key(key) is not None

    def __getitem__(self, index: int | str) -> dict[str, Any]:  # type: ignore[override]
        """Return one posterior.

        Args:
            index: its number, or its key.

        Returns:
            ``mean`` and ``logvar`` ``[C, *S]`` float32, ``key``, ``input_size`` (before padding) and, where the images have
            one, ``label``, and of a conditional model ``cond`` ``[E]``. Of volumes ``affine`` ``[4, 4]``, from indices of what the
            model saw to the world, and ``spacing`` ``[3]``, its voxel size.
        """
        i = self.number(index)
        mean, logvar = self.posterior(i)
        item: dict[str, Any] = {"mean": mean, "logvar": logvar, "key": self.keys[i], "input_size": self.input_size(i)}
        label = self.label(i)
        if label is not None:
            item["label"] = torch.as_tensor(label)
        cond = self.cond(i)
        if cond is not None:
            item["cond"] = torch.tensor(cond)
        affine = self.affine(i)
        if affine is not None:
            item |= {"affine": torch.from_numpy(affine), "spacing": self.spacing(i)}
        return item

    def number(self, index: int | str) -> int:
        """Return the number of an entry, given that or its key.

        Args:
            index: number or key.

        Raises:
            KeyError: for an unknown key.
            IndexError: for a number out of range.
        """
        if isinstance(index, str):
            found = self._find_key(index)
            if found is None:
                raise KeyError(f"no entry {index!r} in {self.path}")
            return found
        if not -len(self) <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        return int(index) % len(self)

    def posterior(self, i: int, box: Sequence[slice] = ()) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of an entry, each ``[C, *S]`` float32.

        Args:
            i: number of the entry.
            box: part of the spatial axes to read; all by default.
        """
        slices = self._open(int(self._shard[i]))
        row, number = int(self._row[i]), int(self._tensor[i])
        where = (row, slice(None), *box) if box else row
        return slices[f"mean.{number}"][where].float(), slices[f"logvar.{number}"][where].float()

    def input_size(self, i: int) -> tuple[int, ...]:
        """Return the spatial size of image ``i`` before padding; decoding crops to it."""
        return tuple(int(n) for n in self._size[i])

    def latent_shape(self, i: int) -> tuple[int, ...]:
        """Return the shape ``[C, *S]`` of latent ``i``."""
        return tuple(self._open(int(self._shard[i]))[f"mean.{int(self._tensor[i])}"].get_shape()[1:])

    def sizes(self) -> dict[tuple[int, ...], np.ndarray]:
        """Return the spatial sizes of all latents, and the numbers of the entries of each."""
        if not len(self):
            return {}
        # The size of a latent is a function of that of its image.
        if (self._size == self._size[0]).all():
            return {self.latent_shape(0)[1:]: np.arange(len(self))}
        _, firsts, which = np.unique(self._size, axis=0, return_index=True, return_inverse=True)
        found: dict[tuple[int, ...], list[int]] = {}
        for kind, first in enumerate(firsts):
            found.setdefault(self.latent_shape(int(first))[1:], []).append(kind)
        which = which.reshape(-1)
        return {size: np.flatnonzero(np.isin(which, kinds)) for size, kinds in sorted(found.items())}

    def affine(self, i: int) -> np.ndarray | None:
        """Return the affine ``[4, 4]`` of volume ``i`` as the model saw it, from indices to the world (mm of a patient)."""
        file = self.file(i) or {}
        return np.array(file["volume"]["seen"]["affine"]) if "volume" in file else None

    def spacing(self, i: int) -> Tensor | None:
        """Return the voxel size of volume ``i`` in the model's frame, ``[3]`` float32, or None for what is no volume."""
        affine = self.affine(i)
        return None if affine is None else torch.from_numpy(np.linalg.norm(affine[:3, :3], axis=0)).float()

    def file(self, i: int) -> dict[str, Any] | None:
        """Return what it takes to write another file like that of image ``i``, or None where it had none."""
        return self._file[i]

    def cond(self, i: int) -> list[float] | None:
        """Return what a conditional model was told about image ``i``, ``E`` numbers, or None."""
        return None if self._cond is None else self._cond[i]

    def shard_of(self, i: int) -> Path:
        """Return the shard that holds entry ``i``."""
        return self._files[int(self._shard[i])]

    def content_hash(self, i: int) -> str:
        """Return the SHA-256 of image ``i`` as it was stored when it was encoded."""
        return self._content[i].tobytes().hex()

    def stored_label(self, i: int) -> Any:
        """Return the label of image ``i`` as it is written: a class name where classes have names."""
        return None if self._label is None else self._label[i]

    def label(self, i: int) -> int | list[float] | None:
        """Return the class number or factor values of image ``i``, or None."""
        label = self.stored_label(i)
        return self.classes.index(label) if isinstance(label, str) and self.classes else label

    @property
    def kind(self) -> str:
        """What was encoded: "images", "volumes" or "videos"."""
        return self.info.get("transform", {}).get("kind", "images")

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, or None."""
        return self.info.get("classes")

    @property
    def model_hash(self) -> str:
        """SHA-256 of the configuration and weights of the model that encoded."""
        return self.info["model"]["sha256"]

    @property
    def model_name(self) -> str:
        """Name of the model that encoded."""
        return self.info["model"]["name"]

    # -- figures of all entries

    def moments(self) -> ChannelMoments:
        """Return the moments of the aggregate posterior, channel by channel; exact, in float64."""
        total = ChannelMoments(int(self.info["model"]["latent_dim"]))
        for shard, known in enumerate(self._moments):
            if known is None:
                known = ChannelMoments(len(total.mean))
                for i in np.flatnonzero(self._shard == shard):
                    mean, logvar = self.posterior(int(i))
                    known.update(mean[None], logvar[None])
            total.merge(known)
        return total

    def statistics(self) -> dict[str, Any]:
        """Return mean, std and scale factor of the latents, as ``omnivae calibrate`` saves them beside a model."""
        return self.moments().summary()

    def data_hash(self) -> str:
        """Return one SHA-256 for the keys and contents of all images, whatever order they were encoded in."""
        return hash_of_data((key, self.content_hash(i)) for i, key in enumerate(self.keys))

    # -- inside

    def _find_key(self, key: str) -> int | None:
        i = bisect_left(self.keys, key)
        return i if i < len(self.keys) and self.keys[i] == key else None

    def _forget(self) -> None:
        self._handles: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.Lock()

    def _open(self, shard: int) -> dict[str, Any]:
        from safetensors import safe_open

        if self._process != os.getpid():  # after a fork: another process's handles and lock
            self._forget()
        with self._lock:
            if shard in self._handles:
                self._handles.move_to_end(shard)
                return self._handles[shard]
            path = self._files[shard]
            if not path.is_file():
                raise FileNotFoundError(f"{path} was rewritten since the store was opened: open {self.path} again")
            file = safe_open(path, "pt")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self._handles[shard] = slices
            if len(self._handles) > MAX_OPEN:
                self._handles.popitem(last=False)
            return slices

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_handles", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        return f"PosteriorStore({str(self.path)!r}): {len(self)} posteriors of {self.model_name} {self.model_hash[:12]}"


def identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a latent is a function of besides the image: with the image's SHA-256 it is the address of an entry.

    Args:
        info: as ``store.json`` holds it.
    """
    model = {name: info["model"][name] for name in ("sha256", "latent_dim")}
    return {"model": model, **{name: info[name] for name in ("transform", "dtype", "precision")}}


def hash_of_data(pairs: Any) -> str:
    """Return one SHA-256 for images in any order.

    Args:
        pairs: key and SHA-256 of the content of each.
    """
    lines = sorted(json.dumps([key, content]) for key, content in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _find(path: Path) -> tuple[list[Path], dict[str, Any]]:
    if path.is_file():
        return [path], {}
    if not (path / STORE).is_file():
        raise FileNotFoundError(f"no posterior store at {path}: expected {STORE} in it; `omnivae encode` writes one")
    try:
        info = json.loads((path / STORE).read_text())
    except ValueError as error:
        raise ValueError(f"{path / STORE} is damaged ({error}): delete it and run `omnivae encode` again") from error
    if not isinstance(info, dict) or info.get("kind") != KIND:
        raise ValueError(f"{path / STORE} does not describe a posterior store; `omnivae encode` writes them")
    if info["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a newer omnivae (format {info['format']}, this one reads {FORMAT}): upgrade omnivae"
        )
    return sorted((path / SHARDS).glob(f"*{SUFFIX}")), info
