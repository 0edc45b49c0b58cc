"""CogVideoX's causal autoencoder of video, computed by diffusers (Yang et al., CogVideoX, 2024).

A clip goes through in stretches of 8 frames, the first with what is left over, each with the last frames of the one before.
Normalisation sees one stretch at a time, so the stretches are part of the function and no matter of memory. Time is halved
by pairs; an odd number of frames keeps its first one alone. So 8k frames become 2k latents, 8k + 1 become 2k + 1, and back.
For other numbers diffusers returns more frames than it was given: they are padded to the next of these, and cropped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.layers import refuse_cond

#: Frames that are encoded at once, and latents that are decoded at once: diffusers' numbers, which the weights were made with.
FRAMES, LATENTS = 8, 2


def frames_for(frames: int, time_stride: int = 4) -> int:
    """Return how many frames a clip is padded to: the next number that comes back as it went.

    Args:
        frames: of the clip, at least 1.
        time_stride: frames that become one latent.

    Returns:
        1, or a multiple of 8 (of 16 for a stride of 8), or one more than that.

    Example:
        >>> [frames_for(n) for n in (1, 2, 8, 9, 10, 17, 49)]
        [1, 8, 8, 9, 16, 17, 49]
    """
    period = max(FRAMES, LATENTS * time_stride)
    return frames if frames % period == 1 else math.ceil(frames / period) * period


class CogVideoXEncoder(nn.Module, Component):
    """Clips to mean and log-variance; diffusers' ``CogVideoXEncoder3D``, which needs ``pip install omnivae[diffusion]``.

    Args:
        in_channels: channels of a frame.
        latent_dim: channels of z; the features are twice as many.
        channels: width of each stage, shallowest first; the spatial stride is ``2 ** (len(channels) - 1)``.
        num_res_blocks: residual blocks of each stage.
        time_stride: frames that become one latent, a power of two.
        num_groups: groups of each group normalisation.
        eps: added to each variance.
        activation: name of the activation, as diffusers knows it.

    Raises:
        ImportError: where diffusers is not installed.
        ValueError: for a time stride that the stages do not have.

    Example:
        >>> encoder = CogVideoXEncoder(3, 4, (8, 8, 8, 8), num_res_blocks=1, num_groups=4)
        >>> encoder.stride, encoder(torch.zeros(1, 3, 9, 16, 8)).shape
        ((4, 8, 8), torch.Size([1, 8, 3, 2, 1]))
    """

    dim = 3

    def __init__(
        self,
        in_channels: int = 3,
        latent_dim: int = 16,
        channels: Sequence[int] = (128, 256, 256, 512),
        *,
        num_res_blocks: int = 3,
        time_stride: int = 4,
        num_groups: int = 32,
        eps: float = 1e-6,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.stride = _strides(channels, time_stride)
        self.in_channels, self.out_channels = in_channels, 2 * latent_dim
        network: Any = _original().CogVideoXEncoder3D
        self.network = _checkpointable(
            network(
                in_channels=in_channels,
                out_channels=latent_dim,
                down_block_types=("CogVideoXDownBlock3D",) * len(channels),
                block_out_channels=tuple(channels),
                layers_per_block=num_res_blocks,
                act_fn=activation,
                norm_eps=eps,
                norm_num_groups=num_groups,
                temporal_compression_ratio=time_stride,
            )
        )

    def padded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size that a clip of ``size`` (frames, height, width) is padded to."""
        frames, *plane = size
        spatial = self.stride[1:]
        return (
            frames_for(frames, self.stride[0]),
            *(math.ceil(n / s) * s for n, s in zip(plane, spatial, strict=True)),
        )

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, T, H, W]``, of a size that :meth:`padded_size` returns.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, 2 * latent_dim, ceil(T / time_stride), H', W']``.

        Raises:
            ValueError: for a condition, or a size that does not fit.
        """
        refuse_cond(self, cond)
        size = tuple(x.shape[2:])
        padded = self.padded_size(size)
        if padded != size:
            period = max(FRAMES, LATENTS * self.stride[0])
            raise ValueError(
                f"got a clip of size {size}; expected 1 frame, a multiple of {period}, or one more than that, of multiples of "
                f"{self.stride[1]} pixels: pad it to {padded} (VAE.encode does)"
            )
        return _in_stretches(self.network, x, FRAMES)


class CogVideoXDecoder(nn.Module, Component):
    """Latents to clips; diffusers' ``CogVideoXDecoder3D``, which needs ``pip install omnivae[diffusion]``.

    An odd number of latents T becomes ``time_stride * (T - 1) + 1`` frames, an even one ``time_stride * T``.

    Args:
        latent_dim: channels of z.
        out_channels: channels of a frame; the likelihood says how many it needs.
        channels: width of each stage, deepest first.
        num_res_blocks: residual blocks of each stage of the encoder; each stage here has one more.
        time_stride: frames that one latent becomes, a power of two.
        num_groups: groups of each group normalisation.
        eps: added to each variance of the residual blocks without z; the others' is 1e-6.
        activation: name of the activation, as diffusers knows it.

    Raises:
        ImportError: where diffusers is not installed.
        ValueError: for a time stride that the stages do not have.

    Example:
        >>> decoder = CogVideoXDecoder(4, 3, (8, 8, 8, 8), num_res_blocks=1, num_groups=4)
        >>> decoder(torch.zeros(1, 4, 3, 2, 1)).shape
        torch.Size([1, 3, 9, 16, 8])
    """

    dim = 3

    def __init__(
        self,
        latent_dim: int = 16,
        out_channels: int = 3,
        channels: Sequence[int] = (512, 256, 256, 128),
        *,
        num_res_blocks: int = 3,
        time_stride: int = 4,
        num_groups: int = 32,
        eps: float = 1e-6,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.stride = _strides(channels, time_stride)
        self.in_channels, self.out_channels = latent_dim, out_channels
        network: Any = _original().CogVideoXDecoder3D
        self.network = _checkpointable(
            network(
                in_channels=latent_dim,
                out_channels=out_channels,
                up_block_types=("CogVideoXUpBlock3D",) * len(channels),
                block_out_channels=tuple(channels)[::-1],
                layers_per_block=num_res_blocks,
                act_fn=activation,
                norm_eps=eps,
                norm_num_groups=num_groups,
                temporal_compression_ratio=time_stride,
            )
        )

    def decoded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size (frames, height, width) that a latent of ``size`` is decoded to."""
        frames, *plane = size
        stride, *spatial = self.stride
        single = frames % LATENTS
        return (stride * (frames - single) + single, *(n * s for n, s in zip(plane, spatial, strict=True)))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim, T, H, W]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, T', H', W']``.

        Raises:
            ValueError: for a condition.
        """
        refuse_cond(self, cond)
        return _in_stretches(self.network, x, LATENTS)


def _in_stretches(network: Callable[..., Any], x: Tensor, length: int) -> Tensor:
    """Run a network over stretches of a clip, each after the frames that the one before it left in its cache."""
    frames = x.shape[2]
    # The first stretch takes what is left over: fewer than two stretches' worth.
    ends = range(length + frames % length, frames + 1, length) if frames >= length else [frames]
    start, cache, made = 0, None, []
    for end in ends:
        part, cache = network(x[:, :, start:end], conv_cache=cache)
        made.append(part)
        start = end
    return torch.cat(made, dim=2)


def _strides(channels: Sequence[int], time_stride: int) -> tuple[int, ...]:
    spatial = 2 ** (len(channels) - 1)
    if time_stride < 1 or time_stride & (time_stride - 1) or time_stride > spatial:
        raise ValueError(
            f"got time_stride={time_stride} for {len(channels)} stages; expected a power of two up to {spatial}"
        )
    return (time_stride, spatial, spatial)


def _original() -> Any:
    try:
        from diffusers.models.autoencoders import autoencoder_kl_cogvideox
    except ImportError as error:
        raise ImportError("CogVideoX's autoencoder is diffusers': pip install omnivae[diffusion]") from error
    return autoencoder_kl_cogvideox


def _checkpointable(network: nn.Module) -> nn.Module:
    """Give every part that can recompute its activations the function for it, which diffusers sets on whole models only."""
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            module._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
    return network
