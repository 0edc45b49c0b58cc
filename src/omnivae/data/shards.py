"""Tar shards in WebDataset's layout (Aizman et al., High Performance I/O For Large Scale Deep Learning, 2019).

Only the headers of a shard are read when it is opened; an image is then read from its place in the file. Nothing is
unpacked, and memory does not grow with the size of the images.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

_COMPRESSED = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2")
_SUFFIXES = (".tar", *_COMPRESSED)
_OPEN_FILES = 32
_BLOCK = 512  # of a tar file


def shard_permutation(sizes: Sequence[int], *, seed: int, epoch: int, window: int = 4) -> np.ndarray:
    """Return an order for one epoch in which the files are read a few at a time, not all at once.

    The shards are permuted; the images of each ``window`` shards that follow each other are mixed among themselves.

    Args:
        sizes: images in each shard, in the order in which they are numbered.
        seed: of the permutation.
        epoch: every epoch has another one.
        window: shards mixed with each other; as many as there are gives a permutation of everything.

    Returns:
        Every number from 0 to ``sum(sizes) - 1`` once, ``[N]`` int64; a function of the arguments alone.

    Raises:
        ValueError: for a window below 1.

    Example:
        >>> order = shard_permutation([3, 3, 3], seed=0, epoch=0, window=1)
        >>> sorted(order.tolist()) == list(range(9)), len(set((order[:3] // 3).tolist()))
        (True, 1)
    """
    if window < 1:
        raise ValueError(f"got window={window}; expected at least 1 shard")
    random = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    shards = random.permutation(len(sizes))
    parts = []
    for first in range(0, len(shards), window):
        together = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        parts.append(random.permutation(np.concatenate(together)))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def is_shards(path: Path) -> bool:
    """Return whether a path is a tar file, or a folder with tar files in it or one folder down."""
    if path.is_file():
        return path.name.lower().endswith(_SUFFIXES)
    return any(p.name.lower().endswith(_SUFFIXES) for pattern in ("*", "*/*") for p in path.glob(pattern))


def list_shards(path: str) -> tuple[Path, list[str]]:
    """Return the shards that a folder, a glob or a brace pattern names.

    Args:
        path: ``shards/``, ``shards/train-*.tar``, or ``shards/train-{000..010}.tar``.

    Returns:
        A folder, and the shards relative to it, sorted.

    Raises:
        FileNotFoundError: when there are none, or one of a brace pattern is missing.
        ValueError: for compressed shards, whose members cannot be read from their places.
    """
    folder = Path(path)
    if folder.is_dir():
        root = folder
        found = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name.lower().endswith(_SUFFIXES)]
        found = [name for name in found if not any(part.startswith(".") for part in name.split("/"))]
    else:
        names = [name for pattern in expand_braces(path) for name in _glob(pattern)]
        missing = [name for name in names if not Path(name).is_file()]
        if missing or not names:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise FileNotFoundError(f"no such tar shards: {shown or path}; correct data.path")
        root = Path(os.path.commonpath([str(Path(name).parent) for name in names]))
        found = [Path(name).relative_to(root).as_posix() for name in names]
    compressed = [name for name in sorted(found) if name.lower().endswith(_COMPRESSED)]
    if compressed:
        raise ValueError(
            f"{root / compressed[0]} is compressed, so its members cannot be read one by one, and images hardly shrink: "
            "decompress it (gunzip, unxz, unzstd) to a plain .tar"
        )
    shards = sorted({name for name in found if name.lower().endswith(".tar")})
    if not shards:
        raise FileNotFoundError(f"no .tar file in {path}: correct data.path")
    return root, shards


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{000..010}`` and ``{a,b}`` as a shell does.

    Args:
        pattern: text with any number of such groups, not nested.

    Returns:
        The texts it stands for.

    Example:
        >>> expand_braces("t-{08..10}.tar")
        ['t-08.tar', 't-09.tar', 't-10.tar']
    """
    group = re.search(r"\{([^{}]*)\}", pattern)
    if group is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", group[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = max(len(numbers[1]), len(numbers[2])) if "0" in (numbers[1][0], numbers[2][0]) else 0
        choices = [f"{i:0{width}d}" for i in range(first, last + 1)]
    else:
        choices = group[1].split(",")
    return [result for c in choices for result in expand_braces(pattern[: group.start()] + c + pattern[group.end() :])]


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a shard.

    Attributes:
        sample: folder and name up to the first dot.
        suffix: what follows it, in lower case.
        offset: where its bytes begin.
        size: how many there are.
    """

    sample: str
    suffix: str
    offset: int
    size: int


def read_index(path: Path) -> list[Member]:
    """Read the headers of a tar file.

    Args:
        path: an uncompressed tar file.

    Returns:
        Its regular files, in their order; hidden files and names without a dot are left out, as WebDataset does.

    Raises:
        ValueError: when it is not a tar file, or damaged, or truncated.
    """
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # the archive object would keep every header
                name = posixpath.normpath("/" + info.name).lstrip("/")  # never used as a path to write to
                folder, base = posixpath.split(name)
                stem, dot, suffix = base.partition(".")
                if info.isdir() or not stem or not dot:
                    continue
                if not info.isreg() or info.issparse():
                    raise ValueError(
                        f"{path}: {info.name} is a link or a sparse file; expected plain files: write it again"
                    )
                members.append(Member(posixpath.join(folder, stem), suffix.lower(), info.offset_data, info.size))
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is truncated or not a tar file ({error}): fetch or write it again") from error
    with open(path, "rb") as file:
        file.seek(end)
        marker = file.read(_BLOCK)
    # The library stops silently at a damaged header; a whole archive ends with blocks of zeros.
    if len(marker) < _BLOCK or any(marker):
        raise ValueError(f"{path} is damaged or truncated at byte {end}: fetch or write it again")
    return members


@dataclass
class TarBytes:
    """The bytes of members of tar files, by number; open files stay behind when it is sent to another process.

    Args:
        paths: the tar files.
        shard: number of the file of each member, ``[N]``.
        offset: where its bytes begin, ``[N]``.
        size: how many there are, ``[N]``.
    """

    paths: list[Path]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    _open: OrderedDict[int, Any] = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> bytes:
        shard, size = int(self.shard[index]), int(self.size[index])
        with self._lock:
            data = _read_at(self._file(shard), int(self.offset[index]), size)
        if len(data) != size:
            raise ValueError(f"{self.paths[shard]} was cut off since it was opened: fetch or write it again")
        return data

    def _file(self, shard: int) -> Any:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = open(self.paths[shard], "rb", buffering=0)  # noqa: SIM115  closed when others push it out
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_open": OrderedDict(), "_lock": Lock()}


def _read_at(file: Any, offset: int, size: int) -> bytes:
    if hasattr(os, "pread"):  # worker processes made by fork share the position in an open file
        return os.pread(file.fileno(), size, offset)
    file.seek(offset)
    return file.read(size)


def _glob(pattern: str) -> Iterator[str]:
    if glob.has_magic(pattern):
        yield from sorted(glob.glob(pattern, recursive=True))
    else:
        yield pattern
