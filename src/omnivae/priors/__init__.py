"""Priors p(z)."""

from omnivae.priors.autoregressive import AutoregressivePrior
from omnivae.priors.base import Prior, StandardNormal
from omnivae.priors.conditional import ConditionalGaussianPrior
from omnivae.priors.flow import FlowDensity, FlowPrior
from omnivae.priors.mixture import MixturePrior, VampPrior
from omnivae.priors.uniform import UniformCategories, UniformSphere

__all__ = [
    "AutoregressivePrior",
    "ConditionalGaussianPrior",
    "FlowDensity",
    "FlowPrior",
    "MixturePrior",
    "Prior",
    "StandardNormal",
    "UniformCategories",
    "UniformSphere",
    "VampPrior",
]
