"""Sizes of memory: read from text, written as text, and counted while operators run."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import sys
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str | int | float) -> int:
    """Return a number of bytes.

    Args:
        text: a number, or one with a unit such as "4GB", "500 MB" or "1.5GiB".

    Returns:
        Bytes.

    Raises:
        ValueError: for anything else, or nothing.

    Example:
        >>> parse_bytes("4GB"), parse_bytes("1.5 GiB")
        (4000000000, 1610612736)
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        value = float(text)
    else:
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?I?)B?\s*", str(text).upper())
        if found is None or found[2] == "I":
            raise ValueError(f"got memory={text!r}; expected a size such as 4GB, 500MB or 1.5GiB")
        value = float(found[1]) * _UNITS[found[2]]
    if not 1 <= value < math.inf:
        raise ValueError(f"got memory={text!r}; expected at least one byte")
    return int(value)


def format_bytes(count: float) -> str:
    """Return a number of bytes as people write it.

    Example:
        >>> format_bytes(4_200_000_000), format_bytes(17_000)
        ('4.2 GB', '17 kB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{count:.0f} bytes"


def give_back() -> None:
    """Return memory that was freed to the system, where the C library is glibc.

    It keeps freed tensors of up to 32 MB (all of them in a process that asked for it) in a heap, where tiles of one layer leave
    gaps that those of the next do not fit into: without this the process grows to twice what is in use.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of tensors that operators make while it is active, and the most that were alive at once.

    On tensors of the meta device nothing is computed and the count is that of a real run. Workspace inside of an operator is
    not seen.

    Example:
        >>> with AllocationTracker() as tracker:
        ...     total = torch.zeros(10).sum()
        >>> tracker.peak
        44
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for value in tree_iter(made):
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key in self._known or key in given:
                continue
            self._known.add(key)
            count = storage.nbytes()
            self.now += count
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, count)
        return made

    def _gone(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count
