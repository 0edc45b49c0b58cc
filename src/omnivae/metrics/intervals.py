"""Bootstrap intervals of a mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Numbers drawn at once; bounds the memory.
CHUNK = 2**22


def bootstrap_interval(
    values: np.ndarray,
    resamples: int = 1000,
    *,
    level: float = 0.95,
    seed: int = 0,
    statistic: Callable[[np.ndarray], float] | None = None,
) -> tuple[float, float] | tuple[None, None]:
    """Return the percentile bootstrap interval of the mean, or of another statistic (Efron, Bootstrap methods, 1979).

    Args:
        values: one number an image, ``[N]``; for a statistic one row an image, ``[N, ...]``.
        resamples: number of resamples; 0 returns no interval.
        level: coverage, between 0 and 1.
        seed: seed of the resampling.
        statistic: of the resampled rows; their mean by default.

    Returns:
        Lower and upper end; ``(None, None)`` without resamples, and for one image, which says nothing about others.

    Example:
        >>> bootstrap_interval(np.ones(5))
        (1.0, 1.0)
    """
    if resamples == 0 or len(values) < 2:
        return None, None
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    if statistic is not None:
        for i in range(resamples):
            means[i] = statistic(values[random.integers(len(values), size=len(values))])
        return _ends(means, level)
    step = max(1, CHUNK // len(values))
    for start in range(0, resamples, step):
        stop = min(resamples, start + step)
        means[start:stop] = values[random.integers(len(values), size=(stop - start, len(values)))].mean(1)
    return _ends(means, level)


def _ends(means: np.ndarray, level: float) -> tuple[float, float]:
    # Order statistics instead of interpolation: defined where some means are infinite.
    low = np.quantile(means, (1 - level) / 2, method="lower")
    high = np.quantile(means, (1 + level) / 2, method="higher")
    return float(low), float(high)
