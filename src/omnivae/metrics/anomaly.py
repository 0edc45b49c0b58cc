"""Detection of anomalies by a score: a threshold of known false-alarm rate, AUROC and average precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omnivae.metrics.evaluation import MetricResult

#: Voxels that are looked up at once.
_AT_ONCE = 2**22


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


def voxel_detection(scores: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return AUROC and average precision of a map against a mask, exactly, for maps too large to sort.

    Only the scores inside the mask are sorted, and those outside are counted between them: recall rises at no other threshold.

    Args:
        scores: higher for odder voxels, any shape.
        mask: which voxels are anomalous, bool of the same shape.

    Returns:
        "auroc", the probability that a voxel inside scores higher than one outside (ties count half), and "average_precision".

    Raises:
        ValueError: for other shapes, scores that are not finite, and when nothing lies inside or nothing outside.

    Example:
        >>> voxel_detection(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        {'auroc': 0.75, 'average_precision': 0.8333333333333333}
    """
    scores, mask = np.asarray(scores).reshape(-1), np.asarray(mask, dtype=bool)
    if scores.size != mask.size:
        raise ValueError(f"got {scores.size:,} scores and a mask of {mask.size:,} voxels; expected one for each")
    mask = mask.reshape(-1)
    inside = int(np.count_nonzero(mask))
    outside = mask.size - inside
    if not inside or not outside:
        raise ValueError(f"got {inside:,} voxels inside and {outside:,} outside; expected some of each")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum()):,} scores are not finite")
    levels, counts = np.unique(scores[mask], return_counts=True)
    below, equal = np.zeros(len(levels) + 1, np.int64), np.zeros(len(levels), np.int64)
    for start in range(0, mask.size, _AT_ONCE):
        others = scores[start : start + _AT_ONCE][~mask[start : start + _AT_ONCE]]
        place = np.searchsorted(levels, others)  # levels[place - 1] < other <= levels[place]
        below += np.bincount(place, minlength=len(levels) + 1)
        same = place[levels[place.clip(max=len(levels) - 1)] == others]
        equal += np.bincount(same, minlength=len(levels))[: len(levels)]
    # Outside, lower than each level or equal to it, and at least as high as it.
    lower = np.cumsum(below)[:-1] - equal
    auroc = float((counts * (lower + 0.5 * equal)).sum() / (inside * outside))
    false = outside - lower
    true = np.cumsum(counts[::-1])[::-1]
    return {"auroc": auroc, "average_precision": float((counts / inside * true / (true + false)).sum())}
