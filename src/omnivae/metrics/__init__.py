"""Metrics: one function each; ``evaluate`` runs them over a dataset, and ``compare`` tells two evaluations apart."""

from omnivae.metrics.card import Provenance
from omnivae.metrics.comparison import compare
from omnivae.metrics.density import active_units, bits_per_dim, elbo, kl, kl_per_dimension, nll
from omnivae.metrics.difference import Comparison, Difference
from omnivae.metrics.disentanglement import disentanglement
from omnivae.metrics.evaluation import Evaluation, MetricResult
from omnivae.metrics.image import l1, ms_ssim, mse, psnr, ssim
from omnivae.metrics.inference import Inference
from omnivae.metrics.intervals import bootstrap_interval
from omnivae.metrics.latents import LatentStatistics
from omnivae.metrics.registry import METRICS, Metric, metric
from omnivae.metrics.runner import evaluate

__all__ = [
    "METRICS",
    "Comparison",
    "Difference",
    "Evaluation",
    "Inference",
    "LatentStatistics",
    "Metric",
    "MetricResult",
    "Provenance",
    "active_units",
    "bits_per_dim",
    "bootstrap_interval",
    "compare",
    "disentanglement",
    "elbo",
    "evaluate",
    "kl",
    "kl_per_dimension",
    "l1",
    "metric",
    "ms_ssim",
    "mse",
    "nll",
    "psnr",
    "ssim",
]
