"""The convolutional autoencoder with other posteriors: full covariance, none (a plain autoencoder), and codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.posteriors import (
    FSQPosterior,
    FullCovarianceGaussianPosterior,
    LFQPosterior,
    PointMassPosterior,
    PosteriorHead,
    VQPosterior,
)
from omnivae.priors import StandardNormal
from omnivae.recipes.convolutional import conv_model
from omnivae.recipes.family import member


@member(
    paper="Kingma & Welling, An Introduction to Variational Autoencoders (2019), section 2.5.1",
    equation="-E_q[log p(x|z)] + KL(N(μ, L Lᵀ) ‖ N(0, I))",
    purpose="latent dimensions that depend on each other given the image; tighter bound with few dimensions",
)
def full_covariance_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 16,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE with a full-covariance Gaussian posterior (Kingma & Welling, An Introduction to VAEs, 2019, section 2.5.1).

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> full_covariance_vae(latent_dim=4).posterior.projection.out_features
        14
    """
    return conv_model(
        FullCovarianceGaussianPosterior,
        StandardNormal,
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        norm="batch",
        latent="vector",
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Ghosh et al., From Variational to Deterministic Autoencoders (2020)",
    equation="-log p(x|z) + λ ‖z‖²/2, z = f(x), λ = 0.01",
    purpose="reconstruction only: no noise, no prior",
    losses={"nll": {}, "norm": {"weight": 0.01}},
)
def autoencoder(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] | None = 28,
    latent_dim: int = 32,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    latent: Literal["vector", "spatial"] = "vector",
    likelihood: str | Likelihood = "gaussian_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a plain autoencoder: no noise, no prior; the ``norm`` loss makes it a regularised one (Ghosh et al., 2020).

    Args:
        in_channels: image channels.
        image_size: edge length or size, as for ``conv_vae``.
        latent_dim: channels of z.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        latent: "vector" or "spatial".
        likelihood: name or object; Gaussian with scale 1 by default: half the squared error.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> autoencoder().prior is None
        True
    """
    return conv_model(
        PointMassPosterior,
        lambda: None,
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        norm="batch",
        latent=latent,
        likelihood=likelihood,
        value_range=value_range,
    )


def _coded(
    make_posterior: Callable[[int, int, int], PosteriorHead],
    *,
    in_channels: int,
    image_size: int | Sequence[int] | None,
    latent_dim: int,
    channels: Sequence[int],
    dim: int,
    likelihood: str | Likelihood,
    value_range: Sequence[float] | None,
) -> VAE:
    """Return the autoencoder that the quantised recipes share: a spatial latent, group normalisation, no prior."""
    return conv_model(
        make_posterior,
        lambda: None,
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        norm="group",
        latent="spatial",
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="van den Oord et al., Neural Discrete Representation Learning (2017)",
    equation="-log p(x|e_k) + β ‖z - sg[e_k]‖², k = argmin ‖z - e_k‖, codes by moving average, β = 0.25",
    purpose="discrete tokens for an autoregressive prior",
    losses={"nll": {}, "commitment": {"weight": 0.25}},
    training={"learning_rate": 2e-4},
)
def vq_vae(
    *,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = 32,
    latent_dim: int = 64,
    channels: Sequence[int] = (128, 256),
    dim: int = 2,
    num_codes: int = 512,
    decay: float = 0.99,
    revive_below: float = 0.05,
    likelihood: str | Likelihood = "gaussian_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VQ-VAE (van den Oord et al., Neural Discrete Representation Learning, 2017).

    The paper's 512 codes of 64 channels at an eighth of the pixels' number, moving averages with decay 0.99. The loss
    ``commitment`` belongs to it, with weight 0.25.

    Args:
        in_channels: image channels.
        image_size: size of the training images; any size goes through.
        latent_dim: channels of a code.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        num_codes: size of a codebook.
        decay: of the codebook's moving averages.
        revive_below: part of the average use below which a code is replaced.
        likelihood: name or object; Gaussian with scale 1 by default: half the squared error.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> vq_vae(num_codes=16, channels=(8, 16)).posterior.num_codes
        16
    """
    return _coded(
        lambda features, width, axes: VQPosterior(
            features, width, axes, num_codes=num_codes, decay=decay, revive_below=revive_below
        ),
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Lee et al., Autoregressive Image Generation using Residual Quantization (2022)",
    equation="-log p(x|Σ_q e_q) + β Σ_q ‖z - sg[e_1 + … + e_q]‖², β = 0.25",
    purpose="finer discrete tokens than one codebook can hold",
    losses={"nll": {}, "commitment": {"weight": 0.25}},
    training={"learning_rate": 2e-4},
)
def residual_vq_vae(
    *,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = 32,
    latent_dim: int = 64,
    channels: Sequence[int] = (128, 256),
    dim: int = 2,
    num_codes: int = 512,
    num_books: int = 4,
    decay: float = 0.99,
    revive_below: float = 0.05,
    likelihood: str | Likelihood = "gaussian_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VQ-VAE with residual codebooks (Zeghidour et al., SoundStream, 2021; Lee et al., RQ-VAE, 2022).

    Each codebook quantises what the ones before left over, so that Q books of M codes say what one of M**Q would. The loss
    ``commitment`` belongs to it, with weight 0.25.

    Args:
        in_channels: image channels.
        image_size: size of the training images; any size goes through.
        latent_dim: channels of a code.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        num_codes: size of each codebook.
        num_books: codebooks Q, >= 1.
        decay: of the codebook's moving averages.
        revive_below: part of the average use below which a code is replaced.
        likelihood: name or object; Gaussian with scale 1 by default: half the squared error.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> import torch
        >>> residual_vq_vae(num_codes=16, num_books=2, channels=(8, 16)).encode(torch.zeros(1, 3, 32, 32)).indices.shape
        torch.Size([1, 8, 8, 2])
    """
    return _coded(
        lambda features, width, axes: VQPosterior(
            features, width, axes, num_codes=num_codes, num_books=num_books, decay=decay, revive_below=revive_below
        ),
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple (2023)",
    equation="-log p(x|round(f(z)))",
    purpose="discrete tokens without a codebook, hence without its collapse",
    losses={"nll": {}},
    training={"learning_rate": 2e-4},
)
def fsq_vae(
    *,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = 32,
    levels: Sequence[int] = (8, 5, 5, 5),
    channels: Sequence[int] = (128, 256),
    dim: int = 2,
    likelihood: str | Likelihood = "gaussian_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return an autoencoder with finite scalar quantisation (Mentzer et al., Finite Scalar Quantization, 2023).

    Args:
        in_channels: image channels.
        image_size: size of the training images; any size goes through.
        levels: levels of each channel of z; by default the paper's for about 2**10 codes.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object; Gaussian with scale 1 by default: half the squared error.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> fsq_vae(channels=(8, 16)).posterior.num_codes
        1000
    """
    return _coded(
        lambda features, _, axes: FSQPosterior(features, tuple(levels), axes),
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=len(levels),
        channels=channels,
        dim=dim,
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Yu et al., Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (2024)",
    equation="-log p(x|sign z) + β ‖z - sg[sign z]‖² + λ (E[H(code|z)] - H(E[code])), β = 0.25, λ = 0.1",
    purpose="very large vocabularies: bits instead of a codebook",
    losses={"nll": {}, "commitment": {"weight": 0.25}, "entropy": {"weight": 0.1}},
    training={"learning_rate": 2e-4},
)
def lfq_vae(
    *,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = 32,
    latent_dim: int = 10,
    channels: Sequence[int] = (128, 256),
    dim: int = 2,
    likelihood: str | Likelihood = "gaussian_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return an autoencoder with lookup-free codes (Yu et al., Language Model Beats Diffusion, 2024).

    The losses ``commitment`` and ``entropy`` belong to it, with the weights 0.25 and 0.1.

    Args:
        in_channels: image channels.
        image_size: size of the training images; any size goes through.
        latent_dim: bits of a code.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object; Gaussian with scale 1 by default: half the squared error.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> lfq_vae(channels=(8, 16)).posterior.num_codes
        1024
    """
    return _coded(
        LFQPosterior,
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        likelihood=likelihood,
        value_range=value_range,
    )
