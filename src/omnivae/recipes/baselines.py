"""CNN-VAE and ViT-VAE: TransVAE's own networks with one kind of block, at TransVAE's size.

The CNN keeps TransVAE's stages and widths and makes every block convolutional; the ViT has one stage behind 16x16 patches,
a plain feed-forward network of ratio 4 and learned absolute positions (Dosovitskiy et al., An Image is Worth 16x16 Words,
2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnivae.component import suggestion
from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.transvae import TransVAEDecoder, TransVAEEncoder
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member

#: variant -> (depths, base_dims); sizes within 2 % of TransVAE's.
CNN_VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((3, 3, 4, 3, 2), (128, 128, 256, 256, 512)),
    "base": ((3, 3, 4, 4, 2), (128, 128, 256, 512, 1024)),
    "large": ((3, 3, 3, 3, 5), (192, 192, 384, 768, 1536)),
    "huge": ((3, 3, 3, 4, 7), (256, 256, 512, 1024, 2048)),
    "giant": ((3, 3, 3, 5, 8), (320, 320, 640, 1280, 2560)),
}

#: variant -> (number of blocks, width) on each side; sizes within 4 % of TransVAE's.
VIT_VARIANTS: dict[str, tuple[int, int]] = {
    "tiny": (7, 512),
    "base": (10, 768),
    "large": (14, 1280),
    "huge": (23, 1536),
    "giant": (30, 1792),
}


@member(
    paper="A Hybrid Paradigm for Vision Autoencoders: Unifying CNNs and Transformers (2025), its baseline",
    equation="TransVAE's objective; every block is a convolution",
    purpose="a tokenizer without attention: fastest for each step",
    losses=RECONSTRUCTION,
)
def cnn_vae(
    variant: str = "tiny",
    *,
    latent_dim: int = 32,
    in_channels: int = 3,
    depths: Sequence[int] | None = None,
    base_dims: Sequence[int] | None = None,
    input_resolution: int = 256,
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Build the convolutional baseline of TransVAE's size, f16.

    Args:
        variant: "tiny", "base", "large", "huge" or "giant".
        latent_dim: channels of z.
        in_channels: image channels.
        depths: blocks of each stage, instead of the variant's.
        base_dims: width of each stage, instead of the variant's.
        input_resolution: image size that it is trained for; it runs at any size.
        likelihood: p(x|z), a name or an object; Laplace with scale 1 by default.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.
    """
    own_depths, own_dims = _look_up(variant, CNN_VARIANTS)
    depths, dims = depths or own_depths, base_dims or own_dims
    pixels, value_range = likelihood_and_range(likelihood, value_range)
    stages = len(depths)
    encoder = TransVAEEncoder(in_channels, dims, depths, num_conv_stages=stages)
    decoder = TransVAEDecoder(latent_dim, pixels.num_parameters(in_channels), dims, depths, num_conv_stages=stages)
    head = GaussianPosterior(dims[-1], latent_dim, kernel_size=3)
    model = VAE(encoder, head, decoder, pixels, StandardNormal(), value_range=value_range)
    model.statistics = {"image_size": [input_resolution, input_resolution]}
    return model


@member(
    paper="Dosovitskiy et al., An Image is Worth 16x16 Words (2021); the baseline of TransVAE's size",
    equation="TransVAE's objective; patches and plain transformer blocks",
    purpose="to see what convolution is worth",
    losses=RECONSTRUCTION,
)
def vit_vae(
    variant: str = "tiny",
    *,
    latent_dim: int = 32,
    in_channels: int = 3,
    depth: int | None = None,
    width: int | None = None,
    head_dim: int = 64,
    input_resolution: int = 256,
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Build the transformer baseline of TransVAE's size: 16x16 patches, one stage, f16.

    Args:
        variant: "tiny", "base", "large", "huge" or "giant".
        latent_dim: channels of z.
        in_channels: image channels.
        depth: number of blocks on each side, instead of the variant's.
        width: their channels, instead of the variant's.
        head_dim: channels of an attention head.
        input_resolution: image size that the position table is made for.
        likelihood: p(x|z), a name or an object; Laplace with scale 1 by default.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.
    """
    own_depth, own_width = _look_up(variant, VIT_VARIANTS)
    depth, width = depth or own_depth, width or own_width
    pixels, value_range = likelihood_and_range(likelihood, value_range)
    shared: dict[str, Any] = {"mlp_ratio": 4.0, "head_dim": head_dim, "use_rope": False, "use_absolute_positions": True}
    shared |= {"ffn": "standard", "norm": "layer", "input_resolution": input_resolution}
    encoder = TransVAEEncoder(in_channels, (width,), (depth,), **shared)
    decoder = TransVAEDecoder(latent_dim, pixels.num_parameters(in_channels), (width,), (depth,), **shared)
    head = GaussianPosterior(width, latent_dim)
    model = VAE(encoder, head, decoder, pixels, StandardNormal(), value_range=value_range)
    model.statistics = {"image_size": [input_resolution, input_resolution]}
    return model


def _look_up(variant: str, table: dict) -> tuple:
    if variant not in table:
        raise ValueError(f"unknown variant {variant!r}{suggestion(variant, table)}; expected one of {', '.join(table)}")
    return table[variant]
