"""Disentanglement: how well codes separate the factors that made the data."""

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
from omnivae.metrics.disentanglement.report import disentanglement
from omnivae.metrics.disentanglement.sampling import FactorSampler, ProcessSampler, TableSampler
from omnivae.metrics.disentanglement.sap import SAP, sap
from omnivae.metrics.disentanglement.udr import UDR, udr

__all__ = [
    "DCI",
    "IRS",
    "MIG",
    "SAP",
    "UDR",
    "BetaVAEScore",
    "FactorSampler",
    "FactorVAEScore",
    "Modularity",
    "ProcessSampler",
    "TableSampler",
    "beta_vae_score",
    "dci",
    "disentanglement",
    "factor_vae_score",
    "irs",
    "mig",
    "modularity",
    "sap",
    "table_sampler",
    "udr",
]
