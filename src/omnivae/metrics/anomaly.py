"""Detection of anomalies by a score: a threshold of known false-alarm rate, AUROC and average precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omnivae.metrics.evaluation import MetricResult


@dataclass(frozen=True)
class Threshold:
    """A score above which an image is flagged.

    Attributes:
        value: of the score.
        rate: share of normal images that is flagged at most, on average over sets of normal images.
        low: lower end of the 95 % interval of the true rate of this very threshold.
        high: upper end.
        num_normal: normal images that it was calibrated on.
    """

    value: float
    rate: float
    low: float
    high: float
    num_normal: int


def calibrate_threshold(scores: np.ndarray, rate: float = 0.05) -> Threshold:
    """Return the threshold of a false-alarm rate from scores of normal images that the model was not trained on.

    The k-th smallest of n scores, ``k = ceil((1 - rate) (n + 1))``: a new normal image exceeds it with a probability of at most
    ``rate``, whatever the scores' distribution (Vovk et al., Algorithmic Learning in a Random World, 2005: split conformal
    prediction). Given these n images the true rate is Beta(n + 1 - k, k), exactly so for scores without ties; its central 95 %
    are the interval.

    Args:
        scores: of normal images, higher for odder ones, ``[n]``.
        rate: between 0 and 1, exclusive.

    Returns:
        The threshold.

    Raises:
        ValueError: for a rate out of its range, scores that are not finite, or too few of them for the rate.

    Example:
        >>> calibrate_threshold(np.arange(1.0, 100.0), 0.05).value
        95.0
    """
    from scipy.stats import beta

    if not 0 < rate < 1:
        raise ValueError(f"got a false-alarm rate of {rate}; expected a number between 0 and 1, such as 0.05")
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{int((~np.isfinite(scores)).sum())} scores of normal images are not finite; use another score"
        )
    n = len(scores)
    # The product may land a rounding error above a whole number.
    k = math.ceil(round((1 - rate) * (n + 1), 9))
    if k > n:
        raise ValueError(
            f"a false-alarm rate of {rate:g} needs at least {math.ceil(round(1 / rate, 9)) - 1} normal images, got {n}: give more "
            "normal images, or a higher rate"
        )
    low, high = beta.ppf([0.025, 0.975], n + 1 - k, k)
    return Threshold(float(np.sort(scores)[k - 1]), rate, float(low), float(high), n)


def detection(
    scores: np.ndarray, anomalous: np.ndarray, *, resamples: int = 500, seed: int = 0
) -> dict[str, MetricResult]:
    """Return AUROC and average precision of a score, with 95 % bootstrap intervals (resampled within each of the two groups).

    Args:
        scores: higher for odder images, ``[N]``.
        anomalous: which images are anomalous, bool ``[N]``.
        resamples: 0 leaves the intervals out.
        seed: of the resampling.

    Returns:
        "auroc" (0.5 for a score that knows nothing) and "average_precision" (then the share of anomalous images).

    Raises:
        ValueError: when one of the two groups is empty.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    anomalous = np.asarray(anomalous, dtype=bool)
    groups = [np.flatnonzero(anomalous == value) for value in (True, False)]
    if not all(len(group) for group in groups):
        raise ValueError(
            f"got {len(groups[0])} anomalous and {len(groups[1])} normal images; AUROC and average precision need some of each"
        )
    random = np.random.default_rng(seed)
    draws = [np.concatenate([random.choice(group, len(group)) for group in groups]) for _ in range(resamples)]

    def measured(function: Callable[[np.ndarray, np.ndarray], float]) -> MetricResult:
        values = sorted(float(function(anomalous[draw], scores[draw])) for draw in draws)
        whole = float(function(anomalous, scores))
        if not values:
            return MetricResult(whole, None, None)
        ends = np.quantile(values, 0.025, method="lower"), np.quantile(values, 0.975, method="higher")
        return MetricResult(whole, float(ends[0]), float(ends[1]))

    return {"auroc": measured(roc_auc_score), "average_precision": measured(average_precision_score)}
