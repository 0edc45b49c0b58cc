"""Metrics: one function each, and ``evaluate``, which runs them over a dataset."""

from omnivae.metrics.density import active_units, bits_per_dim, elbo, kl, kl_per_dimension, nll
from omnivae.metrics.evaluation import Evaluation, MetricResult
from omnivae.metrics.image import l1, ms_ssim, mse, psnr, ssim
from omnivae.metrics.inference import Inference, LatentStatistics
from omnivae.metrics.registry import METRICS, Metric, metric
from omnivae.metrics.runner import bootstrap_interval, evaluate

__all__ = [
    "METRICS",
    "Evaluation",
    "Inference",
    "LatentStatistics",
    "Metric",
    "MetricResult",
    "active_units",
    "bits_per_dim",
    "bootstrap_interval",
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
