"""Autoencoders whose networks diffusers computes (``pip install omnivae[diffusion]``): CogVideoX's of video, and DC-AE.

Their published weights go on training here: ``omnivae inspect-checkpoint`` converts them and proposes these recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.diffusers_cogvideox import CogVideoXDecoder, CogVideoXEncoder
from omnivae.networks.diffusers_dc import BlockType, DCDecoder, DCEncoder
from omnivae.posteriors import PointMassPosterior, SplitPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import likelihood_and_range
from omnivae.recipes.family import RECONSTRUCTION, member


@member(
    paper="Yang et al., CogVideoX: Text-to-Video Diffusion Models with an Expert Transformer (2024)",
    equation="|x - x̂| + β KL(q(z|x) ‖ N(0, I)), β = 1e-6; convolutions that see no later frame",
    purpose="to go on with CogVideoX's weights: colour video, four frames to one, the plane at an eighth",
    losses=RECONSTRUCTION,
)
def cogvideox_vae(
    *,
    in_channels: int = 3,
    out_channels: int | None = None,
    latent_dim: int = 16,
    channels: Sequence[int] = (128, 256, 256, 512),
    num_res_blocks: int = 3,
    time_stride: int = 4,
    num_groups: int = 32,
    eps: float = 1e-6,
    activation: str = "silu",
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return CogVideoX's autoencoder of video, by default as released: 215,583,907 parameters (Yang et al., CogVideoX, 2024).

    Args:
        in_channels: channels of a frame.
        out_channels: channels of the reconstruction; ``in_channels`` by default.
        latent_dim: channels of z.
        channels: width of each stage, shallowest first; the decoder mirrors them. The spatial stride is
            ``2 ** (len(channels) - 1)``.
        num_res_blocks: residual blocks of each encoder stage; the decoder has one more.
        time_stride: frames that become one, a power of two.
        num_groups: groups of each group normalisation; divides every width.
        eps: added to each variance.
        activation: as diffusers names it.
        likelihood: name or object; Laplace with scale 1 by default, whose NLL is the L1 loss up to a constant.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ImportError: where diffusers is not installed.

    Example:
        >>> cogvideox_vae(channels=(8, 8, 8, 8), num_res_blocks=1, num_groups=4).encoder.stride
        (4, 8, 8)
    """
    head, value_range = likelihood_and_range(likelihood, value_range)
    shared: dict[str, Any] = {"num_res_blocks": num_res_blocks, "time_stride": time_stride}
    shared |= {"num_groups": num_groups, "eps": eps, "activation": activation}
    made = head.num_parameters(in_channels if out_channels is None else out_channels)
    encoder = CogVideoXEncoder(in_channels, latent_dim, channels, **shared)
    decoder = CogVideoXDecoder(latent_dim, made, tuple(channels)[::-1], **shared)
    return VAE(encoder, SplitPosterior(latent_dim), decoder, head, StandardNormal(), value_range=value_range)


@member(
    paper="Chen et al., Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models (DC-AE, 2024)",
    equation="|x - x̂|, z = f(x); resampling learns what a shortcut from pixels to channels leaves",
    purpose="to go on with DC-AE's and SANA's weights: photographs at a 32nd to a 128th of each edge; no noise, no prior",
    losses={"l1": {"per_element": True}},
)
def dc_ae(
    *,
    in_channels: int = 3,
    latent_dim: int = 32,
    channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024),
    num_blocks: Sequence[int] = (0, 4, 8, 2, 2, 2),
    block_types: Sequence[BlockType] | None = None,
    multiscales: Sequence[Sequence[int]] | None = None,
    decoder_channels: Sequence[int] | None = None,
    decoder_num_blocks: Sequence[int] = (0, 5, 10, 2, 2, 2),
    decoder_block_types: Sequence[BlockType] | None = None,
    decoder_multiscales: Sequence[Sequence[int]] | None = None,
    norms: Sequence[Literal["rms_norm", "batch_norm"]] | None = None,
    activations: Sequence[str] | None = None,
    head_dim: int = 32,
    downsample: Literal["pixel_unshuffle", "conv"] = "pixel_unshuffle",
    upsample: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle",
    out_shortcut: bool = True,
    in_shortcut: bool = True,
    last_activation: str = "relu",
    likelihood: str | Likelihood = "laplace_fixed",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return the deep compression autoencoder, by default ``dc-ae-f32c32-in-1.0`` (Chen et al., DC-AE, 2024).

    ``dc-ae-f64c128-in-1.0`` is ``latent_dim=128`` with one more stage of 2048 channels and 2 blocks in both halves,
    ``dc-ae-f128c512-in-1.0`` is ``latent_dim=512`` with two.

    Args:
        in_channels: image channels.
        latent_dim: channels of z.
        channels: width of each stage, shallowest first; the stride is ``2 ** (len(channels) - 1)``.
        num_blocks: blocks of each stage; without blocks in the first, the image is halved on its way in.
        block_types: kind of block of each stage; residual in the first three and attention after them by default.
        multiscales: for each stage, the kernels of the further scales that its attention sees; none by default.
        decoder_channels: as ``channels``, for the decoder, shallowest first too; the same by default.
        decoder_num_blocks: blocks of each stage of the decoder.
        decoder_block_types: as ``block_types``, for the decoder; the same by default.
        decoder_multiscales: as ``multiscales``, for the decoder; the same by default.
        norms: normalisation of each stage of the decoder; of batches in the first three, RMS after them by default.
        activations: of each stage of the decoder; ReLU where the norm is of batches and SiLU elsewhere by default.
        head_dim: width of each head of attention.
        downsample: "pixel_unshuffle" (pixels become channels) or "conv" (stride 2).
        upsample: "pixel_shuffle" (channels become pixels) or "interpolate" (repetition).
        out_shortcut: whether the last features, averaged in groups, are added to the latent.
        in_shortcut: whether the latent, repeated, is added to the decoder's first features.
        last_activation: activation before the last convolution.
        likelihood: name or object; Laplace with scale 1 by default, whose NLL is the L1 loss up to a constant.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Raises:
        ImportError: where diffusers is not installed.
        ValueError: for stages that do not agree.

    Example:
        >>> dc_ae(latent_dim=4, channels=(8, 8, 8), num_blocks=(0, 1, 1), decoder_num_blocks=(0, 1, 1)).encoder.stride
        4
    """
    head, value_range = likelihood_and_range(likelihood, value_range)
    back = tuple(decoder_channels or channels)
    kinds = tuple(block_types or ("ResBlock" if i < 3 else "EfficientViTBlock" for i in range(len(channels))))
    scales = tuple(multiscales or ((),) * len(channels))
    kept = tuple(norms or ("batch_norm" if i < 3 else "rms_norm" for i in range(len(back))))
    inward: dict[str, Any] = {"block_types": kinds, "multiscales": scales, "head_dim": head_dim}
    outward = inward | {"block_types": tuple(decoder_block_types or kinds), "norms": kept}
    outward |= {"multiscales": tuple(decoder_multiscales or scales), "upsample": upsample, "in_shortcut": in_shortcut}
    outward |= {"activations": activations or tuple("relu" if n == "batch_norm" else "silu" for n in kept)}
    inward |= {"downsample": downsample, "out_shortcut": out_shortcut}
    outward |= {"last_activation": last_activation}
    encoder = DCEncoder(in_channels, latent_dim, channels, num_blocks, **inward)
    decoder = DCDecoder(latent_dim, head.num_parameters(in_channels), back, decoder_num_blocks, **outward)
    return VAE(encoder, PointMassPosterior(latent_dim, latent_dim), decoder, head, None, value_range=value_range)
