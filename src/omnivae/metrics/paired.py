"""Tests of paired differences: is the mean difference between two models on the same images more than chance?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omnivae.metrics.intervals import CHUNK

#: A difference is called real below this (corrected) probability; a detectable one is found with this power.
ALPHA, POWER = 0.05, 0.8


def sign_flip_test(differences: np.ndarray, *, flips: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired permutation test of the mean (Fisher, The design of experiments, 1935).

    If the two models were equally good, each image's difference could as well have had the other sign. The p-value is the
    share of sign patterns whose mean is at least as far from zero as the observed one: of all patterns where there are no
    more than ``flips``, else of so many random ones and the observed one.

    Args:
        differences: one number an image, ``[N]``, finite.
        flips: number of random sign patterns.
        seed: of the patterns.

    Returns:
        Between ``2 / 2**N`` or ``1 / (flips + 1)`` and 1; 1 where every difference is zero.

    Example:
        >>> sign_flip_test(np.array([1.0, 2.0, 3.0, 4.0, 5.0])), sign_flip_test(np.zeros(5))
        (0.0625, 1.0)
    """
    total = differences.sum()
    # Patterns that tie with the observed one must not be lost to rounding.
    least = abs(total) - 1e-12 * np.abs(differences).sum()
    number = len(differences)
    if 2**number <= flips:
        patterns = (np.arange(2**number)[:, None] >> np.arange(number)) & 1
        return float(np.mean(np.abs(2 * (patterns @ differences) - total) >= least))
    random = np.random.default_rng(seed)
    extreme, step = 0, max(1, CHUNK // number)
    for start in range(0, flips, step):
        count = min(step, flips - start)
        bits = np.frombuffer(random.bytes(count * -(-number // 8)), dtype=np.uint8).reshape(count, -1)
        patterns = np.unpackbits(bits, axis=1, count=number).astype(np.float64)
        extreme += int((np.abs(2 * (patterns @ differences) - total) >= least).sum())
    return (extreme + 1) / (flips + 1)


def wilcoxon_test(differences: np.ndarray) -> float:
    """Return the two-sided p-value of the signed-rank test (Wilcoxon, 1945), zeros split evenly (Pratt, 1959).

    Args:
        differences: one number an image, ``[N]``, finite.

    Returns:
        The p-value; 1 where every difference is zero.
    """
    from scipy.stats import wilcoxon

    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several (Holm, A simple sequentially rejective multiple test procedure, 1979).

    Args:
        p_values: one for each test, which may depend on each other.

    Returns:
        Corrected values in the same order, at most 1.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def detectable_difference(differences: np.ndarray, *, tests: int = 1) -> float:
    """Return the smallest true mean difference that so many images would show in 80 % of repetitions.

    ``(t_{1 - α/2m} + t_{0.8}) s / sqrt(N)`` with α = 0.05, m tests and the spread s of the observed differences.

    Args:
        differences: one number an image, ``[N]`` with N >= 2.
        tests: number of tests that the result is corrected for.

    Returns:
        In the metric's unit.
    """
    from scipy.stats import t

    freedom = len(differences) - 1
    quantiles = t.ppf(1 - ALPHA / tests / 2, freedom) + t.ppf(POWER, freedom)
    return float(quantiles * differences.std(ddof=1) / len(differences) ** 0.5)


def fewest_images(tests: int) -> int:
    """Return the fewest images with which the sign-flip test can call one of so many differences real.

    Args:
        tests: number of tests that the result is corrected for.

    Returns:
        The number of images.

    Example:
        >>> fewest_images(1), fewest_images(8)
        (6, 9)
    """
    number = 1
    while 2 / 2**number * tests >= ALPHA:
        number += 1
    return number
