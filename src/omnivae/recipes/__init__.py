"""Recipes: typed functions that compose a published model, and the only place with papers' numbers."""

from omnivae.recipes.baselines import cnn_vae, vit_vae
from omnivae.recipes.convolutional import beta_vae, conv_vae, kl_autoencoder, swin_vae
from omnivae.recipes.family import MEMBERS, RECIPES, Member, member
from omnivae.recipes.posteriors import autoencoder, fsq_vae, full_covariance_vae, lfq_vae, vq_vae
from omnivae.recipes.priors import mixture_vae, vamp_vae
from omnivae.recipes.transvae import TransVAE

__all__ = [
    "MEMBERS",
    "RECIPES",
    "Member",
    "TransVAE",
    "autoencoder",
    "beta_vae",
    "cnn_vae",
    "conv_vae",
    "fsq_vae",
    "full_covariance_vae",
    "kl_autoencoder",
    "lfq_vae",
    "member",
    "mixture_vae",
    "swin_vae",
    "vamp_vae",
    "vit_vae",
    "vq_vae",
]
