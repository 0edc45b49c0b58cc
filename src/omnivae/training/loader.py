"""The loader of training images: PyTorch's own, which also measures how long the training waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class TimedLoader(DataLoader[Any]):
    """A data loader that adds up the seconds for which its user had to wait, in ``waited_s``."""

    waited_s: float = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = iter(super().__iter__())
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - start
            yield batch
