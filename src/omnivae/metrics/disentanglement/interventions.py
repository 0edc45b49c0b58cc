"""Scores of batches with one factor held fixed: the FactorVAE score, the β-VAE score and interventional robustness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnivae.metrics.disentanglement.sampling import FactorSampler, TableSampler
from omnivae.metrics.disentanglement.table import NUM_BINS, digitize, make_table

#: Codes drawn at once; bounds memory (a batch of 64 with 10 codes has 640).
DRAWN_AT_ONCE = 2**20


@dataclass(frozen=True)
class FactorVAEScore:
    """A FactorVAE score and its parts.

    Attributes:
        score: accuracy of the majority vote on evaluation batches, in [0, 1]; 0 where no code is active.
        train_accuracy: the same on the batches that voted.
        per_factor: accuracy on the evaluation batches of each factor.
        votes: training batches ``[F, D]`` by fixed factor and by the code that varied least.
        active: codes ``[D]`` bool that took part.
        classifier: what voted.
    """

    score: float
    train_accuracy: float
    per_factor: Mapping[str, float]
    votes: np.ndarray
    active: np.ndarray
    classifier: str


@dataclass(frozen=True)
class BetaVAEScore:
    """A β-VAE score and its parts.

    Attributes:
        score: accuracy of the classifier on evaluation batches, in [0, 1]; 1/F is chance.
        train_accuracy: the same on the batches it was fitted on.
        per_factor: accuracy on the evaluation batches of each factor.
        classifier: what told which factor was fixed.
    """

    score: float
    train_accuracy: float
    per_factor: Mapping[str, float]
    classifier: str


@dataclass(frozen=True)
class IRS:
    """An interventional robustness score and its parts.

    Attributes:
        score: mean of ``per_code``, weighted by ``max_deviations``, in [0, 1]; 0 where no code is active.
        per_code: robustness of each code ``[D]`` to its own factor; NaN for codes that are constant.
        parents: the factor each code belongs to ``[D]``; -1 for codes that are constant.
        matrix: robustness of each code given each factor ``[D, F]``; NaN for codes that are constant.
        max_deviations: greatest deviation of each code from its mean ``[D]``.
        discretization: how factors became discrete.
    """

    score: float
    per_code: np.ndarray
    parents: np.ndarray
    matrix: np.ndarray
    max_deviations: np.ndarray
    discretization: str


def factor_vae_score(
    sampler: FactorSampler,
    *,
    batch_size: int = 64,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    num_variance_estimate: int = 10_000,
    prune_threshold: float = 0.05,
    seed: int = 0,
) -> FactorVAEScore:
    """Return the FactorVAE score: whether the code that varies least in a batch tells which factor was fixed in it.

    Kim and Mnih, Disentangling by Factorising, 2018, section 4; defaults of disentanglement_lib's study. Variances are relative
    to those over all data; of equal ones the first code counts.

    Args:
        sampler: a :class:`TableSampler` or :class:`ProcessSampler`.
        batch_size: observations of a batch, >= 2.
        num_train: batches that vote, >= 1.
        num_eval: batches to judge by, >= 1.
        num_variance_estimate: observations the variances are estimated from, >= 2.
        prune_threshold: codes with a smaller standard deviation, and constant ones, take no part.
        seed: of all draws.

    Returns:
        The score and its parts.

    Raises:
        ValueError: for counts that are too small.
    """
    _check(batch_size=(batch_size, 2), num_train=(num_train, 1), num_eval=(num_eval, 1))
    _check(num_variance_estimate=(num_variance_estimate, 2))
    rng = np.random.default_rng(seed)
    variances = sampler.sample(num_variance_estimate, rng).var(axis=0, ddof=1, dtype=np.float64)
    active = (np.sqrt(variances) >= prune_threshold) & (variances > 0)
    words = f"majority vote of the code that varies least, codes with std >= {prune_threshold:g}"
    if not active.any():
        nothing = np.zeros((sampler.num_factors, len(variances)), dtype=np.int64)
        return FactorVAEScore(0.0, 0.0, dict.fromkeys(sampler.names, 0.0), nothing, active, words)
    alive = np.flatnonzero(active)

    def count_votes(num_batches: int) -> np.ndarray:
        votes = np.zeros((sampler.num_factors, len(variances)), dtype=np.int64)
        for factors in _drawn(sampler, num_batches, batch_size * len(variances), rng):
            local = sampler.fixed(factors, batch_size, rng)[:, :, alive].var(axis=1, ddof=1, dtype=np.float64)
            np.add.at(votes, (factors, alive[(local / variances[alive]).argmin(axis=1)]), 1)
        return votes

    train, judged = count_votes(num_train), count_votes(num_eval)
    chosen, code = train.argmax(axis=0), np.arange(len(variances))
    right = np.zeros(judged.shape)
    right[chosen, code] = judged[chosen, code]
    return FactorVAEScore(
        score=float(right.sum() / judged.sum()),
        train_accuracy=float(train[chosen, code].sum() / train.sum()),
        per_factor=_shares(sampler, right.sum(1), judged.sum(1)),
        votes=train,
        active=active,
        classifier=words,
    )


def beta_vae_score(
    sampler: FactorSampler, *, batch_size: int = 64, num_train: int = 10_000, num_eval: int = 5_000, seed: int = 0
) -> BetaVAEScore:
    """Return the β-VAE score: whether a linear classifier can tell which factor pairs of observations share.

    A batch becomes one point, the mean absolute difference of the codes of its pairs (Higgins et al., beta-VAE: Learning Basic
    Visual Concepts with a Constrained Variational Framework, 2017, section 3), classified by logistic regression as in
    disentanglement_lib.

    Args:
        sampler: a :class:`TableSampler` or :class:`ProcessSampler`.
        batch_size: pairs of a batch, >= 1.
        num_train: batches to fit on, >= 2.
        num_eval: batches to judge by, >= 1.
        seed: of all draws.

    Returns:
        The score and its parts.

    Raises:
        ValueError: for counts that are too small, or one factor alone.
    """
    from sklearn.linear_model import LogisticRegression

    _check(batch_size=(batch_size, 1), num_train=(num_train, 2), num_eval=(num_eval, 1))
    if sampler.num_factors < 2:
        raise ValueError("got one factor; the score asks which factor is shared and needs at least two")
    rng = np.random.default_rng(seed)

    def points(num_batches: int) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for factors in _drawn(sampler, num_batches, batch_size * 20, rng):
            a, b = sampler.pairs(factors, batch_size, rng)
            features.append(np.abs(a - b).mean(axis=1, dtype=np.float64))
            labels.append(factors)
        return np.concatenate(features), np.concatenate(labels)

    x, y = points(num_train)
    if len(np.unique(y)) < 2:
        raise ValueError(f"all {num_train} training batches fixed the same factor; raise num_train")
    model = LogisticRegression(max_iter=1000).fit(x, y)
    x_eval, y_eval = points(num_eval)
    right = model.predict(x_eval) == y_eval
    number = sampler.num_factors
    return BetaVAEScore(
        score=float(right.mean()),
        train_accuracy=float(np.mean(model.predict(x) == y)),
        per_factor=_shares(sampler, np.bincount(y_eval, right, number), np.bincount(y_eval, minlength=number)),
        classifier="logistic regression (C=1) on mean absolute differences of codes",
    )


def irs(
    codes: Any,
    factors: Any,
    *,
    names: Sequence[str] | None = None,
    quantile: float = 0.99,
    num_factor_bins: int | None = NUM_BINS,
) -> IRS:
    """Return the interventional robustness score: how little a code moves while its factor stays and others change.

    ``1 - mean over values g of quantile(|z_j - E[z_j | g_i = g]|) / max |z_j - E z_j|`` of the best factor i for each code
    j (Suter et al., Robustly Disentangled Causal Mechanisms, 2019, section 4), as in disentanglement_lib: factors in 20
    equal-width bins, and the 0.99 quantile instead of the paper's maximum. It supposes independent factors. Codes that are
    random in the factors score low but not 0: the quantile stays below the maximum.

    Args:
        codes: posterior means ``[N, D]``.
        factors: factor values ``[N, F]``.
        names: one for each factor.
        quantile: of the deviations in a group, in (0, 1]; 1 is the paper's.
        num_factor_bins: equal-width bins of each factor; ``None`` makes every distinct value a class.

    Returns:
        The score and its parts.

    Raises:
        ValueError: for codes or factors that do not fit, or a quantile out of range.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"got quantile={quantile}; expected a share in (0, 1]")
    table = make_table(codes, factors, names, num_factor_bins)
    # The bins are of the factors' values, not of their ranks: as the reference does it.
    classes = table.classes if num_factor_bins is None else digitize(table.factors.astype(np.float64), num_factor_bins)
    # The factors of the original codes: constant ones have no deviation to compare with.
    active = table.codes.var(axis=0) > 0
    z = table.codes[:, active].astype(np.float64)
    largest = np.abs(z - z.mean(axis=0)).max(axis=0)
    deviations = np.empty((z.shape[1], table.num_factors))
    for factor in range(table.num_factors):
        order = np.argsort(classes[:, factor], kind="stable")
        _, starts = np.unique(classes[order, factor], return_index=True)
        groups = np.split(z[order], starts[1:])
        deviations[:, factor] = np.mean(
            [np.quantile(np.abs(group - group.mean(axis=0)), quantile, axis=0) for group in groups], axis=0
        )
    matrix = np.full((table.num_codes, table.num_factors), np.nan)
    matrix[active] = 1 - deviations / largest[:, None]
    per_code = np.full(table.num_codes, np.nan)
    per_code[active] = matrix[active].max(axis=1)
    parents = np.full(table.num_codes, -1)
    parents[active] = matrix[active].argmax(axis=1)
    widths = np.zeros(table.num_codes)
    widths[active] = largest
    score = float(np.average(per_code[active], weights=largest)) if active.any() else 0.0
    words = "every value" if num_factor_bins is None else f"{num_factor_bins} equal-width bins of each factor"
    return IRS(score, per_code, parents, matrix, widths, words)


def table_sampler(codes: Any, factors: Any, names: Sequence[str] | None = None) -> TableSampler:
    """Return a sampler over codes ``[N, D]`` and factors ``[N, F]``.

    Args:
        codes: posterior means ``[N, D]``.
        factors: factor values ``[N, F]``.
        names: one for each factor.

    Returns:
        The sampler.

    Raises:
        ValueError: for codes or factors that do not fit.
    """
    return TableSampler(make_table(codes, factors, names))


def _drawn(sampler: FactorSampler, num_batches: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the factors to fix, as many at once as memory allows."""
    at_once = max(1, DRAWN_AT_ONCE // size)
    for start in range(0, num_batches, at_once):
        yield rng.integers(sampler.num_factors, size=min(at_once, num_batches - start))


def _shares(sampler: FactorSampler, right: np.ndarray, of: np.ndarray) -> Mapping[str, float]:
    """Return the share of batches told right; NaN for a factor that no batch fixed."""
    return {name: float(r / n) if n else float("nan") for name, r, n in zip(sampler.names, right, of, strict=True)}


def _check(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if value < least:
            raise ValueError(f"got {name}={value}; expected at least {least}")
