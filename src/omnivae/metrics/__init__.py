"""Metrics: one function each; ``evaluate`` runs them over a dataset, and ``compare`` tells two evaluations apart."""

from omnivae.metrics.aggregate import (
    aggregate_kl,
    dimension_wise_kl,
    mutual_information,
    prior_holes,
    total_correlation,
)
from omnivae.metrics.card import Provenance
from omnivae.metrics.classes import class_accuracy
from omnivae.metrics.codebook import code_usage, perplexity
from omnivae.metrics.comparison import compare
from omnivae.metrics.density import active_units, bits_per_dim, elbo, kl, kl_per_dimension, nll
from omnivae.metrics.difference import Comparison, Difference
from omnivae.metrics.disentanglement import disentanglement
from omnivae.metrics.equivariance import (
    equivariance_flip,
    equivariance_rotation,
    equivariance_scale,
    equivariance_shift,
)
from omnivae.metrics.evaluation import Evaluation, MetricResult
from omnivae.metrics.frechet import gfd, rfd
from omnivae.metrics.image import l1, ms_ssim, mse, psnr, ssim
from omnivae.metrics.inference import Inference
from omnivae.metrics.intervals import bootstrap_interval
from omnivae.metrics.latents import LatentStatistics
from omnivae.metrics.population import Estimate, Population
from omnivae.metrics.probes import knn_accuracy, probe_accuracy, probe_r2
from omnivae.metrics.registry import METRICS, Metric, metric
from omnivae.metrics.regret import likelihood_regret
from omnivae.metrics.runner import evaluate
from omnivae.metrics.smoothness import interpolation_roughness, path_length
from omnivae.metrics.stacks import stack_boundary
from omnivae.metrics.text import token_accuracy, token_perplexity, word_perplexity
from omnivae.metrics.uniformity import density_cv, density_entropy, density_gini
from omnivae.metrics.volume import WINDOWS, hu_contract, hu_table, mae_hu, structure_errors, window_errors

__all__ = [
    "METRICS",
    "WINDOWS",
    "Comparison",
    "Difference",
    "Estimate",
    "Evaluation",
    "Inference",
    "LatentStatistics",
    "Metric",
    "MetricResult",
    "Population",
    "Provenance",
    "active_units",
    "aggregate_kl",
    "bits_per_dim",
    "bootstrap_interval",
    "class_accuracy",
    "code_usage",
    "compare",
    "density_cv",
    "density_entropy",
    "density_gini",
    "dimension_wise_kl",
    "disentanglement",
    "elbo",
    "equivariance_flip",
    "equivariance_rotation",
    "equivariance_scale",
    "equivariance_shift",
    "evaluate",
    "gfd",
    "hu_contract",
    "hu_table",
    "interpolation_roughness",
    "kl",
    "kl_per_dimension",
    "knn_accuracy",
    "l1",
    "likelihood_regret",
    "mae_hu",
    "metric",
    "ms_ssim",
    "mse",
    "mutual_information",
    "nll",
    "path_length",
    "perplexity",
    "prior_holes",
    "probe_accuracy",
    "probe_r2",
    "psnr",
    "rfd",
    "ssim",
    "stack_boundary",
    "structure_errors",
    "token_accuracy",
    "token_perplexity",
    "total_correlation",
    "window_errors",
    "word_perplexity",
]
