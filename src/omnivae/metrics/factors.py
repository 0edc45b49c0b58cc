"""Disentanglement scores as metrics of an evaluation: the codes of images whose factors are known.

Where the images are of a world, rows are drawn from its process, uniformly and independently, as in disentanglement_lib; elsewhere
they are the evaluation's images and their labels. Definitions and defaults are those of :mod:`omnivae.metrics.disentanglement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.disentanglement import (
    beta_vae_score,
    factor_vae_score,
    table_sampler,
)
from omnivae.metrics.disentanglement import dci as dci_of
from omnivae.metrics.disentanglement import (
    irs as irs_of,
)
from omnivae.metrics.disentanglement import (
    mig as mig_of,
)
from omnivae.metrics.disentanglement import (
    modularity as modularity_of,
)
from omnivae.metrics.disentanglement import (
    sap as sap_of,
)
from omnivae.metrics.population import Estimate, Population, codes
from omnivae.metrics.registry import metric

#: Rows that are drawn from a process: 10,000 to fit on and 5,000 to judge by, as in disentanglement_lib's study.
NUM_ROWS = 15_000
#: Pictures made and encoded at once: a constant, so that the last digits are always the same.
CHUNK = 250
#: Elements of a latent that are compared with factors at most.
MAX_CODES = 512
_FACTORS = (
    "factors come from a world (--world dsprites, shapes3d or moving_sprites), from numeric columns of a table "
    "(--factors COLUMN COLUMN), or are one, the label column of a table or a folder for each class"
)


class Process(Protocol):
    """What makes images from factors.

    Attributes:
        names: one for each factor.
        factor_sizes: number of values of each factor.
        num_rows: how many images are to be drawn.
    """

    names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    num_rows: int

    def observe(self, factors: np.ndarray) -> Tensor:
        """Return the images ``[N, C, *S]`` of factors ``[N, F]``, as the model takes them."""
        ...


@dataclass(frozen=True)
class FactorTable:
    """Codes and factors of the same images.

    Attributes:
        codes: ``[N, D]``.
        factors: ``[N, F]``.
        names: one for each factor.
        drawn: whether the rows are independent draws of a process.
    """

    codes: np.ndarray
    factors: np.ndarray
    names: tuple[str, ...]
    drawn: bool

    @property
    def remark(self) -> str:
        """Which rows the scores are of."""
        if self.drawn:
            return f"of {len(self.codes):,} images drawn from their process"
        return f"of {len(self.codes):,} images and their {len(self.names)} factors ({', '.join(self.names)})"


def draw_table(model: Any, process: Process, *, seed: int = 0) -> FactorTable:
    """Draw factors from a process, and encode their images.

    Args:
        model: a VAE in evaluation mode.
        process: what makes the images.
        seed: of the draw.

    Returns:
        The posterior modes and the factors.
    """
    rng = np.random.default_rng(seed)
    factors = rng.integers(process.factor_sizes, size=(process.num_rows, len(process.names)))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        parts = [
            model.encode(process.observe(factors[i : i + CHUNK]).to(device)).mode().flatten(1).float().cpu().numpy()
            for i in range(0, len(factors), CHUNK)
        ]
    return FactorTable(np.concatenate(parts), factors, tuple(process.names), drawn=True)


def factor_table(population: Population) -> FactorTable:
    """Return codes and factors of a population, or of its process where that is known.

    Args:
        population: the images.

    Raises:
        ValueError: where no factor is known, or the latent is too large.
    """
    if population.process is not None:
        table = draw_table(population.model, population.process, seed=population.seed)
    else:
        try:
            labels = population.labels("disentanglement")
        except ValueError:
            raise ValueError(
                f"disentanglement scores compare codes with known factors, and these images have none: {_FACTORS}"
            ) from None
        factors = labels.reshape(len(labels), -1)
        names = population.factor_names
        if names is None or len(names) != factors.shape[1]:
            names = ("label",) if factors.shape[1] == 1 else tuple(f"factor {i}" for i in range(factors.shape[1]))
        table = FactorTable(population.table(codes, "z").flatten(1).numpy(), factors, names, drawn=False)
    if table.codes.shape[1] > MAX_CODES:
        raise ValueError(
            f"disentanglement scores compare each element of a latent with the factors, and this one has {table.codes.shape[1]:,}; "
            f"they are for vector latents of {MAX_CODES} elements at most: leave them out"
        )
    return table


def _estimate(
    score: float, table: FactorTable, population: Population, details: Mapping[str, Any] | None = None
) -> Estimate:
    # One number of all rows: resampled rows repeat themselves, which raises every mutual information and accuracy.
    remark = table.remark if table.drawn else population.noted(table.remark)
    return Estimate(np.array([score]), remark=remark, interval=False, details=details)


def _share(score: float, judged: int, table: FactorTable, words: str) -> Estimate:
    """Return a share of judged batches, whose resampling gives its interval."""
    right = round(score * judged)
    rows = np.concatenate([np.ones(right), np.zeros(judged - right)])
    return Estimate(rows, remark=f"{table.remark}; interval over the batches judged", details={"classifier": words})


def _process_table(population: Population, name: str) -> FactorTable:
    if population.process is None:
        raise ValueError(
            f"{name} holds one factor fixed while all others vary, so it needs the process that made the images: evaluate on a "
            "world (--world dsprites, shapes3d or moving_sprites), or measure mig, sap and dci_disentanglement, which need labels"
        )
    return population.once(factor_table)


@metric(
    unit="",
    better="higher",
    meaning="Mutual information gap: how much more the best code knows of a factor than the second best.",
    scope="population",
    masks=True,
    collect=codes,
)
def mig(population: Population) -> Estimate:
    """Return the mutual information gap, see :func:`omnivae.metrics.disentanglement.mig`.

    Args:
        population: the images.
    """
    table = population.once(factor_table)
    result = mig_of(table.codes, table.factors, names=table.names, num_factor_bins=_bins(table))
    return _estimate(
        result.score,
        table,
        population,
        {
            "factors": list(table.names),
            "per_factor": dict(result.per_factor),
            "mutual_information": result.mutual_information.tolist(),
            "entropy": result.entropy.tolist(),
            "discretization": result.discretization,
        },
    )


@metric(
    unit="",
    better="higher",
    meaning="How much better the best code predicts a factor by one threshold or line than the second best.",
    scope="population",
    masks=True,
    collect=codes,
)
def sap(population: Population) -> Estimate:
    """Return separated attribute predictability, see :func:`omnivae.metrics.disentanglement.sap`.

    Args:
        population: the images.
    """
    table = population.once(factor_table)
    result = sap_of(table.codes, table.factors, names=table.names, num_factor_bins=_bins(table), seed=population.seed)
    return _estimate(result.score, table, population, {"per_factor": dict(result.per_factor)})


@metric(
    unit="",
    better="higher",
    meaning="Whether each code matters to one factor alone (DCI).",
    scope="population",
    masks=True,
    collect=codes,
)
def dci_disentanglement(population: Population) -> Estimate:
    """Return DCI's disentanglement, see :func:`omnivae.metrics.disentanglement.dci`.

    Args:
        population: the images.
    """
    table, result = population.once(factor_table), population.once(_dci)
    details = {
        "factors": list(table.names),
        "importances": result.importances.tolist(),
        "per_code": result.per_code.tolist(),
        "classifier": result.classifier,
    }
    return _estimate(result.score, table, population, details)


@metric(
    unit="",
    better="higher",
    meaning="Whether one code alone matters to each factor (DCI).",
    scope="population",
    masks=True,
    collect=codes,
)
def dci_completeness(population: Population) -> Estimate:
    """Return DCI's completeness, see :func:`omnivae.metrics.disentanglement.dci`.

    Args:
        population: the images.
    """
    table, result = population.once(factor_table), population.once(_dci)
    return _estimate(result.completeness, table, population, {"per_factor": dict(result.per_factor)})


@metric(
    unit="",
    better="higher",
    meaning="Accuracy with which boosted trees predict the factors from the code, on held-out rows (DCI).",
    scope="population",
    masks=True,
    collect=codes,
)
def dci_informativeness(population: Population) -> Estimate:
    """Return DCI's informativeness, see :func:`omnivae.metrics.disentanglement.dci`.

    Args:
        population: the images.
    """
    table, result = population.once(factor_table), population.once(_dci)
    return _estimate(result.informativeness, table, population, {"per_factor": dict(result.accuracy)})


@metric(
    unit="",
    better="higher",
    meaning="How often the code that varies least tells which factor was held fixed.",
    scope="population",
    masks=True,
    collect=codes,
)
def factor_vae(population: Population) -> Estimate:
    """Return the FactorVAE score, see :func:`omnivae.metrics.disentanglement.factor_vae_score`.

    Args:
        population: the images, of a world.
    """
    table = _process_table(population, "factor_vae")
    result = factor_vae_score(table_sampler(table.codes, table.factors, table.names), seed=population.seed)
    return _share(result.score, 5_000, table, result.classifier)


@metric(
    unit="",
    better="higher",
    meaning="How often a linear classifier tells which factor pairs of images share.",
    scope="population",
    masks=True,
    collect=codes,
)
def beta_vae(population: Population) -> Estimate:
    """Return the β-VAE score, see :func:`omnivae.metrics.disentanglement.beta_vae_score`.

    Args:
        population: the images, of a world.
    """
    table = _process_table(population, "beta_vae")
    result = beta_vae_score(table_sampler(table.codes, table.factors, table.names), seed=population.seed)
    return _share(result.score, 5_000, table, result.classifier)


@metric(
    unit="",
    better="higher",
    meaning="Whether each code tells of one factor alone, by mutual information.",
    scope="population",
    masks=True,
    collect=codes,
)
def modularity(population: Population) -> Estimate:
    """Return modularity, see :func:`omnivae.metrics.disentanglement.modularity`.

    Args:
        population: the images.
    """
    table, result = population.once(factor_table), population.once(_modularity)
    return _estimate(result.score, table, population, {"discretization": result.discretization})


@metric(
    unit="",
    better="higher",
    meaning="Area under the ROC curve with which a linear classifier reads each factor's values off the code.",
    scope="population",
    masks=True,
    collect=codes,
)
def explicitness(population: Population) -> Estimate:
    """Return explicitness, see :func:`omnivae.metrics.disentanglement.modularity`.

    Args:
        population: the images.
    """
    table, result = population.once(factor_table), population.once(_modularity)
    details = {"per_factor": dict(result.per_factor), "classifier": result.classifier}
    return _estimate(result.explicitness, table, population, details)


@metric(
    unit="",
    better="higher",
    meaning="How little each code moves while its own factor stays and all others change.",
    scope="population",
    masks=True,
    collect=codes,
)
def irs(population: Population) -> Estimate:
    """Return interventional robustness, see :func:`omnivae.metrics.disentanglement.irs`.

    Args:
        population: the images, of a world.
    """
    table = _process_table(population, "irs")
    result = irs_of(table.codes, table.factors, names=table.names)
    return _estimate(result.score, table, population, {"discretization": result.discretization})


def _dci(population: Population) -> Any:
    table = population.once(factor_table)
    return dci_of(table.codes, table.factors, names=table.names, num_factor_bins=_bins(table), seed=population.seed)


def _modularity(population: Population) -> Any:
    table = population.once(factor_table)
    return modularity_of(
        table.codes, table.factors, names=table.names, num_factor_bins=_bins(table), seed=population.seed
    )


def _bins(table: FactorTable) -> int | None:
    """Continuous factors are put into equal-width bins; a value of a class is a class."""
    many = any(2 * len(np.unique(column)) > max(len(column), 8) for column in table.factors.T)
    return 20 if many else None
