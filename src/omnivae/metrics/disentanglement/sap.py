"""SAP: separated attribute predictability, with the support vector machines of one code solved to the optimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnivae.metrics.disentanglement.table import Table, make_table, split, top_two_gap

#: Steps after which Newton's method must have ended; it takes about ten.
MAX_STEPS = 200


@dataclass(frozen=True)
class SAP:
    """A separated attribute predictability and its parts.

    Attributes:
        score: mean of ``per_factor``, in [0, 1].
        per_factor: by how much the best code predicts each factor better than the second best.
        predictability: of each factor from each code alone ``[D, F]``: accuracy on test rows, or squared correlation.
        classifier: what predicted.
    """

    score: float
    per_factor: Mapping[str, float]
    predictability: np.ndarray
    classifier: str


def sap(
    codes: Any,
    factors: Any,
    *,
    names: Sequence[str] | None = None,
    continuous: bool = False,
    num_factor_bins: int | None = None,
    C: float = 0.01,
    test_fraction: float = 1 / 3,
    seed: int = 0,
) -> SAP:
    """Return separated attribute predictability: how much better the best code predicts a factor than the second best.

    Kumar et al., Variational Inference of Disentangled Latent Concepts from Unlabeled Observations, 2018, section 3, with
    the predictors of disentanglement_lib: for classes, a linear support vector machine (squared hinge loss, C = 0.01,
    balanced, one against the rest) on one code, judged by its accuracy on test rows; for continuous factors, the squared
    correlation.

    The support vector machines are those of ``sklearn.svm.LinearSVC(C=0.01, class_weight="balanced")``, solved to the optimum
    instead of to its tolerance of 1e-4, so that a few rows at a boundary may be told apart differently. A second
    code that knows nothing still guesses: perfect codes score about ``1 - 1/K`` for two values, and less for more values,
    since one line cannot cut out a value in the middle. With ``continuous=True`` perfect codes score 1.

    Args:
        codes: posterior means ``[N, D]``, D >= 2.
        factors: factor values ``[N, F]``.
        names: one for each factor.
        continuous: whether factors are quantities (squared correlation over all rows) and not classes.
        num_factor_bins: equal-width bins of each factor; ``None`` makes every distinct value a class.
        C: inverse strength of the regularisation, > 0.
        test_fraction: share of the rows to judge by, in (0, 1); for classes only.
        seed: of the split into rows to fit on and to judge by.

    Returns:
        The score and its parts.

    Raises:
        ValueError: for codes or factors that no gap can be computed from.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(2, size=(3000, 2))
        >>> 0.45 < sap(factors, factors).score < 0.55
        True
    """
    if C <= 0:
        raise ValueError(f"got C={C}; expected a positive number")
    if continuous:
        table = make_table(codes, factors, names, 2)
        matrix = squared_correlation(table.codes, table.factors)
        words = "squared correlation"
    else:
        table = make_table(codes, factors, names, num_factor_bins)
        train, test = split(table, test_fraction=test_fraction, seed=seed)
        matrix = accuracies(train, test, C)
        words = f"linear support vector machine on one code (squared hinge, C={C:g}, balanced, one against the rest)"
    gaps = top_two_gap(matrix)
    return SAP(float(gaps.mean()), table.per_factor(gaps), matrix, words)


def squared_correlation(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the squared correlation of each code with each factor.

    Args:
        codes: ``[N, D]``.
        factors: ``[N, F]``.

    Returns:
        ``[D, F]`` in [0, 1]; 0 for a code whose variance is at most 1e-12.
    """
    z, v = codes.astype(np.float64), factors.astype(np.float64)
    z, v = z - z.mean(0), v - v.mean(0)
    above = len(z) - 1
    variances = np.square(z).sum(0) / above
    alive = variances > 1e-12
    covariance = z.T @ v / above
    value = np.square(covariance) / (np.where(alive, variances, 1)[:, None] * np.square(v).sum(0) / above)
    return np.where(alive[:, None], value, 0.0)


def accuracies(train: Table, test: Table, C: float = 0.01) -> np.ndarray:
    """Return how often support vector machines on one code alone are right about each factor.

    Args:
        train: rows to fit on.
        test: rows to judge by.
        C: inverse strength of the regularisation.

    Returns:
        ``[D, F]`` in [0, 1].
    """
    bounds = np.cumsum([0, *train.sizes])
    result = np.empty((train.num_codes, train.num_factors))
    for code in range(train.num_codes):
        slopes, offsets = support_vectors(train.codes[:, code], train.classes, train.sizes, C)
        x = test.codes[:, code].astype(np.float64)
        for factor in range(train.num_factors):
            mine = slice(bounds[factor], bounds[factor + 1])
            scores = x[:, None] * slopes[mine] + offsets[mine]
            result[code, factor] = np.mean(scores.argmax(1) == test.classes[:, factor])
    return result


def support_vectors(
    code: np.ndarray, classes: np.ndarray, sizes: Sequence[int], C: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Return the support vector machines of one code, each class of each factor against the rest.

    Minimises ``(w^2 + b^2) / 2 + sum_i C_i max(0, 1 - y_i (w x_i + b))^2`` over ``w`` and ``b`` (L2-loss SVM of Fan et al.,
    LIBLINEAR, 2008, equation 2, intercept regularised) by Newton's method. Rows on the wrong side of a margin are a
    stretch of the sorted code, so that sums over them are differences of running sums: a step costs no pass over the rows.

    Args:
        code: ``[N]``.
        classes: ``[N, F]``, class numbers from 0.
        sizes: number of classes of each factor; all classes occur.
        C: inverse strength of the regularisation. As in LIBLINEAR, rows of class k weigh ``C N / (K n_k)``, the rest ``C``;
            for two classes, the rest also has its balanced weight.

    Returns:
        Slopes and offsets ``[sum(sizes)]``, the classes of the first factor first.
    """
    count = len(code)
    order = np.argsort(code, kind="stable")
    x = code[order].astype(np.float64)
    # Running sums of 1, x and x^2, of all rows and of the rows of each class, both sorted by x.
    of_all = _running_sums(x)
    starts, keys, of_class, positive, negative = [], [], [], [], []
    for factor, size in enumerate(sizes):
        # Of 16-bit integers, the stable sort is by radix and many times faster.
        label = classes[:, factor].astype(np.uint16 if size <= 2**16 else np.int64)[order]
        grouped = np.argsort(label, kind="stable")
        counts = np.bincount(label, minlength=size)
        starts.append(factor * count + np.cumsum(counts) - counts)
        # A key that grows with factor, class and place: one binary search finds a place within any class.
        keys.append((label[grouped].astype(np.int64) + sum(sizes[:factor])) * (count + 1) + grouped)
        of_class.append(x[grouped])
        weights = C * count / (size * counts)
        positive.append(weights)
        negative.append(weights[::-1] if size == 2 else np.full(size, C))
    key = np.concatenate(keys)
    sums = _running_sums(np.concatenate(of_class))
    start, c_in, c_out = np.concatenate(starts), np.concatenate(positive), np.concatenate(negative)
    total = len(start)
    number = np.arange(total) * (count + 1)
    end = np.searchsorted(key, number + count + 1)
    whole = sums[:, end] - sums[:, start]

    def active(w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums over the rows within the margin, of the class and of the rest."""
        flat = w == 0
        divisor = np.where(flat, 1.0, w)

        def below(level: float) -> tuple[np.ndarray, np.ndarray]:
            """Return the sums over the rows with w x + b < level, over the class and over all."""
            place = np.searchsorted(x, (level - b) / divisor)
            mine = np.searchsorted(key, number + place)
            low_class, low_all = sums[:, mine] - sums[:, start], of_all[:, place]
            rising = w > 0
            sides = np.where(rising, low_class, whole - low_class), np.where(rising, low_all, of_all[:, -1:] - low_all)
            inside = np.where(b < level, 1.0, 0.0)
            return np.where(flat, whole * inside, sides[0]), np.where(flat, of_all[:, -1:] * inside, sides[1])

        class_in, _ = below(1.0)
        class_low, all_low = below(-1.0)
        return class_in, (of_all[:, -1:] - all_low) - (whole - class_low)

    def loss(w: np.ndarray, b: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Return the objective: sums of (1 - w x - b)^2 and (1 + w x + b)^2 written out."""

        def hinge(s: np.ndarray, sign: int) -> np.ndarray:
            a = 1 - sign * b
            return a * a * s[0] - 2 * sign * a * w * s[1] + w * w * s[2]

        return (w * w + b * b) / 2 + c_in * hinge(inside, 1) + c_out * hinge(outside, -1)

    w, b = np.zeros(total), np.zeros(total)
    inside, outside = active(w, b)
    value = loss(w, b, inside, outside)
    for _ in range(MAX_STEPS):
        s, t = c_in * inside, c_out * outside
        gradient_w = w + 2 * (w * (s[2] + t[2]) + b * (s[1] + t[1]) - s[1] + t[1])
        gradient_b = b + 2 * (w * (s[1] + t[1]) + b * (s[0] + t[0]) - s[0] + t[0])
        hww, hbb, hwb = 1 + 2 * (s[2] + t[2]), 1 + 2 * (s[0] + t[0]), 2 * (s[1] + t[1])
        determinant = hww * hbb - hwb * hwb
        step_w = -(hbb * gradient_w - hwb * gradient_b) / determinant
        step_b = -(hww * gradient_b - hwb * gradient_w) / determinant
        decrease = gradient_w * step_w + gradient_b * step_b
        if (-decrease <= 1e-20 * (1 + value)).all():
            break
        # Halve the steps that do not lower the objective enough (Armijo).
        scale = np.ones(total)
        for _ in range(40):
            new_w, new_b = w + scale * step_w, b + scale * step_b
            inside, outside = active(new_w, new_b)
            new_value = loss(new_w, new_b, inside, outside)
            short = new_value > value + 1e-4 * scale * decrease + 1e-13 * (1 + np.abs(value))
            if not short.any():
                break
            scale = np.where(short, scale / 2, scale)
        w, b, value = new_w, new_b, new_value
    return w, b


def _running_sums(x: np.ndarray) -> np.ndarray:
    """Return the sums of 1, x and x^2 over the first n values, ``[3, N + 1]``."""
    sums = np.zeros((3, len(x) + 1))
    sums[0] = np.arange(len(x) + 1)
    np.cumsum(x, out=sums[1, 1:])
    np.cumsum(x * x, out=sums[2, 1:])
    return sums
