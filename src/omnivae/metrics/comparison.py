"""``compare``: is the difference between two evaluations on the same images real?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.component import suggestion
from omnivae.metrics.compatibility import check_inputs, comparable_metrics, remarks
from omnivae.metrics.difference import Comparison, Difference
from omnivae.metrics.evaluation import Evaluation
from omnivae.metrics.intervals import bootstrap_interval
from omnivae.metrics.paired import ALPHA, detectable_difference, holm, sign_flip_test, wilcoxon_test


def compare(
    a: Evaluation | str | Path,
    b: Evaluation | str | Path,
    *,
    metrics: Sequence[str] | None = None,
    common: bool = False,
    flips: int = 10_000,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations on the same images: pair their values by key and test the mean difference.

    For each metric: the mean of B - A with its 95 % bootstrap interval (images resampled in pairs), the p-value of a
    sign-flip permutation test, corrected for the number of metrics (Holm), and that of Wilcoxon's signed-rank test. A
    difference is called real where the corrected p-value is below 0.05.

    What is tested is whether B would be ahead on other images like these; two trainings of one configuration also differ
    by their seeds, which one model of each cannot show.

    Args:
        a: an evaluation, its JSON file, or a run that holds one.
        b: the other.
        metrics: names; by default all that both have and that can be compared.
        common: compare the images that both have, where they are not the same.
        flips: random sign patterns; all patterns where there are no more.
        bootstrap: resamples of the interval.
        seed: of both.

    Returns:
        The differences and a verdict.

    Raises:
        FileNotFoundError: when a card does not exist.
        ValueError: where the images, their preprocessing or the versions of a metric differ, and where nothing is left to
            compare; says which.

    Example:
        >>> from omnivae import DataConfig, conv_vae, evaluate, load_data
        >>> digits = load_data(DataConfig("digits"), value_range=(0, 1)).test
        >>> small, large = (evaluate(conv_vae(in_channels=1, image_size=8, latent_dim=n), digits) for n in (2, 16))
        >>> compare(small, large).images
        180
    """
    if flips < 100 or bootstrap < 100:
        raise ValueError(f"got flips={flips} and bootstrap={bootstrap}; expected at least 100 of each")
    first, second = (x if isinstance(x, Evaluation) else Evaluation.from_json(x) for x in (a, b))
    for name, evaluation in (("A", first), ("B", second)):
        if not evaluation.card or not evaluation.inputs:
            raise ValueError(
                f"evaluation {name} has no card, so its images are not known; make it with omnivae.evaluate"
            )
    _check_names(metrics, first, second)
    keys = check_inputs(first, second, common=common)
    notes = remarks(first, second, len(keys))
    chosen, left_out = comparable_metrics(first, second, metrics)
    notes += left_out

    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    whole: dict[str, tuple[float, float]] = {}
    for name in chosen:
        if name not in first.per_image:
            whole[name] = (first.metrics[name].mean, second.metrics[name].mean)
            continue
        pair = tuple(np.array([e.per_image[name][key] for key in keys]) for e in (first, second))
        undefined = int((~(np.isfinite(pair[0]) & np.isfinite(pair[1]))).sum())
        if undefined:
            notes.append(f"{name} is left out: {undefined} of {len(keys)} pairs have an infinite or undefined value")
        else:
            values[name] = (pair[0], pair[1])
    if not values:
        raise ValueError(" ".join(["there is no metric to compare.", *(f"{note}." for note in notes)]))
    if len(keys) != first.images and whole:
        notes.append(f"{', '.join(whole)}: of all images of each card, not of the common ones")
    corrected = holm([sign_flip_test(y - x, flips=flips, seed=seed) for x, y in values.values()])
    differences = {
        name: _difference(
            first, name, keys, pair, p_corrected=p, tests=len(values), flips=flips, bootstrap=bootstrap, seed=seed
        )
        for (name, pair), p in zip(values.items(), corrected, strict=True)
    }
    return Comparison(
        differences=differences,
        images=len(keys),
        cards=(first.card, second.card),
        whole=whole,
        notes=notes,
        settings={"flips": flips, "bootstrap": bootstrap, "seed": seed, "alpha": ALPHA, "correction": "Holm"},
    )


# -- inside


def _difference(
    evaluation: Evaluation,
    name: str,
    keys: Sequence[str],
    pair: tuple[np.ndarray, np.ndarray],
    *,
    p_corrected: float,
    tests: int,
    flips: int,
    bootstrap: int,
    seed: int,
) -> Difference:
    known: Mapping[str, Any] = evaluation.card["metrics"][name]
    differences = pair[1] - pair[0]
    low, high = bootstrap_interval(differences, bootstrap, seed=seed)
    assert low is not None  # at least 100 resamples
    assert high is not None
    return Difference(
        unit=known["unit"],
        better=known["better"],
        mean_a=float(pair[0].mean()),
        mean_b=float(pair[1].mean()),
        mean=float(differences.mean()),
        low=low,
        high=high,
        p=sign_flip_test(differences, flips=flips, seed=seed),
        p_corrected=p_corrected,
        p_wilcoxon=wilcoxon_test(differences),
        detectable=detectable_difference(differences, tests=tests),
        per_image=dict(zip(keys, differences.tolist(), strict=True)),
    )


def _check_names(metrics: Sequence[str] | None, a: Evaluation, b: Evaluation) -> None:
    if metrics is not None and not metrics:
        raise ValueError("got no metric to compare; leave metrics out to compare all")
    for name in metrics or ():
        for side, evaluation in (("A", a), ("B", b)):
            if name not in evaluation.metrics:
                raise ValueError(
                    f"card {side} has no metric {name!r}{suggestion(name, evaluation.metrics)}; it has "
                    f"{', '.join(evaluation.metrics)}"
                )
