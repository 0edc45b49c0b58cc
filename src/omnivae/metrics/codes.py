"""How the codes of a quantised posterior are used, over as many images as one likes: perplexity and the share in use."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Vocabularies up to this size are counted in a table; larger ones, which hardly fill, by the codes that occurred.
TABLE = 2**20


class CodeCounts:
    """Occurrences of each code in each codebook.

    Args:
        num_codes: size of a codebook.
        num_books: codebooks Q.

    Example:
        >>> counts = CodeCounts(4)
        >>> counts.add(torch.tensor([[0, 1], [1, 0]]))
        >>> counts.perplexity, counts.usage
        (2.0, 0.5)
    """

    def __init__(self, num_codes: int, num_books: int = 1) -> None:
        self.num_codes, self.num_books = num_codes, num_books
        self._tables: list[Tensor] = []
        self._sparse: list[dict[int, int]] = [{} for _ in range(num_books)]

    @classmethod
    def of(cls, posterior: Any) -> CodeCounts:
        """Return counts for posteriors like this one.

        Args:
            posterior: with ``indices``, ``num_codes`` and ``shape``.
        """
        return cls(posterior.num_codes, _books(posterior).shape[1])

    def add_posterior(self, posterior: Any) -> None:
        """Count the codes of a posterior.

        Args:
            posterior: with ``indices``, ``num_codes`` and ``shape``.
        """
        self.add(_books(posterior))

    def add(self, indices: Tensor) -> None:
        """Count codes.

        Args:
            indices: the last axis is that of the codebooks where there are several.
        """
        books = indices.detach().reshape(-1, self.num_books)
        if self.num_codes > TABLE:
            for counts, book in zip(self._sparse, books.unbind(1), strict=True):
                for number, count in zip(*(t.tolist() for t in book.unique(return_counts=True)), strict=True):
                    counts[number] = counts.get(number, 0) + count
            return
        if not self._tables:
            self._tables = [torch.zeros(self.num_codes, dtype=torch.long, device=books.device) for _ in books[:1].T]
        for table, book in zip(self._tables, books.unbind(1), strict=True):
            # Not bincount, which waits for the device.
            table.index_add_(0, book, torch.ones_like(book))

    def merge(self, others: list[dict[int, int]]) -> None:
        """Add what :meth:`counts` returned elsewhere.

        Args:
            others: code to count, one for each codebook.
        """
        for mine, theirs in zip(self._sparse, others, strict=True):
            for number, count in theirs.items():
                mine[int(number)] = mine.get(int(number), 0) + int(count)

    def counts(self) -> list[dict[int, int]]:
        """Return code to count, for each codebook, codes that did not occur left out."""
        result = [dict(counts) for counts in self._sparse]
        for counts, table in zip(result, self._tables, strict=False):
            found = table.cpu()
            for number in found.nonzero().flatten().tolist():
                counts[number] = counts.get(number, 0) + int(found[number])
        return result

    @property
    def entropy(self) -> float:
        """Entropy of a code in nats, the mean over codebooks; NaN where nothing was counted."""
        return _mean([_entropy(counts) for counts in self.counts()])

    @property
    def perplexity(self) -> float:
        """exp(entropy): how many codes are in use as if equally often; the mean over codebooks."""
        return _mean([math.exp(_entropy(counts)) for counts in self.counts()])

    @property
    def usage(self) -> float:
        """Share of the codes that occurred, the mean over codebooks."""
        return _mean([len(counts) / self.num_codes for counts in self.counts()])

    def __len__(self) -> int:
        return sum(self.counts()[0].values())


def coded(output: Any) -> list[Any]:
    """Return the quantised posteriors of a model's output.

    Args:
        output: with ``latents``.
    """
    found = [latent.posterior for latent in output.latents]
    return [q for q in found if getattr(q, "indices", None) is not None and getattr(q, "num_codes", None)]


def _books(posterior: Any) -> Tensor:
    """Return the numbers of the codes, ``[positions of all images, Q]``."""
    indices: Tensor = posterior.indices
    return indices.reshape(*indices.shape[: len(posterior.shape) - 1], -1).flatten(0, -2)


def _entropy(counts: dict[int, int]) -> float:
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values()) if total else math.nan


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
