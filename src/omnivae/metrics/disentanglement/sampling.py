"""Where batches with a fixed factor come from: rows of a labelled table, or a process that makes observations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from omnivae.metrics.disentanglement.table import Table, as_codes


@runtime_checkable
class FactorSampler(Protocol):
    """Draws codes of observations, some with factors held fixed.

    Attributes:
        num_factors: number of factors F.
        names: one name for each factor.
    """

    @property
    def num_factors(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the codes ``[count, D]`` of independent observations."""
        ...

    def fixed(self, factors: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Return batches ``[M, batch_size, D]``; in batch m all observations have one value of factor ``factors[m]``."""
        ...

    def pairs(self, factors: np.ndarray, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return two batches ``[M, batch_size, D]``; in batch m the two of a pair have one value of ``factors[m]``."""
        ...


class TableSampler:
    """Draws rows of a table, with replacement; rows that share a value are found by one sort for each factor.

    The other factors are distributed as in the table. Where factors depend on each other there, a batch with one of them fixed
    hardly moves the other, which scores above what a table with independent factors would.

    Args:
        table: the rows.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._orders = [np.argsort(table.classes[:, i], kind="stable") for i in range(table.num_factors)]
        self._counts = [np.bincount(table.classes[:, i], minlength=size) for i, size in enumerate(table.sizes)]

    @property
    def num_factors(self) -> int:
        return self.table.num_factors

    @property
    def names(self) -> tuple[str, ...]:
        return self.table.names

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.table.codes[rng.integers(len(self.table), size=count)]

    def fixed(self, factors: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        first = rng.integers(len(self.table), size=(len(factors), 1))
        return self.table.codes[self._alike(np.broadcast_to(first, (len(factors), batch_size)), factors, rng)]

    def pairs(self, factors: np.ndarray, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        first = rng.integers(len(self.table), size=(len(factors), batch_size))
        return self.table.codes[first], self.table.codes[self._alike(first, factors, rng)]

    def _alike(self, rows: np.ndarray, factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return for each row ``[M, B]`` another that has the same value of the batch's factor."""
        result = np.empty(rows.shape, dtype=np.int64)
        for factor in range(self.num_factors):
            mine = factors == factor
            label = self.table.classes[rows[mine], factor]
            counts = self._counts[factor]
            place = (np.cumsum(counts) - counts)[label] + rng.integers(counts[label])
            result[mine] = self._orders[factor][place]
        return result


class ProcessSampler:
    """Draws factors uniformly and independently, and has their observations made and encoded.

    Args:
        encode: from factors ``[n, F]`` int64 to codes ``[n, D]``: makes the observations and encodes them.
        sizes: number of values of each factor, >= 2.
        names: one for each factor; "factor 0" and so on by default.
        chunk: observations made at once, >= 1.

    Raises:
        ValueError: for a factor with fewer than two values, or names that do not fit.

    Example:
        >>> import numpy as np
        >>> sampler = ProcessSampler(lambda factors: factors / 7, sizes=(3, 8))
        >>> batches = sampler.fixed(np.array([1]), 5, np.random.default_rng(0))
        >>> batches.shape, len(set(batches[0, :, 1])) == 1
        ((1, 5, 2), True)
    """

    def __init__(
        self,
        encode: Callable[[np.ndarray], Any],
        sizes: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        chunk: int = 4096,
    ) -> None:
        if not sizes or min(sizes) < 2:
            raise ValueError(f"got sizes={tuple(sizes)}; expected at least one factor, each with two values or more")
        if chunk < 1:
            raise ValueError(f"got chunk={chunk}; expected at least 1")
        self._names = tuple(names) if names is not None else tuple(f"factor {i}" for i in range(len(sizes)))
        if len(self._names) != len(sizes):
            raise ValueError(f"got {len(self._names)} names for {len(sizes)} factors; give one for each")
        self.encode, self.sizes, self.chunk = encode, np.asarray(sizes), chunk

    @property
    def num_factors(self) -> int:
        return len(self.sizes)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self._encode(self._draw((count,), rng))

    def fixed(self, factors: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        values = self._draw((len(factors), batch_size), rng)
        batch = np.arange(len(factors))
        values[batch, :, factors] = values[batch, :1, factors]
        return self._encode(values)

    def pairs(self, factors: np.ndarray, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        a, b = self._draw((len(factors), batch_size), rng), self._draw((len(factors), batch_size), rng)
        batch = np.arange(len(factors))
        b[batch, :, factors] = a[batch, :, factors]
        return self._encode(a), self._encode(b)

    def _draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.integers(self.sizes, size=(*shape, self.num_factors))

    def _encode(self, values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1, self.num_factors)
        parts = []
        for start in range(0, len(flat), self.chunk):
            part = flat[start : start + self.chunk]
            codes = self.encode(part)
            # A single row is as good as many here, but not to the check of a whole table.
            checked = as_codes(np.repeat(_row(codes), 2, axis=0))[:1] if len(part) == 1 else as_codes(codes)
            if len(checked) != len(part):
                raise ValueError(
                    f"encode returned {len(checked)} codes for {len(part)} rows of factors; expected one each"
                )
            parts.append(checked)
        codes = np.concatenate(parts)
        return codes.reshape(*values.shape[:-1], codes.shape[1])


def _row(codes: Any) -> np.ndarray:
    return np.asarray(codes.detach().cpu() if hasattr(codes, "detach") else codes)
