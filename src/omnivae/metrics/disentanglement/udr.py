"""UDR: agreement of models trained from different seeds, a score that needs no factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from omnivae.metrics.disentanglement.table import as_codes

#: Weight of the L1 penalty, as in disentanglement_lib.
ALPHA = 0.1


@dataclass(frozen=True)
class UDR:
    """Unsupervised disentanglement rankings of several models and their parts.

    Attributes:
        scores: of each model ``[M]``: the median over the other models, in [0, 1].
        pairwise: of each pair ``[M, M]``; the diagonal is 0.
        similarities: ``similarities[i][j]`` is ``[D_i, D_j]``, how strongly code a of model i goes with code b of model j, of all
            codes, also those left out of the score; empty for i = j.
        informative: codes of each model that count.
        method: what the similarity is.
    """

    scores: np.ndarray
    pairwise: np.ndarray
    similarities: tuple[tuple[np.ndarray, ...], ...]
    informative: tuple[np.ndarray, ...]
    method: str


def udr(
    representations: Sequence[Any],
    kl: Sequence[Any],
    *,
    method: Literal["lasso", "spearman"] = "lasso",
    kl_threshold: float = 0.01,
) -> UDR:
    """Return the unsupervised disentanglement ranking: how well the codes of models match one to one.

    Duan et al., Unsupervised Model Selection for Variational Disentangled Representation Learning, 2020, equation 3:
    ``(mean_b r_b^2 / sum_a R_ab + mean_a r_a^2 / sum_b R_ab) / 2`` with the greatest entry ``r`` of each column and row of the
    similarity ``R``, as in disentanglement_lib. Models that agree up to order and sign score 1 with "spearman", and
    0.9 with "lasso": its penalty of 0.1 shrinks a coefficient of 1 to 0.9.

    Args:
        representations: posterior means of the same images, in the same order, one ``[N, D]`` for each model; at least two.
        kl: mean KL divergence of each code in nats, one ``[D]`` for each model.
        method: "lasso", coefficients of an L1-penalised regression of one model's codes on another's, or "spearman", rank
            correlations.
        kl_threshold: codes at or below this carry nothing and are left out.

    Returns:
        The scores and their parts.

    Raises:
        ValueError: for fewer than two models, shapes that do not fit, or an unknown method.
    """
    if method not in ("lasso", "spearman"):
        raise ValueError(f"got method={method!r}; expected 'lasso' or 'spearman'")
    if len(representations) < 2 or len(kl) != len(representations):
        raise ValueError(
            f"got {len(representations)} models and {len(kl)} KLs; expected two or more, a KL for each model"
        )
    codes = [as_codes(of).astype(np.float64) for of in representations]
    if len({len(of) for of in codes}) > 1:
        raise ValueError(f"got {[len(of) for of in codes]} rows; every model must encode the same images")
    informative = tuple(np.asarray(of) > kl_threshold for of in kl)
    for i, (of, mask) in enumerate(zip(codes, informative, strict=True)):
        if mask.shape != (of.shape[1],):
            raise ValueError(
                f"model {i} has {of.shape[1]} codes, but its KL has shape {mask.shape}; expected one for each"
            )
    standard = [_standardize(of) * mask for of, mask in zip(codes, informative, strict=True)]
    ranks = [_standardize(_ranks(of)) for of in standard] if method == "spearman" else []
    number = len(codes)
    pairwise, rows = np.zeros((number, number)), []
    for i in range(number):
        row = []
        for j in range(number):
            if i == j:
                row.append(np.empty((0, 0)))
                continue
            similar = np.abs(ranks[i].T @ ranks[j]) / len(codes[i]) if ranks else _lasso(standard[i], standard[j])
            row.append(similar)
            pairwise[i, j] = relative_strength(similar[informative[i]][:, informative[j]])
        rows.append(tuple(row))
    scores = np.array([np.median(np.delete(pairwise[:, i], i)) for i in range(number)])
    words = f"lasso (alpha={ALPHA})" if method == "lasso" else "absolute Spearman correlation"
    return UDR(scores, pairwise, tuple(rows), informative, words)


def relative_strength(similarity: np.ndarray) -> float:
    """Return how close a similarity is to a one-to-one match.

    Args:
        similarity: ``[A, B]``, not negative.

    Returns:
        Mean of greatest entry squared over sum, over columns and over rows; 0 where there is no code.
    """
    if similarity.size == 0:
        return 0.0

    def along(axis: int) -> float:
        sums = similarity.sum(axis=axis)
        return float(np.mean(np.square(similarity.max(axis=axis)) / np.where(sums > 0, sums, 1)))

    return (along(0) + along(1)) / 2


def _lasso(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import Lasso

    return np.abs(Lasso(alpha=ALPHA).fit(x, y).coef_).reshape(y.shape[1], x.shape[1]).T


def _standardize(codes: np.ndarray) -> np.ndarray:
    """Return codes with mean 0 and standard deviation 1; constant ones become 0."""
    std = codes.std(axis=0)
    return (codes - codes.mean(axis=0)) / np.where(std > 0, std, 1)


def _ranks(codes: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(codes, axis=0))
