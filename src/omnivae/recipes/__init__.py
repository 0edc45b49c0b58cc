"""Recipes: typed functions that compose a published model, and the only place with papers' numbers."""

from collections.abc import Callable

from omnivae.models import VAE
from omnivae.recipes.baselines import cnn_vae, vit_vae
from omnivae.recipes.convolutional import beta_vae, conv_vae, kl_autoencoder, swin_vae
from omnivae.recipes.posteriors import autoencoder, fsq_vae, full_covariance_vae, lfq_vae, vq_vae
from omnivae.recipes.priors import mixture_vae, vamp_vae
from omnivae.recipes.transvae import TransVAE

#: What ``model.recipe`` may name.
RECIPES: dict[str, Callable[..., VAE]] = {
    "transvae": TransVAE,
    "conv_vae": conv_vae,
    "beta_vae": beta_vae,
    "kl_autoencoder": kl_autoencoder,
    "cnn_vae": cnn_vae,
    "vit_vae": vit_vae,
    "swin_vae": swin_vae,
    "mixture_vae": mixture_vae,
    "vamp_vae": vamp_vae,
    "full_covariance_vae": full_covariance_vae,
    "autoencoder": autoencoder,
    "vq_vae": vq_vae,
    "fsq_vae": fsq_vae,
    "lfq_vae": lfq_vae,
}

__all__ = [
    "RECIPES",
    "TransVAE",
    "autoencoder",
    "beta_vae",
    "cnn_vae",
    "conv_vae",
    "fsq_vae",
    "full_covariance_vae",
    "kl_autoencoder",
    "lfq_vae",
    "mixture_vae",
    "swin_vae",
    "vamp_vae",
    "vit_vae",
    "vq_vae",
]
