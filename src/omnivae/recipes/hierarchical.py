"""VAEs with several latents (two levels, the ladder, deep groups), and LiteVAE's wavelet encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE, HierarchicalVAE
from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.networks.deep import Block, DeepDecoder, DeepEncoder
from omnivae.networks.kl import KLDecoder
from omnivae.networks.ladder import LadderDecoder, LadderEncoder, LadderNorm
from omnivae.networks.mlp import MLPDecoder, MLPEncoder
from omnivae.networks.wavelet import WaveletEncoder
from omnivae.posteriors import GaussianPosterior, LevelPosterior
from omnivae.posteriors.level import Relation
from omnivae.priors import StandardNormal
from omnivae.recipes.common import image_shape, likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member


def _ladder(
    stem: Any,
    head: Any,
    *,
    latent_dims: Sequence[int],
    widths: Sequence[int],
    relation: Relation,
    norm: LadderNorm,
    skip: bool,
    top_down: bool,
    likelihood: Likelihood,
    value_range: Sequence[float],
    image_size: Sequence[int],
) -> HierarchicalVAE:
    encoder = LadderEncoder(stem, widths[-2::-1], norm=norm)
    decoder = LadderDecoder(head, latent_dims, encoder.level_features, widths, norm=norm, skip=skip, top_down=top_down)
    posterior = LevelPosterior(sum(latent_dims), relation)
    return HierarchicalVAE(encoder, posterior, decoder, likelihood, value_range=value_range, image_size=image_size)


@member(
    paper="Rezende et al., Stochastic Backpropagation and Approximate Inference in Deep Generative Models (2014)",
    equation="-E_q[log p(x|z1, z2)] + KL(q(z2|x) ‖ p(z2)) + E_q(z2|x) KL(q(z1|x, z2) ‖ p(z1|z2))",
    purpose="coarse properties above, details below; the smallest hierarchy",
)
def hierarchical_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dims: Sequence[int] = (8, 32),
    widths: Sequence[int] = (128, 256),
    channels: Sequence[int] = (32, 64),
    inference: Literal["top_down", "independent"] = "top_down",
    dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> HierarchicalVAE:
    """Return a VAE of two levels, ``p(z2) p(z1|z2) p(x|z1, z2)``, around the convolutional stack of ``conv_vae``.

    Inference is ``q(z2|x) q(z1|x, z2)`` ("top_down", Sønderby et al., Ladder Variational Autoencoders, 2016, in its order) or
    ``q(z2|x) q(z1|x)`` ("independent"); in both the KL of a level is in closed form given the level above.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dims: size of z at each level, the top one (z2) first; more than two levels are as good.
        widths: hidden units of each level, the top one first.
        channels: output channels of each stage of the convolutional stack.
        inference: "top_down" or "independent".
        dim: number of spatial axes, 1 to 3.
        likelihood: name (see ``recipes.common.LIKELIHOODS``) or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown inference or lists of different lengths.

    Example:
        >>> hierarchical_vae(latent_dims=(4, 16)).num_levels
        2
    """
    if inference not in ("top_down", "independent"):
        raise ValueError(f"got inference={inference!r}; expected 'top_down' or 'independent'")
    size = image_shape(image_size, dim)
    made, value_range = likelihood_and_range(likelihood, value_range)
    return _ladder(
        ConvEncoder(in_channels, channels, dim, image_size=size),
        ConvDecoder(widths[-1], made.num_parameters(in_channels), channels[::-1], dim=dim, image_size=size),
        latent_dims=latent_dims,
        widths=widths,
        relation="absolute",
        norm="batch",
        skip=True,
        top_down=inference == "top_down",
        likelihood=made,
        value_range=value_range,
        image_size=size,
    )


@member(
    paper="Sønderby et al., Ladder Variational Autoencoders (2016)",
    equation="prod_l p(z_l|z_l+1) p(x|z1), q(z_l|·) ∝ q̂(z_l|x) p(z_l|z_l+1): precisions add",
    purpose="more than two levels of vectors that stay in use; warm-up of the KL and batch normalisation",
    losses={"nll": {}, "kl": {"weight": {"component": "LinearSchedule", "length": 47000}}},
    data={"binarize": "stochastic"},
    training={"batch_size": 256, "learning_rate": 1e-3},
)
def ladder_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dims: Sequence[int] = (4, 8, 16, 32, 64),
    widths: Sequence[int] = (32, 64, 128, 256, 512),
    norm: LadderNorm = "batch",
    dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> HierarchicalVAE:
    """Return the ladder VAE of the paper's MNIST experiment: five levels, fully connected, batch-normalised.

    Sønderby et al., Ladder Variational Autoencoders, 2016. A deterministic pass upwards gives each level a Gaussian q̂ of the
    image alone; on the way down it is multiplied with the prior given the level above. Log-variances are bounded smoothly
    where the paper takes a softplus of the variance.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dims: size of z at each level, the top one first.
        widths: hidden units of each level, the top one first.
        norm: "batch" or "none".
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ValueError: for lists of different lengths.

    Example:
        >>> ladder_vae().decoder.level_channels
        (4, 8, 16, 32, 64)
    """
    size = image_shape(image_size, dim)
    made, value_range = likelihood_and_range(likelihood, value_range)
    hidden, parameters = (widths[-1], widths[-1]), made.num_parameters(in_channels)
    return _ladder(
        MLPEncoder(in_channels, size, hidden, activation="leaky_relu", norm=norm),
        MLPDecoder(widths[-1], parameters, size, hidden[:1], activation="leaky_relu", norm=norm),
        latent_dims=latent_dims,
        widths=widths,
        relation="merge",
        norm=norm,
        skip=False,
        top_down=False,
        likelihood=made,
        value_range=value_range,
        image_size=size,
    )


@member(
    paper="Vahdat & Kautz, NVAE (2020); Child, Very Deep VAEs (2021)",
    equation="p(z1) prod_l p(z_l|z_<l) p(x|z), q(z_l|x, z_<l) = N(m + Δm, s² Δs²) about the prior N(m, s²)",
    purpose="the best likelihood and samples of the family on natural images; slow",
    losses={"nll": {}, "kl": {"weight": {"component": "LinearSchedule", "length": 10000}}},
    training={"batch_size": 32, "learning_rate": 1e-3, "on_nonfinite": "skip"},
)
def deep_hierarchical_vae(
    *,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 32,
    channels: Sequence[int] = (64, 128, 128),
    num_groups: Sequence[int] = (0, 6, 4),
    latent_dim: int = 16,
    block: Block = "nvae",
    relation: Relation | None = None,
    dim: int = 2,
    likelihood: str | Likelihood = "discretized_logistic",
    value_range: Sequence[float] | None = None,
) -> HierarchicalVAE:
    """Return a deep top-down VAE: groups of spatial latents from a coarse grid to finer ones.

    Vahdat & Kautz, NVAE, 2020 (blocks "nvae", posterior relative to the prior), or Child, Very Deep VAEs, 2021 (blocks
    "vdvae", posterior "absolute"). The papers have 30 to 78 groups and days of GPUs; the default is sized for hours of one.

    Args:
        in_channels: image channels.
        image_size: size that :meth:`VAE.sample` draws unless told; the model runs at any size.
        channels: width at each resolution, that of the image first; the stride is ``2 ** (len(channels) - 1)``.
        num_groups: groups of latents at each resolution, that of the image first; 0 for none.
        latent_dim: channels of z in each group.
        block: "nvae" or "vdvae".
        relation: "residual", "absolute" or "merge"; the block's paper's by default.
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown block or relation, or lists of different lengths.

    Example:
        >>> deep_hierarchical_vae(channels=(8, 16), num_groups=(1, 2)).decoder.level_scales
        (1, 1, 2)
    """
    made, value_range = likelihood_and_range(likelihood, value_range)
    parameters = made.num_parameters(in_channels)
    encoder = DeepEncoder(in_channels, channels, num_groups, dim=dim, block=block)
    decoder = DeepDecoder(parameters, channels[::-1], num_groups[::-1], latent_dim=latent_dim, dim=dim, block=block)
    packed = latent_dim * sum(scale**dim for scale in decoder.level_scales)
    posterior = LevelPosterior(packed, relation or ("residual" if block == "nvae" else "absolute"))
    model = HierarchicalVAE(encoder, posterior, decoder, made, value_range=value_range)
    model.statistics = {"image_size": list(image_shape(image_size, dim))}
    return model


@member(
    paper="Sadat et al., LiteVAE: Lightweight and Efficient Variational Autoencoders for Latent Diffusion Models (2024)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)); the encoder reads three levels of a Haar transform",
    purpose="a tokenizer whose encoder is several times smaller than Stable Diffusion's",
    losses=RECONSTRUCTION,
)
def lite_vae(
    *,
    in_channels: int = 3,
    latent_dim: int = 4,
    encoder_channels: int = 32,
    encoder_multipliers: Sequence[int] = (1, 2, 3),
    channels: Sequence[int] = (128, 256, 512, 512),
    num_res_blocks: int = 2,
    dim: int = 2,
    num_groups: int = 32,
    mid_attention: bool = True,
    input_resolution: int | Sequence[int] = 256,
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return LiteVAE: a wavelet encoder with the decoder of ``kl_autoencoder``.

    Sadat et al., LiteVAE, 2024. For ``dim=3`` the same on volumes and video, the transform of Li et al., WF-VAE, 2024. The encoder
    has 6,088,960 parameters, that of ``kl_autoencoder`` 34,163,592 (counted, both at their defaults, f8 with 4 channels).

    Args:
        in_channels: image channels.
        latent_dim: channels of z.
        encoder_channels: base width of the encoder's U-Nets.
        encoder_multipliers: widths of their stages as multiples of it.
        channels: width of each decoder stage, shallowest first; one level of the transform a halving of the size.
        num_res_blocks: residual blocks of each stage on both sides; the decoder has one more.
        dim: number of spatial axes, 1 to 3.
        num_groups: groups of each group normalisation; divides every width.
        mid_attention: whether the decoder's middle has attention between all positions.
        input_resolution: size that :meth:`VAE.sample` draws unless told; the model runs at any size.
        likelihood: name or object; Laplace with scale 1 by default, whose NLL is the L1 loss up to a constant.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> lite_vae(encoder_channels=8, channels=(8, 16), num_res_blocks=1, num_groups=4).encoder.stride
        2
    """
    made, value_range = likelihood_and_range(likelihood, value_range)
    encoder = WaveletEncoder(
        in_channels,
        2 * latent_dim,
        num_levels=len(channels) - 1,
        channels=encoder_channels,
        multipliers=encoder_multipliers,
        num_res_blocks=num_res_blocks,
        dim=dim,
        num_groups=num_groups,
    )
    decoder = KLDecoder(
        latent_dim,
        made.num_parameters(in_channels),
        tuple(channels)[::-1],
        num_res_blocks=num_res_blocks,
        dim=dim,
        num_groups=num_groups,
        mid_attention=mid_attention,
    )
    posterior = GaussianPosterior(2 * latent_dim, latent_dim, dim)
    model = VAE(encoder, posterior, decoder, made, StandardNormal(), value_range=value_range)
    model.statistics = {"image_size": list(image_shape(input_resolution, dim))}
    return model
