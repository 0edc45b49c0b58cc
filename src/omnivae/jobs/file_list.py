"""Volumes and videos as a store is filled with them: listed without being read, encoded one after another."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian
from omnivae.jobs.filling import Encoded
from omnivae.jobs.images import not_gaussian
from omnivae.jobs.progress import percent
from omnivae.models import VAE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileItem:
    """A volume or video that has not been read yet.

    Attributes:
        name: its key in a store.
        read: reads it.
        content: SHA-256 of it as it is stored.
        source: path that errors of reading may name.
    """

    name: str
    read: Callable[[], Any]
    content: Callable[[], str]
    source: str = ""


class FileList:
    """Volumes or videos that a store is filled with, without labels and conditions.

    Args:
        items: what there is.
        what: they are, for messages.
        limit: take at most so many of them, mixed by the hash of their names.

    Raises:
        ValueError: for a limit below 1.
    """

    def __init__(self, items: Sequence[FileItem], what: str, limit: int | None = None) -> None:
        if limit is not None:
            if limit < 1:
                raise ValueError(f"got a limit of {limit} {what} (--data.limit); expected at least 1")
            items = sorted(items, key=lambda item: hashlib.sha256(item.name.encode()).digest())[:limit]
        self.items = sorted(items, key=lambda item: item.name)
        self.keys, self.what = [item.name for item in self.items], what
        self.skipped: set[int] = set()
        self._contents: dict[int, str] = {}

    def label(self, i: int) -> None:
        """Return None: volumes and videos have no label."""

    def cond(self, i: int) -> None:
        """Return None: they have no condition."""

    def content_hash(self, i: int) -> str:
        """Return the SHA-256 of number ``i`` as it is stored."""
        if i not in self._contents:
            self._contents[i] = self.items[i].content()
        return self._contents[i]


def one_by_one(
    items: FileList, encode: Callable[[FileItem, str, Callable[[float], None]], Encoded], on_error: str
) -> Callable[[list[int], Callable[[int], None]], Iterator[Encoded]]:
    """Return what :func:`fill_store` calls, for items that are encoded one after another, a hundred steps each.

    Args:
        items: the list.
        encode: encodes an item, given its content hash and a function to call with the share done.
        on_error: "stop" at an item that cannot be used, or "skip" it with a warning.
    """

    def run(numbers: list[int], advance: Callable[[int], None]) -> Iterator[Encoded]:
        for i in numbers:
            tell, encoded = percent(advance), []
            try:
                encoded = list(encode(items.items[i], items.content_hash(i), tell))
            except (ValueError, EOFError) as error:
                if on_error == "stop":
                    raise
                log.warning("left out: %s", error)
                items.skipped.add(i)
            yield encoded
            tell(1.0)

    return run


def on_cpu(model: VAE, posterior: Any) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance of a posterior of one, ``[C, *S]`` float32 on the CPU.

    Args:
        model: that it is of.
        posterior: the posterior.

    Raises:
        ValueError: for a posterior that is no Gaussian.
    """
    if not isinstance(posterior, DiagonalGaussian):
        raise ValueError(not_gaussian(model, type(posterior).__name__))
    # Copies: a view of the head's output would keep all of that alive for as long as the latent waits to be written.
    mean, logvar = (
        t[0].to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        for t in (posterior.mean, posterior.logvar)
    )
    return mean, logvar
