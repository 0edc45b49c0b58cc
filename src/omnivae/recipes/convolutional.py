"""Convolutional VAEs (the plain stack, beta-VAE, the KL autoencoder of latent diffusion) and the Swin baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from omnivae.component import suggestion
from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.conditioning import Conditioning
from omnivae.networks.conv import ConvDecoder, ConvEncoder, ConvNorm
from omnivae.networks.kl import KLDecoder, KLEncoder
from omnivae.networks.swin import SwinDecoder, SwinEncoder
from omnivae.posteriors import GaussianPosterior, PosteriorHead
from omnivae.priors import Prior, StandardNormal
from omnivae.recipes.common import image_shape, likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member

#: variant -> (depths, dims) on each side, f16; sizes within 3 % of TransVAE's.
SWIN_VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((2, 2, 6), (128, 256, 512)),
    "base": ((2, 2, 22), (128, 256, 512)),
    "large": ((2, 4, 20), (256, 512, 1024)),
    "huge": ((2, 2, 22), (384, 768, 1536)),
    "giant": ((2, 2, 22), (512, 1024, 2048)),
}


def conv_model(
    make_posterior: Callable[[int, int, int], PosteriorHead],
    make_prior: Callable[[], Prior | None],
    *,
    in_channels: int,
    image_size: int | Sequence[int] | None,
    latent_dim: int,
    channels: Sequence[int],
    dim: int,
    norm: ConvNorm,
    latent: Literal["vector", "spatial"],
    likelihood: str | Likelihood,
    value_range: Sequence[float] | None,
    cond_dim: int | None = None,
    conditioning: Conditioning = "concat",
) -> VAE:
    """Return the convolutional stack of :func:`conv_vae` around any posterior and prior.

    Args:
        make_posterior: from the encoder's channels, the latent's channels and its number of spatial axes to a head.
        make_prior: builds the prior; returns ``None`` where there is none.
        in_channels: as for :func:`conv_vae`, like everything below.
        image_size: edge length or size.
        latent_dim: channels of z.
        channels: output channels of each encoder stage.
        dim: number of spatial axes of the images.
        norm: "batch", "group" or "none".
        latent: "vector" or "spatial".
        likelihood: name or object.
        value_range: lowest and highest pixel value.
        cond_dim: size E of the condition, or ``None`` for a model without one.
        conditioning: how the networks take it, see :mod:`omnivae.networks.conditioning`.

    Returns:
        The model.
    """
    if latent not in ("vector", "spatial"):
        raise ValueError(f"got latent={latent!r}; expected 'vector' or 'spatial'")
    if latent == "vector" and image_size is None:
        raise ValueError("got image_size=None with a vector latent; give the size, or set latent='spatial'")
    size = None if image_size is None else image_shape(image_size, dim)
    canvas = size if latent == "vector" else None
    head, value_range = likelihood_and_range(likelihood, value_range)
    shared: dict[str, Any] = {"norm": norm, "image_size": canvas, "cond_dim": cond_dim, "conditioning": conditioning}
    encoder = ConvEncoder(in_channels, channels, dim, **shared)
    posterior = make_posterior(encoder.out_channels, latent_dim, dim if canvas is None else 0)
    num_parameters = head.num_parameters(in_channels)
    decoder = ConvDecoder(latent_dim, num_parameters, tuple(channels)[::-1], dim=dim, **shared)
    model = VAE(encoder, posterior, decoder, head, make_prior(), value_range=value_range, image_size=canvas)
    if size is not None and canvas is None:
        model.statistics = {"image_size": list(size)}
    return model


@member(
    paper="Kingma & Welling, Auto-Encoding Variational Bayes (2013)",
    equation="-E_q[log p(x|z)] + KL(q(z|x) ‖ N(0, I))",
    purpose="small images, signals and volumes; the one to start with",
)
def conv_vae(
    *,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = 64,
    latent_dim: int = 32,
    channels: Sequence[int] = (32, 64, 128),
    dim: int = 2,
    norm: ConvNorm = "batch",
    latent: Literal["vector", "spatial"] = "vector",
    likelihood: str | Likelihood = "gaussian",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE of 4-wide, stride-2 convolutions (Kingma & Welling 2013; the stack of Radford et al., DCGAN, 2015).

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas that a vector latent describes. A spatial latent takes any size;
            this is the one that :meth:`VAE.sample` draws unless told.
        latent_dim: channels of z.
        channels: output channels of each encoder stage; the decoder mirrors them.
        dim: number of spatial axes, 1 to 3.
        norm: "batch", "group" or "none".
        latent: "vector" for z ``[B, latent_dim]``, "spatial" for ``[B, latent_dim, *(S / stride)]``.
        likelihood: name (see ``recipes.common.LIKELIHOODS``) or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown latent or likelihood, or a vector latent without a size.

    Example:
        >>> conv_vae(in_channels=1, image_size=28, latent_dim=8, likelihood="bernoulli").value_range
        (0.0, 1.0)
    """
    return conv_model(
        GaussianPosterior,
        StandardNormal,
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        norm=norm,
        latent=latent,
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Higgins et al., beta-VAE: Learning Basic Visual Concepts (2017)",
    equation="-E_q[log p(x|z)] + β KL(q(z|x) ‖ N(0, I)), β = 4",
    purpose="latent dimensions that vary one thing each, at the price of sharpness",
    losses={"nll": {}, "kl": {"weight": 4.0}},
    training={"batch_size": 64, "learning_rate": 5e-4},
)
def beta_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 64,
    latent_dim: int = 10,
    channels: Sequence[int] = (32, 32, 64, 64),
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return beta-VAE's convolutional network (Higgins et al., beta-VAE, 2017); beta is the KL loss's weight.

    Args:
        in_channels: image channels; 1 for dSprites.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage; no normalisation, as in the paper's appendix.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> beta_vae().encoder.stride
        16
    """
    return conv_vae(
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        norm="none",
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models (2022)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)), β = 1e-6",
    purpose="the tokenizer of Stable Diffusion, also in 1-D and 3-D",
    losses=RECONSTRUCTION,
)
def kl_autoencoder(
    *,
    in_channels: int = 3,
    latent_dim: int = 4,
    channels: Sequence[int] = (128, 256, 512, 512),
    num_res_blocks: int = 2,
    dim: int = 2,
    num_groups: int = 32,
    mid_attention: bool = True,
    attention_levels: Sequence[bool] | None = None,
    input_resolution: int | Sequence[int] = 256,
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return the KL autoencoder of latent diffusion, by default Stable Diffusion's: f8, 83,653,863 parameters.

    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022.

    Args:
        in_channels: image channels.
        latent_dim: channels of z.
        channels: width of each encoder stage, shallowest first; the decoder mirrors them.
        num_res_blocks: residual blocks of each encoder stage; the decoder has one more.
        dim: number of spatial axes, 1 to 3.
        num_groups: groups of each group normalisation; divides every width.
        mid_attention: whether the middle has attention between all positions (costs the square of their number).
        attention_levels: for each stage, shallowest first, whether attention follows each block, as in the paper's f16 and
            f32; nowhere by default.
        input_resolution: size that :meth:`VAE.sample` draws unless told; the model runs at any size.
        likelihood: name or object; Laplace with scale 1 by default, whose NLL is the L1 loss up to a constant.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> kl_autoencoder(channels=(8, 16), num_res_blocks=1, num_groups=4).encoder.stride
        2
    """
    head, value_range = likelihood_and_range(likelihood, value_range)
    shared: dict[str, Any] = {
        "num_res_blocks": num_res_blocks,
        "dim": dim,
        "num_groups": num_groups,
        "mid_attention": mid_attention,
    }
    back = None if attention_levels is None else tuple(attention_levels)[::-1]
    encoder = KLEncoder(in_channels, 2 * latent_dim, channels, attention_levels=attention_levels, **shared)
    decoder = KLDecoder(
        latent_dim, head.num_parameters(in_channels), tuple(channels)[::-1], attention_levels=back, **shared
    )
    posterior = GaussianPosterior(2 * latent_dim, latent_dim, dim)
    model = VAE(encoder, posterior, decoder, head, StandardNormal(), value_range=value_range)
    model.statistics = {"image_size": list(image_shape(input_resolution, dim))}
    return model


@member(
    paper="Liu et al., Swin Transformer (2021); the baseline of TransVAE's size",
    equation="TransVAE's objective; attention within shifted windows",
    purpose="to see what global attention is worth",
    losses=RECONSTRUCTION,
)
def swin_vae(
    variant: str = "tiny",
    *,
    in_channels: int = 3,
    latent_dim: int = 32,
    depths: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    window_size: int = 8,
    head_dim: int = 32,
    patch_size: int = 4,
    input_resolution: int | Sequence[int] = 256,
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return the shifted-window baseline of TransVAE's size, f16 (Liu et al., Swin Transformer, 2021).

    Args:
        variant: "tiny", "base", "large", "huge" or "giant".
        in_channels: image channels.
        latent_dim: channels of z.
        depths: blocks of each encoder stage, instead of the variant's; the decoder mirrors them.
        dims: width of each encoder stage, instead of the variant's.
        window_size: edge of an attention window in positions; 8 divides every grid of a 256x256 image.
        head_dim: channels of an attention head.
        patch_size: edge of a patch in pixels.
        input_resolution: size that :meth:`VAE.sample` draws unless told; the model runs at any size.
        likelihood: name or object; Laplace with scale 1 by default.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown variant; lists the known ones.

    Example:
        >>> swin_vae(depths=(1, 1), dims=(32, 64)).encoder.stride
        8
    """
    if variant not in SWIN_VARIANTS:
        known = ", ".join(SWIN_VARIANTS)
        raise ValueError(f"unknown variant {variant!r}{suggestion(variant, SWIN_VARIANTS)}; expected one of {known}")
    depths, dims = tuple(depths or SWIN_VARIANTS[variant][0]), tuple(dims or SWIN_VARIANTS[variant][1])
    head, value_range = likelihood_and_range(likelihood, value_range)
    shared: dict[str, Any] = {"window_size": window_size, "head_dim": head_dim, "patch_size": patch_size}
    encoder = SwinEncoder(in_channels, dims, depths, **shared)
    decoder = SwinDecoder(latent_dim, head.num_parameters(in_channels), dims[::-1], depths[::-1], **shared)
    posterior = GaussianPosterior(dims[-1], latent_dim)
    model = VAE(encoder, posterior, decoder, head, StandardNormal(), value_range=value_range)
    model.statistics = {"image_size": list(image_shape(input_resolution, 2))}
    return model
