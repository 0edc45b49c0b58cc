"""Disentanglement scores beside the loops of scikit-learn that disentanglement_lib runs: seconds and values.

The table has 10,000 rows to fit on and 5,000 to judge by, of five factors as in dSprites and ten codes that hold them mixed. Two
references take minutes (gradient boosting most of all), so that they are measured only when asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from omnivae.metrics.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    irs,
    mig,
    modularity,
    sap,
    table_sampler,
)
from omnivae.metrics.disentanglement.table import digitize, make_table, split, top_two_gap

SIZES = (3, 6, 40, 32, 32)
NUM_CODES, NUM_TRAIN, NUM_TEST = 10, 10_000, 5_000


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return codes ``[15000, 10]`` and factors ``[15000, 5]``."""
    rng = np.random.default_rng(0)
    count = NUM_TRAIN + NUM_TEST
    factors = np.stack([rng.integers(size, size=count) for size in SIZES], axis=1)
    mixing = 0.2 * rng.normal(size=(len(SIZES), NUM_CODES))
    mixing[:, : len(SIZES)] += np.eye(len(SIZES))
    codes = (factors / np.array(SIZES)) @ mixing + 0.05 * rng.normal(size=(count, NUM_CODES))
    return codes, factors


def loop_mig(codes: np.ndarray, factors: np.ndarray) -> float:
    """Return the gap as disentanglement_lib computes it: ``mutual_info_score`` of every pair."""
    from sklearn.metrics import mutual_info_score

    bins = digitize(codes)
    information = np.array([[mutual_info_score(v, z) for v in factors.T] for z in bins.T])
    return float(np.mean(top_two_gap(information) / [mutual_info_score(v, v) for v in factors.T]))


def loop_sap(codes: np.ndarray, factors: np.ndarray) -> float:
    """Return the score as disentanglement_lib computes it: ``LinearSVC`` of every pair."""
    from sklearn.svm import LinearSVC

    train, test = split(make_table(codes, factors))
    accuracy = np.empty((train.num_codes, train.num_factors))
    for i in range(train.num_codes):
        for j in range(train.num_factors):
            model = LinearSVC(C=0.01, class_weight="balanced").fit(train.codes[:, [i]], train.classes[:, j])
            accuracy[i, j] = np.mean(model.predict(test.codes[:, [i]]) == test.classes[:, j])
    return float(np.mean(top_two_gap(accuracy)))


def run(*, references: bool, rounds: int = 3) -> list[dict[str, Any]]:
    """Time the scores.

    Args:
        references: also the slow ones, for the random forest and gradient boosting (seven minutes or more).
        rounds: repeats of what takes less than a second; the best counts, for ours as for the references.

    Returns:
        One row for each: score, predictor or options, seconds and value.
    """
    codes, factors = data()
    sampler = table_sampler(codes, factors)
    work: list[tuple[str, str, Callable[[], float]]] = [
        ("MIG, 10,000 rows", "ours", lambda: mig(codes[:NUM_TRAIN], factors[:NUM_TRAIN]).score),
        ("MIG, 10,000 rows", "mutual_info_score", lambda: loop_mig(codes[:NUM_TRAIN], factors[:NUM_TRAIN])),
        ("SAP", "ours", lambda: sap(codes, factors).score),
        ("SAP", "LinearSVC", lambda: loop_sap(codes, factors)),
        ("IRS", "ours", lambda: irs(codes, factors).score),
        ("FactorVAE score", "ours", lambda: factor_vae_score(sampler).score),
        ("beta-VAE score", "ours", lambda: beta_vae_score(sampler).score),
        ("modularity and explicitness", "ours", lambda: modularity(codes, factors).score),
        ("DCI", "binned_boosting", lambda: dci(codes, factors).score),
    ]
    if references:
        work.append(("DCI", "random_forest", lambda: dci(codes, factors, predictor="random_forest").score))
        work.append(("DCI", "gradient_boosting", lambda: dci(codes, factors, predictor="gradient_boosting").score))
    rows = []
    for name, how, function in work:
        seconds = float("inf")
        for _ in range(rounds):
            begun = time.perf_counter()
            value = function()
            seconds = min(seconds, time.perf_counter() - begun)
            if seconds > 1:
                break
        rows.append({"score": name, "by": how, "seconds": seconds, "value": value})
        print(f"- {name} ({how}): {seconds:.3f} s, {value:.4f}", flush=True)
    return rows
