"""Gradient boosting of classification trees on binned codes, the trees of all classes and factors grown together.

The algorithm of scikit-learn's ``GradientBoostingClassifier()`` (Friedman, Greedy Function Approximation: A Gradient Boosting
Machine, 2001, algorithm 6): 100 stages, trees of depth 3 on the residuals of each class, splits by reduction of squared error,
one Newton step for each leaf, learning rate 0.1. Only the thresholds differ: they lie between quantile bins of a code
instead of between any two values. Where a code has no more distinct values than bins, the trees are the same, but for
splits that are equally good: of those scikit-learn takes one at random, and this the one of the first code.

Shapes: N rows, D codes, T trees of one stage (one for each class; one for a factor of two), Q bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NUM_STAGES, DEPTH, LEARNING_RATE, NUM_BINS = 100, 3, 0.1, 255
NAME = (
    f"gradient boosting on {NUM_BINS} quantile bins ({NUM_STAGES} stages, depth {DEPTH}, learning rate {LEARNING_RATE})"
)


@dataclass(frozen=True)
class Boosted:
    """What boosting found.

    Attributes:
        importances: decrease of squared error owed to each code ``[D, F]``; each column sums to 1.
        train: accuracy on the rows fitted on ``[F]``.
        test: accuracy on the other rows ``[F]``.
    """

    importances: np.ndarray
    train: np.ndarray
    test: np.ndarray


class _Bins:
    """Bins of each code between quantiles of the rows fitted on, and sums over them.

    Args:
        codes: ``[N, D]``.
        num_bins: most bins of a code, <= 256.
    """

    def __init__(self, codes: np.ndarray, num_bins: int) -> None:
        from scipy.sparse import csr_matrix

        self.edges = []
        for column in codes.T:
            values = np.unique(column)
            middles = values[:-1] / 2 + values[1:] / 2
            if len(values) > num_bins:
                # of the rows, not of the values: every bin holds as many
                cuts = np.sort(column)[np.linspace(0, len(column), num_bins + 1)[1:-1].astype(int)]
                middles = np.unique(middles[np.maximum(np.searchsorted(values, cuts) - 1, 0)])
            self.edges.append(middles)
        self.num_codes = codes.shape[1]
        self.width = max(len(of) for of in self.edges) + 1
        self.train = self.apply(codes)
        rows, count = np.arange(len(codes)), len(codes)
        place = self.train.astype(np.int64) + self.width * np.arange(self.num_codes)
        entries = (np.ones(place.size, np.float32), (place.ravel(), np.repeat(rows, self.num_codes)))
        self._members = csr_matrix(entries, shape=(self.num_codes * self.width, count))

    def apply(self, codes: np.ndarray) -> np.ndarray:
        """Return the bins ``[N, D]`` uint8 of codes."""
        columns = [
            np.searchsorted(edges, column, side="left") for edges, column in zip(self.edges, codes.T, strict=True)
        ]
        return np.stack(columns, axis=1).astype(np.uint8)

    def below(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of ``values [N, T]`` over the rows up to each bin of each code, ``[D, Q, T]``."""
        sums = (self._members @ values).reshape(self.num_codes, self.width, -1)
        return sums.cumsum(axis=1, dtype=np.float64)


def boost(
    codes: np.ndarray,
    classes: np.ndarray,
    sizes: Sequence[int],
    test_codes: np.ndarray,
    test_classes: np.ndarray,
    *,
    num_bins: int = NUM_BINS,
    num_stages: int = NUM_STAGES,
) -> Boosted:
    """Fit the trees of all factors and judge them.

    Args:
        codes: rows to fit on ``[N, D]``.
        classes: their classes ``[N, F]``; every class occurs.
        sizes: number of classes of each factor.
        test_codes: rows to judge by ``[M, D]``.
        test_classes: their classes ``[M, F]``.
        num_bins: most bins of a code, 2 to 256.
        num_stages: rounds of boosting, >= 1.

    Returns:
        Importances and accuracies.
    """
    bins = _Bins(codes, num_bins)
    parts = (bins.train, bins.apply(test_codes))
    groups = [(1 if size == 2 else size) for size in sizes]
    bounds = np.cumsum([0, *groups])
    # One column a tree: the class it is for, its prior and how far a Newton step goes.
    targets, priors, factor_of = [], [], []
    for factor, size in enumerate(sizes):
        wanted = [1] if size == 2 else range(size)
        target = classes[:, factor][:, None] == np.array(wanted)
        share = target.mean(axis=0)
        priors.append(np.log(share / (1 - share)) if size == 2 else np.log(share))
        targets.append(target)
        factor_of += [factor] * len(wanted)
    y = np.concatenate(targets, axis=1).astype(np.float32)
    shrink = np.concatenate([np.full(n, (s - 1) / s if s > 2 else 1.0) for n, s in zip(groups, sizes, strict=True)])
    scores = [np.tile(np.concatenate(priors).astype(np.float32), (len(part), 1)) for part in parts]
    gains = np.zeros((codes.shape[1], y.shape[1]))
    for _ in range(num_stages):
        probability = _probabilities(scores[0], bounds)
        residual = y - probability
        splits, leaves = _grow(bins, residual, gains)
        step = _leaf_values(leaves, residual, probability * (1 - probability)) * (LEARNING_RATE * shrink)
        scores[0] += _look_up(step, leaves)
        scores[1] += _look_up(step, _descend(parts[1], splits))
    importances = np.zeros((codes.shape[1], len(sizes)))
    np.add.at(importances.T, np.array(factor_of), gains.T)
    total = importances.sum(axis=0)
    accuracy = [
        np.array([np.mean(_choose(s[:, a:b]) == of[:, i]) for i, (a, b) in enumerate(pairwise(bounds))])
        for s, of in zip(scores, (classes, test_classes), strict=True)
    ]
    return Boosted(importances / np.where(total > 0, total, 1), *accuracy)


def _grow(
    bins: _Bins, residual: np.ndarray, gains: np.ndarray
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Grow one tree a column, add what its splits gain to ``gains [D, T]``; return splits by level and leaves ``[N, T]``."""
    count, trees = residual.shape
    leaves = np.zeros((count, trees), dtype=np.uint8)
    # Sums of rows and of residuals, by node; those of a right child are its parent's less its sibling's.
    ones = np.broadcast_to(bins.below(np.ones((count, 1), np.float32)), (bins.num_codes, bins.width, trees))
    nodes = [(ones, bins.below(residual))]
    splits = []
    for level in range(DEPTH):
        codes, cuts = np.empty((len(nodes), trees), np.int64), np.empty((len(nodes), trees), np.uint8)
        for node, (number, total) in enumerate(nodes):
            gain, codes[node], cuts[node] = _best_split(number, total)
            np.add.at(gains, (codes[node], np.arange(trees)), gain)
        splits.append((codes, cuts))
        leaves = _step_down(bins.train, leaves, codes, cuts)
        if level == DEPTH - 1:
            break
        children = []
        for node, (number, total) in enumerate(nodes):
            here = (leaves == 2 * node).astype(np.float32)
            left = bins.below(here), bins.below(residual * here)
            children += [left, (number - left[0], total - left[1])]
        nodes = children
    return splits, leaves


def _best_split(number: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gain, code and last bin on the left of each tree's best split, from sums up to each bin ``[D, Q, T]``."""
    all_rows, all_sum = number[0, -1], total[0, -1]
    right = all_rows - number
    possible = (number > 0.5) & (right > 0.5)
    # n_l n_r / n (mean_l - mean_r)^2, as a difference that needs one division.
    difference = total * all_rows - number * all_sum
    gain = np.where(possible, difference * difference / np.where(possible, number * right, 1), 0.0)
    flat = gain.reshape(-1, gain.shape[2])
    best = flat.argmax(axis=0)
    value = flat[best, np.arange(flat.shape[1])] / np.maximum(all_rows, 1)
    code, cut = np.divmod(best, number.shape[1])
    # A node that cannot be split sends all to the left.
    return value, code, np.where(value > 0, cut, 255)


def _step_down(bins: np.ndarray, nodes: np.ndarray, codes: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return the child ``[N, T]`` that each row goes to from its node."""
    result = 2 * nodes
    for node in range(len(codes)):
        right = np.take(bins, codes[node], axis=1) > cuts[node]
        result += right if len(codes) == 1 else right & (nodes == node)
    return result


def _descend(bins: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    nodes = np.zeros((len(bins), splits[0][0].shape[1]), dtype=np.uint8)
    for codes, cuts in splits:
        nodes = _step_down(bins, nodes, codes, cuts)
    return nodes


def _leaf_values(leaves: np.ndarray, residual: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Return one Newton step of each leaf, ``[8, T]``: sum of residuals over sum of p (1 - p)."""
    trees = leaves.shape[1]
    place = (leaves.astype(np.int32) * trees + np.arange(trees, dtype=np.int32)).ravel()
    top, bottom = (
        np.bincount(place, of.ravel(), minlength=2**DEPTH * trees).reshape(-1, trees) for of in (residual, curvature)
    )
    # scikit-learn takes no step where the curvature is all but zero
    certain = np.abs(bottom) < 1e-150
    return np.where(certain, 0.0, top / np.where(certain, 1, bottom))


def _look_up(values: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    trees = leaves.shape[1]
    place = leaves.astype(np.int32) * trees + np.arange(trees, dtype=np.int32)
    return np.take(values.astype(np.float32).ravel(), place)


def _probabilities(scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    result = np.empty_like(scores)
    for a, b in pairwise(bounds):
        s = scores[:, a:b]
        if b - a == 1:
            result[:, a:b] = 1 / (1 + np.exp(-s))
        else:
            e = np.exp(s - s.max(axis=1, keepdims=True))
            result[:, a:b] = e / e.sum(axis=1, keepdims=True)
    return result


def _choose(scores: np.ndarray) -> np.ndarray:
    return (scores[:, 0] > 0).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(axis=1)
