"""Decode once: images as they are after decoding and resizing, in one temporary file that all loading processes share.

The file is mapped into memory, so it costs address space and page cache, not private memory, and the system may write it
out. It is removed with the process that made it; the file of one that was killed is removed by the next that makes one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

#: "auto" takes no more than this share of the free memory and of the free disk.
SHARE = 0.25
_PREFIX = "omnivae-cache-"
#: Seconds that a file without a lock may be one that is just being made.
_BEING_MADE_S = 60.0


class PixelCache:
    """Room for one array an image, filled when an image is first decoded.

    Args:
        shapes: height, width and channels of each array, ``[N, 3]``.
        dtypes: type of each array, ``[N]``.
        directory: where the temporary file goes; the system's place for such files by default.

    Raises:
        OSError: when there is no room for the file.
    """

    def __init__(self, shapes: np.ndarray, dtypes: np.ndarray, directory: Path | None = None) -> None:
        self.shapes, self.dtypes = shapes, dtypes
        sizes = cache_bytes(shapes, dtypes)
        # One byte at the beginning of the file says for each image whether it is there; arrays begin at multiples of 64.
        first = -(-len(shapes) // 64) * 64
        ends = first + np.cumsum(-(-sizes // 64) * 64)
        self.starts = np.concatenate([[first], ends[:-1]]).astype(np.int64)
        self.nbytes = int(ends[-1])
        remove_abandoned(Path(directory or tempfile.gettempdir()))
        handle, path = tempfile.mkstemp(prefix=_PREFIX, dir=directory)
        self.path, self._held = path, os.fdopen(handle, "r+b")
        _lock(self._held)  # until this process ends, however it does
        os.truncate(handle, self.nbytes)
        self._map = np.memmap(path, dtype=np.uint8, mode="r+", shape=(self.nbytes,))
        # Only the process that made the file removes it: a forked worker inherits this object and its end.
        weakref.finalize(self, _remove, self._held, path, os.getpid())

    def get(self, index: int) -> np.ndarray | None:
        """Return an image's array ``[H, W, C]``, a copy; ``None`` where it has not been decoded yet."""
        if not self._map[index]:
            return None
        return self._view(index).copy()

    def put(self, index: int, array: np.ndarray) -> None:
        """Keep an image's array.

        Args:
            index: number of the image.
            array: of the shape and type that room was made for; another one is not kept.
        """
        if array.shape != tuple(self.shapes[index]) or array.dtype != np.dtype(str(self.dtypes[index])):
            return
        self._view(index)[...] = array
        # Last: a reader that sees the mark finds the pixels. Two writers write the same.
        self._map[index] = 1

    @property
    def filled(self) -> int:
        """Number of images that are there."""
        return int(np.count_nonzero(self._map[: len(self.shapes)]))

    def _view(self, index: int) -> np.ndarray:
        shape, dtype = tuple(self.shapes[index]), np.dtype(str(self.dtypes[index]))
        start = int(self.starts[index])
        return self._map[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker maps the file by its name.
        return {name: value for name, value in self.__dict__.items() if name not in ("_map", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map = np.memmap(self.path, dtype=np.uint8, mode="r+", shape=(self.nbytes,))


def cache_bytes(shapes: np.ndarray, dtypes: np.ndarray) -> np.ndarray:
    """Return the bytes of each array, ``[N]``."""
    items = {dtype: np.dtype(dtype).itemsize for dtype in np.unique(dtypes).tolist()}
    return shapes.astype(np.int64).prod(axis=1) * np.array([items[d] for d in dtypes.tolist()])


def affordable(nbytes: int) -> bool:
    """Return whether a cache of this size fits into a quarter of the free memory and of the free disk."""
    return nbytes <= SHARE * min(free_memory(), shutil.disk_usage(tempfile.gettempdir()).free)


def free_memory() -> int:
    """Return the memory in bytes that this process may still take: the system's, or its container's if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 32
    try:
        # What the page cache holds is free for the asking, which only this file says.
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass  # not Linux: what sysconf says stands
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def remove_abandoned(directory: Path) -> None:
    """Remove the files of processes that were killed: each would keep up to a quarter of the free disk.

    Args:
        directory: where caches are made.
    """
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > _BEING_MADE_S:
                with path.open("r+b") as file:
                    if _lock(file):
                        path.unlink()
        except OSError:
            continue  # another user's, or removed by another process


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed or its process ends; return False where another holds it or there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _remove(file: BinaryIO, path: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)
    file.close()
