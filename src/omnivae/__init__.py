"""omnivae: variational autoencoders over images, volumes, video and text."""

from omnivae.component import Component, from_config, to_config
from omnivae.data import DataConfig, load_data, preprocess_image, save_image
from omnivae.data.latents import LatentDataset, PosteriorStore
from omnivae.distributions import DiagonalGaussian, kl_divergence
from omnivae.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
)
from omnivae.losses import KL, L1, MSE, MSSSIM, NLL
from omnivae.losses.schedules import ConstantSchedule, CosineSchedule, CyclicalSchedule, LinearSchedule
from omnivae.metrics import compare, evaluate
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes import (
    TransVAE,
    autoencoder,
    beta_vae,
    cnn_vae,
    conv_vae,
    fsq_vae,
    full_covariance_vae,
    kl_autoencoder,
    lfq_vae,
    mixture_vae,
    swin_vae,
    vamp_vae,
    vit_vae,
    vq_vae,
)
from omnivae.types import Batch, Latent, VAEOutput

__all__ = [
    "KL",
    "L1",
    "MSE",
    "MSSSIM",
    "NLL",
    "VAE",
    "Batch",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "Component",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicalSchedule",
    "DataConfig",
    "DiagonalGaussian",
    "DiscretizedLogisticLikelihood",
    "GaussianLikelihood",
    "GaussianPosterior",
    "LaplaceLikelihood",
    "Latent",
    "LatentDataset",
    "LinearSchedule",
    "PosteriorStore",
    "StandardNormal",
    "TransVAE",
    "VAEOutput",
    "autoencoder",
    "beta_vae",
    "cnn_vae",
    "compare",
    "conv_vae",
    "evaluate",
    "from_config",
    "fsq_vae",
    "full_covariance_vae",
    "kl_autoencoder",
    "kl_divergence",
    "lfq_vae",
    "load_data",
    "mixture_vae",
    "preprocess_image",
    "save_image",
    "swin_vae",
    "to_config",
    "vamp_vae",
    "vit_vae",
    "vq_vae",
]
