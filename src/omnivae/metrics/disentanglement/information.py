"""Scores read off the mutual information of each code with each factor: MIG, modularity and explicitness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnivae.metrics.disentanglement.table import NUM_BINS, Table, digitize, make_table, split, top_two_gap


@dataclass(frozen=True)
class MIG:
    """A mutual information gap and its parts.

    Attributes:
        score: mean of ``per_factor``, in [0, 1].
        per_factor: gap of each factor over its entropy.
        mutual_information: of each code with each factor ``[D, F]``, in nats.
        entropy: of each factor ``[F]``, in nats.
        discretization: how codes became discrete.
    """

    score: float
    per_factor: Mapping[str, float]
    mutual_information: np.ndarray
    entropy: np.ndarray
    discretization: str


@dataclass(frozen=True)
class Modularity:
    """Modularity and explicitness.

    Attributes:
        score: mean of ``per_code``, in [0, 1].
        per_code: modularity of each code ``[D]``; 0 for one that says nothing of any factor.
        explicitness: area under the ROC curve of the classifier on test rows, one against the rest, mean over values and
            factors: 0.5 is chance, 1 is perfect (the paper rescales it to [0, 1], disentanglement_lib does not).
        explicitness_train: the same on the rows it was fitted on.
        per_factor: explicitness of each factor on test rows.
        mutual_information: of each code with each factor ``[D, F]``, in nats.
        discretization: how codes became discrete for ``score``.
        classifier: what ``explicitness`` is of.
    """

    score: float
    per_code: np.ndarray
    explicitness: float
    explicitness_train: float
    per_factor: Mapping[str, float]
    mutual_information: np.ndarray
    discretization: str
    classifier: str


def mig(
    codes: Any,
    factors: Any,
    *,
    names: Sequence[str] | None = None,
    num_bins: int = NUM_BINS,
    num_factor_bins: int | None = None,
) -> MIG:
    """Return the mutual information gap: how much more the best code knows of a factor than the second best.

    ``1/F sum_k (I(z_j1; v_k) - I(z_j2; v_k)) / H(v_k)`` (Chen et al., Isolating Sources of Disentanglement in Variational
    Autoencoders, 2018, equation 6), estimated as disentanglement_lib does: codes in equal-width bins, mutual information of
    the counts. A code in 20 bins cannot tell more than 20 values apart: with such a factor even perfect codes stay below 1.

    Args:
        codes: posterior means ``[N, D]``, D >= 2.
        factors: factor values ``[N, F]``.
        names: one for each factor.
        num_bins: equal-width bins of each code, >= 2.
        num_factor_bins: equal-width bins of each factor; ``None`` makes every distinct value a class.

    Returns:
        The score and its parts.

    Raises:
        ValueError: for codes or factors that no gap can be computed from.

    Example:
        >>> import numpy as np
        >>> factors = np.stack(np.meshgrid(np.arange(4), np.arange(5)), -1).reshape(-1, 2)
        >>> round(mig(factors, factors).score, 6)
        1.0
    """
    table = make_table(codes, factors, names, num_factor_bins)
    information, entropy = mutual_information(table, num_bins)
    gaps = top_two_gap(information) / entropy
    return MIG(float(gaps.mean()), table.per_factor(gaps), information, entropy, _words(num_bins))


def modularity(
    codes: Any,
    factors: Any,
    *,
    names: Sequence[str] | None = None,
    num_bins: int = NUM_BINS,
    num_factor_bins: int | None = None,
    test_fraction: float = 1 / 3,
    seed: int = 0,
) -> Modularity:
    """Return modularity (each code tells of one factor) and explicitness (a linear classifier can read each factor).

    Modularity: ``1/D sum_i 1 - sum_{f != f*} I_if^2 / (I_if*^2 (F - 1))``, explicitness: ROC areas of logistic regression
    (Ridgeway and Mozer, Learning Deep Disentangled Embeddings with the F-Statistic Loss, 2018, section 2), as in
    disentanglement_lib: mutual information of the training rows.

    Args:
        codes: posterior means ``[N, D]``.
        factors: factor values ``[N, F]``, F >= 2.
        names: one for each factor.
        num_bins: equal-width bins of each code, >= 2.
        num_factor_bins: equal-width bins of each factor; ``None`` makes every distinct value a class.
        test_fraction: share of the rows to judge by, in (0, 1).
        seed: of the split into rows to fit on and to judge by.

    Returns:
        The score and its parts.

    Raises:
        ValueError: for one factor alone, or tables that cannot be split.
    """
    table = make_table(codes, factors, names, num_factor_bins)
    if table.num_factors < 2:
        raise ValueError("got one factor; modularity compares factors and needs at least two")
    train, test = split(table, test_fraction=test_fraction, seed=seed)
    information, _ = mutual_information(train, num_bins)
    per_code = modularity_per_code(information)
    areas = np.array([_explicitness(train, test, factor) for factor in range(table.num_factors)])
    return Modularity(
        score=float(per_code.mean()),
        per_code=per_code,
        explicitness=float(areas[:, 1].mean()),
        explicitness_train=float(areas[:, 0].mean()),
        per_factor=table.per_factor(areas[:, 1]),
        mutual_information=information,
        discretization=_words(num_bins),
        classifier="logistic regression (C=1) on standardised codes",
    )


def mutual_information(table: Table, num_bins: int = NUM_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Return the mutual information of each binned code with each factor, and the factors' entropies.

    ``I(z; v) = sum_ij p_ij log(p_ij / (p_i p_j))``, of the table's counts.

    Args:
        table: the rows.
        num_bins: equal-width bins of each code, >= 2.

    Returns:
        ``[D, F]`` and ``[F]``, in nats.
    """
    count, num_codes = len(table), table.num_codes
    # Cells of all codes side by side, so that one pass of counting does for all of them.
    first = digitize(table.codes, num_bins).T + num_bins * np.arange(num_codes)[:, None]
    bins = _xlogx(np.bincount(first.ravel(), minlength=num_codes * num_bins).reshape(num_codes, -1)).sum(1)
    information = np.empty((num_codes, table.num_factors))
    entropy = np.empty(table.num_factors)
    for factor, size in enumerate(table.sizes):
        label = table.classes[:, factor]
        cells = np.bincount((first * size + label).ravel(), minlength=num_codes * num_bins * size)
        joint = _xlogx(cells.reshape(num_codes, -1)).sum(1)
        marginal = _xlogx(np.bincount(label, minlength=size)).sum()
        # sum_ij n_ij/N log(N n_ij / (n_i n_j)), gathered by the counts that occur in it
        information[:, factor] = np.log(count) + (joint - bins - marginal) / count
        entropy[factor] = np.log(count) - marginal / count
    return np.maximum(information, 0), entropy


def modularity_per_code(information: np.ndarray) -> np.ndarray:
    """Return how far each code tells of one factor alone.

    Args:
        information: mutual information ``[D, F]`` of codes with factors, F >= 2.

    Returns:
        ``[D]`` in [0, 1]; 0 for a code that tells nothing.
    """
    squares = np.square(information)
    best = squares.max(axis=1)
    rest = (squares.sum(axis=1) - best) / (squares.shape[1] - 1)
    # Information that is 0 but for rounding is none: without this, rest / best would be the ratio of two roundings.
    tells = information.max(axis=1) > 1e-12
    return np.where(tells, 1 - rest / np.where(tells, best, 1), 0.0)


def _explicitness(train: Table, test: Table, factor: int) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    mean, std = train.codes.mean(0), train.codes.std(0)
    # A constant code has no unit; the reference divides by zero there.
    std = np.where(std > 0, std, 1)
    model = LogisticRegression(max_iter=1000).fit((train.codes - mean) / std, train.classes[:, factor])
    areas = []
    for part in (train, test):
        truth = part.classes[:, factor][:, None] == np.arange(part.sizes[factor])
        areas.append(float(roc_auc_score(truth, model.predict_proba((part.codes - mean) / std))))
    return areas[0], areas[1]


def _xlogx(counts: np.ndarray) -> np.ndarray:
    return counts * np.log(np.maximum(counts, 1))


def _words(num_bins: int) -> str:
    return f"{num_bins} equal-width bins between a code's least and greatest value"
