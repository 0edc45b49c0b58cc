"""Posterior heads: encoder features to q(z|x)."""

from omnivae.posteriors.gaussian import GaussianPosterior, PosteriorHead

__all__ = ["GaussianPosterior", "PosteriorHead"]
