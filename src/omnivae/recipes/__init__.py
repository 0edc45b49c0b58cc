"""Recipes: typed functions that compose a published model, and the only place with papers' numbers."""

from omnivae.recipes.baselines import cnn_vae, vit_vae
from omnivae.recipes.beta_vae_25d import BetaVae25D
from omnivae.recipes.beta_vae_monai import BetaVaeMonai
from omnivae.recipes.conditional import c_vae, m2_vae
from omnivae.recipes.convolutional import beta_vae, conv_vae, kl_autoencoder, swin_vae
from omnivae.recipes.diffusers import cogvideox_vae, dc_ae
from omnivae.recipes.family import MEMBERS, RECIPES, Member, member
from omnivae.recipes.flows import flow_prior_vae, flow_vae, iaf_vae
from omnivae.recipes.hierarchical import deep_hierarchical_vae, hierarchical_vae, ladder_vae, lite_vae
from omnivae.recipes.inflation import inflate
from omnivae.recipes.monai_kl import monai_kl
from omnivae.recipes.objectives import (
    aae,
    beta_tc_vae,
    capacity_vae,
    ciwae,
    dip_vae_i,
    dip_vae_ii,
    factor_vae,
    info_vae,
    iwae,
    miwae,
    wae,
)
from omnivae.recipes.posteriors import autoencoder, fsq_vae, full_covariance_vae, lfq_vae, residual_vq_vae, vq_vae
from omnivae.recipes.priors import mixture_vae, vamp_vae
from omnivae.recipes.sharp import dfc_vae, eq_vae, ms_ssim_vae, sigma_vae, vae_gan
from omnivae.recipes.supports import gumbel_softmax_vae, hyperspherical_vae
from omnivae.recipes.text import text_vae
from omnivae.recipes.transvae import TransVAE
from omnivae.recipes.video import VideoVAE
from omnivae.recipes.volumes import MaisiVAE

__all__ = [
    "MEMBERS",
    "RECIPES",
    "BetaVae25D",
    "BetaVaeMonai",
    "MaisiVAE",
    "Member",
    "TransVAE",
    "VideoVAE",
    "aae",
    "autoencoder",
    "beta_tc_vae",
    "beta_vae",
    "c_vae",
    "capacity_vae",
    "ciwae",
    "cnn_vae",
    "cogvideox_vae",
    "conv_vae",
    "dc_ae",
    "deep_hierarchical_vae",
    "dfc_vae",
    "dip_vae_i",
    "dip_vae_ii",
    "eq_vae",
    "factor_vae",
    "flow_prior_vae",
    "flow_vae",
    "fsq_vae",
    "full_covariance_vae",
    "gumbel_softmax_vae",
    "hierarchical_vae",
    "hyperspherical_vae",
    "iaf_vae",
    "inflate",
    "info_vae",
    "iwae",
    "kl_autoencoder",
    "ladder_vae",
    "lfq_vae",
    "lite_vae",
    "m2_vae",
    "member",
    "miwae",
    "mixture_vae",
    "monai_kl",
    "ms_ssim_vae",
    "residual_vq_vae",
    "sigma_vae",
    "swin_vae",
    "text_vae",
    "vae_gan",
    "vamp_vae",
    "vit_vae",
    "vq_vae",
    "wae",
]
