"""``disentanglement``: several scores of one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omnivae.component import suggestion
from omnivae.metrics.disentanglement.dci import DCI, dci
from omnivae.metrics.disentanglement.information import MIG, Modularity, mig, modularity
from omnivae.metrics.disentanglement.interventions import (
    IRS,
    BetaVAEScore,
    FactorVAEScore,
    beta_vae_score,
    factor_vae_score,
    irs,
    table_sampler,
)
from omnivae.metrics.disentanglement.sap import SAP, sap

Score = MIG | SAP | DCI | FactorVAEScore | BetaVAEScore | Modularity | IRS
_Scorer = Callable[[Any, Any, Sequence[str] | None, int], Score]

SCORES: Mapping[str, _Scorer] = {
    "mig": lambda codes, factors, names, seed: mig(codes, factors, names=names),
    "sap": lambda codes, factors, names, seed: sap(codes, factors, names=names, seed=seed),
    "dci": lambda codes, factors, names, seed: dci(codes, factors, names=names, seed=seed),
    "factor_vae": lambda codes, factors, names, seed: factor_vae_score(table_sampler(codes, factors, names), seed=seed),
    "beta_vae": lambda codes, factors, names, seed: beta_vae_score(table_sampler(codes, factors, names), seed=seed),
    "modularity": lambda codes, factors, names, seed: modularity(codes, factors, names=names, seed=seed),
    "irs": lambda codes, factors, names, seed: irs(codes, factors, names=names),
}


def disentanglement(
    codes: Any,
    factors: Any,
    *,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] = ("mig", "sap", "dci", "factor_vae", "beta_vae", "modularity", "irs"),
    seed: int = 0,
) -> dict[str, Score]:
    """Score how well codes separate the factors that made the data, with the defaults of disentanglement_lib.

    For other options, for observations made on demand, and for UDR, which compares models, call the functions of
    ``omnivae.metrics.disentanglement`` one by one.

    Args:
        codes: posterior means ``[N, D]``, a NumPy array or a torch tensor; 15,000 rows are customary.
        factors: factor values ``[N, F]``; every distinct value is a class.
        names: one for each factor; "factor 0" and so on by default.
        metrics: any of "mig", "sap", "dci", "factor_vae", "beta_vae", "modularity", "irs".
        seed: of splits, draws and classifiers.

    Returns:
        A result for each name, with its ``score`` (higher is better) and its parts.

    Raises:
        ValueError: for an unknown metric, or codes or factors that do not fit.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(5, size=(3000, 2))
        >>> result = disentanglement(factors, factors, names=["shape", "size"], metrics=["mig", "irs"])
        >>> {name: round(of.score, 2) for name, of in result.items()}, sorted(result["mig"].per_factor)
        ({'mig': 1.0, 'irs': 1.0}, ['shape', 'size'])
    """
    if isinstance(metrics, str):
        metrics = [metrics]
    if not metrics:
        raise ValueError(f"got no metric; choose from: {', '.join(SCORES)}")
    for name in metrics:
        if name not in SCORES:
            raise ValueError(f"unknown metric {name!r}{suggestion(name, SCORES)}; available: {', '.join(SCORES)}")
    return {name: SCORES[name](codes, factors, names, seed) for name in dict.fromkeys(metrics)}
