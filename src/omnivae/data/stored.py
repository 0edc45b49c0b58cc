"""Encoded images wherever they lie (rows of tables, members of tar shards, files that a table lists), made into a source."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from omnivae.data.checking import Checked, check_images
from omnivae.data.config import DataConfig
from omnivae.data.header import Header, ReadOptions
from omnivae.data.images import read_header, read_image
from omnivae.data.naming import members_by_split
from omnivae.data.shards import TarBytes, shard_permutation
from omnivae.data.sources import Found, ImageSource, Split, file_fingerprint

#: What the last check of this process found, by what was looked at and how.
_known: dict[tuple[Any, ...], Checked] = {}


class Blobs(Protocol):
    """Encoded images by number, as bytes or as the path of a file.

    Several threads may ask at once; what holds files open stays behind when it is sent to another process.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes | Path: ...


@dataclass(frozen=True)
class PathBlobs:
    """Image files.

    Args:
        paths: the files.
    """

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]


class NumberedKeys(Sequence[str]):
    """Names made of a prefix and a number, for images that have none.

    Args:
        starts: prefix and the number of the first image that has it, in ascending order.
        total: number of images.

    Example:
        >>> list(NumberedKeys({"train": 0, "test": 2}, 3))
        ['train/00000', 'train/00001', 'test/00000']
    """

    def __init__(self, starts: dict[str, int], total: int) -> None:
        self._prefixes, self._starts, self._total = list(starts), np.array(list(starts.values())), total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._total))]
        if not 0 <= index < self._total:
            raise IndexError(f"image {index} of {self._total}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._prefixes[part]}/{index - self._starts[part]:05d}"


@dataclass(frozen=True)
class Collection:
    """What a reader lists before any image is looked at.

    Attributes:
        name: name of the data set.
        blobs: the encoded images.
        keys: their names.
        splits: the split of each.
        labels: class indices ``[N]``, or None.
        classes: names of the classes, or None.
        groups: images in each part of the storage that is best read together (a shard, a row group), in order; None where
            any order is as good.
        window: groups that an epoch's order mixes with each other.
        containers: files that hold the images, so that the same ones need not be looked at twice in a process.
        attributes: what else is known about each image, by name.
    """

    name: str
    blobs: Blobs
    keys: Sequence[str]
    splits: Sequence[Split] | np.ndarray
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    groups: np.ndarray | None = None
    window: int = 4
    containers: Sequence[Path] = ()
    attributes: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class StoredSource(ImageSource):
    """Encoded images of a :class:`Collection`.

    Args:
        collection: the images.
        rows: the ones to use, ``[N]``.
        headers: what each of these says about itself.
        options: how stored samples are to be understood.
    """

    def __init__(
        self, collection: Collection, rows: np.ndarray, *, headers: Sequence[Header], options: ReadOptions
    ) -> None:
        self.collection, self.rows, self.options = collection, rows, options
        self.name, self.classes = collection.name, collection.classes
        self.labels = None if collection.labels is None else collection.labels[rows]
        self.attributes = {name: [values[int(i)] for i in rows] for name, values in collection.attributes.items()}
        self.describe(headers)

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        """See :meth:`ImageSource.key`."""
        return self.collection.keys[int(self.rows[index])]

    def read(self, index: int) -> Any:
        """See :meth:`ImageSource.read`."""
        blob = self.collection.blobs[int(self.rows[index])]
        if isinstance(blob, Path):
            if not blob.is_file():
                raise FileNotFoundError(f"{blob} was there when the data was listed and is gone: run again")
            return read_image(blob, str(blob), self.options)
        return read_image(io.BytesIO(blob), self.key(index), self.options)

    def header(self, index: int) -> Header:
        """See :meth:`ImageSource.header`."""
        blob = self.collection.blobs[int(self.rows[index])]
        return read_header(blob if isinstance(blob, Path) else io.BytesIO(blob), self.key(index), self.options)

    def content_hash(self, index: int) -> str:
        """See :meth:`ImageSource.content_hash`."""
        blob = self.collection.blobs[int(self.rows[index])]
        if isinstance(blob, Path):
            with blob.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(blob).hexdigest()

    def fingerprint(self, index: int) -> str:
        """See :meth:`ImageSource.fingerprint`."""
        blob = self.collection.blobs[int(self.rows[index])]
        return file_fingerprint(blob) if isinstance(blob, Path) else self.content_hash(index)[:16]

    def stored_sizes(self, indices: Sequence[int]) -> list[int] | None:
        """Return the length in bytes of images, where that is known without reading them."""
        blobs, rows = self.collection.blobs, [int(self.rows[i]) for i in indices]
        if isinstance(blobs, TarBytes):
            return blobs.size[rows].tolist()
        return [blobs[row].stat().st_size for row in rows] if isinstance(blobs, PathBlobs) else None

    def permutation(self, seed: int, epoch: int) -> np.ndarray | None:
        """See :meth:`ImageSource.permutation`."""
        groups = self.collection.groups
        if groups is None or len(groups) <= self.collection.window:
            return None
        bounds = np.searchsorted(self.rows, np.concatenate([[0], np.cumsum(groups)]))
        return shard_permutation(np.diff(bounds).tolist(), seed=seed, epoch=epoch, window=self.collection.window)


def collect(collection: Collection, config: DataConfig) -> Found:
    """Check the images of a collection and make a source of the usable ones.

    Args:
        collection: what a reader listed.
        config: says how images are checked and understood.

    Returns:
        The images, their splits, and what was left out.

    Raises:
        ValueError: when images cannot be read, naming them; unless they are to be left out.
    """
    options = ReadOptions.of(config)

    def open_image(index: int) -> Path | BinaryIO:
        blob = collection.blobs[index]
        return blob if isinstance(blob, Path) else io.BytesIO(blob)

    status = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in collection.containers]
    seen = (*status, len(collection.blobs), options, config.verify, config.on_error, config.image_column)
    checked = _known.get(seen) if status else None
    if checked is None:
        checked = check_images(
            open_image, collection.keys, options=options, verify=config.verify, on_error=config.on_error
        )
    if status:
        _known.clear()  # a process seldom reads two data sets by turns, and the headers of one take memory
        _known[seen] = checked
    source = StoredSource(collection, checked.kept, headers=checked.headers, options=options)
    splits = members_by_split(np.asarray(collection.splits)[checked.kept])
    return Found(source, splits, checked.skipped)
