"""Recipes against blur, and for latents that a second model learns from: another reconstruction term, the networks as they are."""

from __future__ import annotations

from omnivae.recipes.bases import convolutional, variant
from omnivae.recipes.convolutional import kl_autoencoder

_COLOUR = {
    "in_channels": 3,
    "latent_dim": 100,
    "channels": (32, 64, 128, 256),
    "hidden": (),
    "norm": "batch",
    "likelihood": "gaussian_fixed",
}

sigma_vae = variant(
    convolutional,
    "sigma_vae",
    "Return a VAE whose Gaussian pixels share one learned scale (Rybkin et al., Simple and Effective VAE Training, 2021).",
    paper="Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders (σ-VAE, 2021)",
    equation="D log σ + ‖x - x̂‖² / 2σ² + KL(q(z|x) ‖ N(0, I)), σ learned",
    purpose="no β to tune: the scale of the pixels' errors sets the balance",
    defaults=_COLOUR | {"latent_dim": 128, "likelihood": "gaussian"},
    training={"batch_size": 128, "learning_rate": 1e-3},
)

ms_ssim_vae = variant(
    convolutional,
    "ms_ssim_vae",
    "Return a convolutional network for reconstruction by MS-SSIM (Snell et al., Perceptual Similarity Metrics, 2017).",
    paper="Snell et al., Learning to Generate Images with Perceptual Similarity Metrics (2017)",
    equation="λ (1 - MS-SSIM(x, x̂)) + KL(q(z|x) ‖ N(0, I)), λ = 1000",
    purpose="structure and contrast before exact values; no second network",
    losses={"ms_ssim": {"weight": 1000.0}, "kl": {}},
    defaults=_COLOUR,
    training={"batch_size": 64, "learning_rate": 5e-4},
)

dfc_vae = variant(
    convolutional,
    "dfc_vae",
    "Return the network of Hou et al., Deep Feature Consistent Variational Autoencoder, 2017, figure 2.",
    paper="Hou et al., Deep Feature Consistent Variational Autoencoder (2017)",
    equation="β Σ_l 1/2 mean (f_l(x) - f_l(x̂))² + KL(q(z|x) ‖ N(0, I)), f_l stages of a frozen network",
    purpose="faces and textures that look right; needs the weights of a classifier",
    losses={"dfc": {"weight": 1600.0}, "kl": {}},
    defaults=_COLOUR,
    training={"batch_size": 64, "learning_rate": 5e-4},
)

vae_gan = variant(
    convolutional,
    "vae_gan",
    "Return a convolutional network for VAE-GAN (Larsen et al., Autoencoding beyond pixels, 2016, table 1).",
    paper="Larsen et al., Autoencoding beyond pixels using a learned similarity metric (VAE-GAN, 2016)",
    equation="1/2 ‖D_l(x) - D_l(x̂)‖² + KL(q(z|x) ‖ N(0, I)); for the decoder also GAN(x̂) + GAN(Dec(z_p)), z_p ~ N(0, I)",
    purpose="faces that look right without the weights of a classifier: a discriminator learns what makes two images alike",
    losses={"vae_gan": {}, "kl": {}},
    defaults=_COLOUR | {"latent_dim": 128, "channels": (64, 128, 256)},
    training={"batch_size": 64, "learning_rate": 3e-4},
)

eq_vae = variant(
    kl_autoencoder,
    "eq_vae",
    "Return the KL autoencoder that EQ-VAE regularises (Kouzelis et al., EQ-VAE, 2025).",
    paper="Kouzelis et al., EQ-VAE: Equivariance Regularized Latent Space (2025)",
    equation="-1/2 log p(x|z) - 1/2 log p(τx|τz) + β KL, τ a scale in [1/4, 1] and a rotation by 90°, β = 1e-6",
    purpose="latents that scale and turn like images: diffusion models learn them faster",
    losses={
        "nll": {"weight": 0.5, "per_element": True},
        "eq": {"weight": 0.5, "per_element": True},
        "kl": {"weight": 1e-6},
    },
)
