"""A labelled table, codes beside the factors that made them: what every score is computed from, checked once.

Shapes: N rows, D codes (latent dimensions), F factors, K values of one factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Equal-width bins of a code, as in disentanglement_lib's study (Locatello et al., 2019).
NUM_BINS = 20


@dataclass(frozen=True)
class Table:
    """Codes and factors of the same rows.

    Attributes:
        codes: ``[N, D]``, float32 or float64.
        factors: ``[N, F]`` as given.
        classes: ``[N, F]`` int64, the rank of each value among the distinct values of its factor.
        sizes: number of distinct values of each factor.
        names: one name for each factor.
    """

    codes: np.ndarray
    factors: np.ndarray
    classes: np.ndarray
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_codes(self) -> int:
        """Number of codes D."""
        return self.codes.shape[1]

    @property
    def num_factors(self) -> int:
        """Number of factors F."""
        return self.classes.shape[1]

    def rows(self, index: np.ndarray) -> Table:
        """Return the rows of these numbers; classes keep their meaning."""
        return Table(self.codes[index], self.factors[index], self.classes[index], self.sizes, self.names)

    def per_factor(self, values: np.ndarray) -> Mapping[str, float]:
        """Return one value for each factor under its name."""
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}


def as_codes(codes: Any) -> np.ndarray:
    """Return codes as a checked array.

    Args:
        codes: posterior means ``[N, D]``, a NumPy array or a torch tensor.

    Returns:
        ``[N, D]``, in float32 or float64.

    Raises:
        ValueError: for another shape, fewer than two rows, or values that are not finite.
    """
    array = _to_numpy(codes)
    if array.ndim != 2 or array.shape[1] < 1 or len(array) < 2:
        raise ValueError(f"got codes of shape {array.shape}; expected [N, D] with N >= 2: flatten each latent first")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=0)).tolist()
        raise ValueError(f"codes {bad} hold NaN or infinity; look for the images that cause it before scoring")
    return array


def make_table(codes: Any, factors: Any, names: Sequence[str] | None = None, num_bins: int | None = None) -> Table:
    """Return codes and factors as a checked table.

    Args:
        codes: posterior means ``[N, D]``.
        factors: factor values ``[N, F]``, numbers of any kind; every distinct value of a factor is a class.
        names: one for each factor; "factor 0" and so on by default.
        num_bins: equal-width bins that every factor is put into first: for continuous factors.

    Returns:
        The table.

    Raises:
        ValueError: for shapes that do not fit, NaN, a factor that is the same in every row, or one with so many values that
            it is no class.
    """
    array, labels = as_codes(codes), _to_numpy(factors)
    if labels.ndim != 2 or len(labels) != len(array) or labels.shape[1] < 1:
        raise ValueError(
            f"got factors of shape {labels.shape}; expected [{len(array)}, F], a row for each row of codes"
        )
    if names is None:
        names = [f"factor {i}" for i in range(labels.shape[1])]
    if len(names) != labels.shape[1] or len(set(names)) != len(names):
        raise ValueError(f"got names {list(names)}; expected {labels.shape[1]} different ones, one for each factor")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("factors hold NaN or infinity; leave out the rows without a label")
    binned = labels if num_bins is None else digitize(labels.astype(np.float64), num_bins)
    classes = np.empty(labels.shape, dtype=np.int64)
    sizes = []
    for i, name in enumerate(names):
        values, classes[:, i] = np.unique(binned[:, i], return_inverse=True)
        if len(values) < 2:
            raise ValueError(f"{name!r} has the same value in every row; leave it out or use more varied data")
        if num_bins is None and 2 * len(values) > max(len(array), 8):
            raise ValueError(
                f"{name!r} has {len(values)} values in {len(array)} rows and looks continuous; pass num_factor_bins={NUM_BINS}"
            )
        sizes.append(len(values))
    return Table(array, labels, classes, tuple(sizes), tuple(names))


def split(table: Table, *, test_fraction: float = 1 / 3, seed: int = 0) -> tuple[Table, Table]:
    """Return rows to fit on and rows to judge by, drawn at random.

    Args:
        table: the rows.
        test_fraction: share of the rows to judge by, in (0, 1); the default is disentanglement_lib's 5,000 beside 10,000.
        seed: of the draw.

    Returns:
        Training and test rows.

    Raises:
        ValueError: where a part is too small or a value of a factor occurs in one part only.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"got test_fraction={test_fraction}; expected a share between 0 and 1")
    order = np.random.default_rng(seed).permutation(len(table))
    num_test = round(test_fraction * len(table))
    train, test = table.rows(np.sort(order[num_test:])), table.rows(np.sort(order[:num_test]))
    for i, (name, size) in enumerate(zip(table.names, table.sizes, strict=True)):
        for part, words in ((train, "to fit on"), (test, "to judge by")):
            found = len(np.unique(part.classes[:, i]))
            if found < size:
                raise ValueError(
                    f"{name!r} has {size} values, but the {len(part)} rows {words} have {found} of them; "
                    "give more rows, or pass num_factor_bins to merge values"
                )
    return train, test


def digitize(values: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Put each column into equal-width bins between its least and greatest value.

    The same bins as ``numpy.digitize(column, numpy.histogram(column, num_bins)[1][:-1])``, counted from 0.

    Args:
        values: ``[N, D]``.
        num_bins: number of bins, >= 2.

    Returns:
        ``[N, D]`` int64 in ``[0, num_bins)``.

    Raises:
        ValueError: for fewer than two bins.
    """
    if num_bins < 2:
        raise ValueError(f"got {num_bins} bins; expected at least 2")
    bins = np.empty(values.shape, dtype=np.int64)
    for i in range(values.shape[1]):
        column = np.ascontiguousarray(values[:, i])
        edges = np.histogram_bin_edges(column, num_bins)[:-1]
        bins[:, i] = np.searchsorted(edges, column, side="right") - 1
    return bins


def top_two_gap(matrix: np.ndarray) -> np.ndarray:
    """Return by how much the largest entry of each column exceeds the second largest.

    Args:
        matrix: ``[D, F]``.

    Returns:
        ``[F]``.

    Raises:
        ValueError: where there is no second.
    """
    if len(matrix) < 2:
        raise ValueError(f"got {len(matrix)} code; a gap between the best two needs at least two")
    ordered = np.partition(matrix, len(matrix) - 2, axis=0)
    return ordered[-1] - ordered[-2]


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise ValueError(f"got an array of dtype {array.dtype}; expected numbers")
    return array
