"""Posterior heads: encoder features to q(z|x)."""

from omnivae.posteriors.categorical import CategoricalCodes, CategoricalPosterior
from omnivae.posteriors.flow import FlowPosterior, TransformedGaussian
from omnivae.posteriors.full_covariance import FullCovarianceGaussian, FullCovarianceGaussianPosterior
from omnivae.posteriors.gaussian import GaussianPosterior, PosteriorHead, QuantConvPosterior, SplitPosterior
from omnivae.posteriors.level import LevelPosterior
from omnivae.posteriors.point_mass import PointMass, PointMassPosterior
from omnivae.posteriors.quantised import FSQPosterior, LFQPosterior, QuantisedHead, QuantisedPosterior, VQPosterior
from omnivae.posteriors.von_mises_fisher import VonMisesFisher, VonMisesFisherPosterior

__all__ = [
    "CategoricalCodes",
    "CategoricalPosterior",
    "FSQPosterior",
    "FlowPosterior",
    "FullCovarianceGaussian",
    "FullCovarianceGaussianPosterior",
    "GaussianPosterior",
    "LFQPosterior",
    "LevelPosterior",
    "PointMass",
    "PointMassPosterior",
    "PosteriorHead",
    "QuantConvPosterior",
    "QuantisedHead",
    "QuantisedPosterior",
    "SplitPosterior",
    "TransformedGaussian",
    "VQPosterior",
    "VonMisesFisher",
    "VonMisesFisherPosterior",
]
