"""Thresholds of known false-alarm rate, AUROC and average precision."""

from __future__ import annotations

import numpy as np
import pytest

from omnivae.metrics.anomaly import calibrate_threshold, detection


def test_the_threshold_keeps_its_rate_and_its_interval_covers():
    """Uniform scores: the true rate of a threshold t is 1 - t."""
    random = np.random.default_rng(0)
    thresholds = [calibrate_threshold(random.random(59), 0.1) for _ in range(2000)]
    rates = np.array([1 - t.value for t in thresholds])
    # k = 54 of 59: the mean rate is (60 - 54) / 60.
    assert rates.mean() == pytest.approx(0.1, abs=0.003)
    inside = [t.low <= r <= t.high for t, r in zip(thresholds, rates, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_too_few_normal_images_are_refused():
    assert calibrate_threshold(np.arange(19.0), 0.05).value == 18.0
    with pytest.raises(ValueError, match="at least 19 normal images, got 18"):
        calibrate_threshold(np.arange(18.0), 0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate_threshold(np.arange(18.0), 0.0)
    with pytest.raises(ValueError, match="not finite"):
        calibrate_threshold(np.array([np.nan] * 30), 0.5)


def test_detection_counts_pairs():
    random = np.random.default_rng(0)
    scores, anomalous = random.random(60), np.arange(60) % 3 == 0
    scores[anomalous] += 0.3
    result = detection(scores, anomalous)
    pairs = (scores[anomalous][:, None] > scores[~anomalous]).mean()
    assert result["auroc"].mean == pytest.approx(pairs)
    assert result["auroc"].low < pairs < result["auroc"].high
    order = np.argsort(-scores)
    hits = anomalous[order]
    precision = np.cumsum(hits) / np.arange(1, 61)
    assert result["average_precision"].mean == pytest.approx(precision[hits].mean())
    with pytest.raises(ValueError, match="some of each"):
        detection(scores, np.zeros(60, dtype=bool))
