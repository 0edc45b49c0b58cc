"""Dimension-generic layers: convolutions, normalisation, resampling in 0 to 3 spatial dimensions.

Shapes are ``[B, C, *S]``. Networks keep one memory layout from end to end (channels last pays on every device measured).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae.types import Network

NormKind = Literal["rms", "layer", "group", "batch", "none"]

#: Convolutions by number of spatial axes.
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def check_dim(dim: int) -> None:
    """Raise ``ValueError`` unless ``dim`` is 1, 2 or 3."""
    if dim not in (1, 2, 3):
        raise ValueError(f"got dim={dim}; expected 1, 2 or 3 spatial dimensions")


def convolution(
    dim: int, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1
) -> nn.Module:
    """Return a convolution that keeps the size (or divides it by ``stride``); a linear map where ``dim`` is 0.

    Args:
        dim: number of spatial axes, 0 to 3.
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: odd, or equal to ``stride`` (patches, no padding).
        stride: spatial stride.
        groups: as in torch; ``in_channels`` for a depthwise convolution.

    Returns:
        ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
    """
    if dim == 0:
        return nn.Linear(in_channels, out_channels)
    padding = 0 if kernel_size == stride else kernel_size // 2
    return CONV[dim](in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups)


class ChannelRMSNorm(nn.Module):
    """Divide by the root mean square over channels (Zhang & Sennrich, Root Mean Square Layer Normalization, 2019).

    Args:
        channels: size of axis 1.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Channels last, this is a view of contiguous memory and one fused kernel.
        y = x.movedim(1, -1)
        return F.rms_norm(y, (y.shape[-1],), self.weight.to(y.dtype), self.eps).movedim(-1, 1)


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over channels (Ba et al., Layer Normalization, 2016).

    Args:
        channels: size of axis 1.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        y = F.layer_norm(y, (y.shape[-1],), self.weight.to(y.dtype), self.bias.to(y.dtype), self.eps)
        return y.movedim(-1, 1)


def normalization(kind: NormKind, channels: int, *, dim: int = 2, num_groups: int = 32) -> nn.Module:
    """Return a normalisation layer for ``[B, C, *S]``.

    Args:
        kind: "rms", "layer", "group", "batch" or "none".
        channels: size of axis 1.
        dim: number of spatial axes (batch normalisation needs it).
        num_groups: for "group"; must divide ``channels``.

    Returns:
        A module.

    Raises:
        ValueError: for an unknown kind or groups that do not divide the channels.
    """
    if kind == "rms":
        return ChannelRMSNorm(channels)
    if kind == "layer":
        return ChannelLayerNorm(channels)
    if kind == "group":
        if channels % num_groups:
            raise ValueError(
                f"got {channels} channels and {num_groups} groups; expected groups that divide the channels"
            )
        return nn.GroupNorm(num_groups, channels, eps=1e-6)
    if kind == "batch":
        return _BATCH_NORM[dim](channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"got norm={kind!r}; expected 'rms', 'layer', 'group', 'batch' or 'none'")


def space_to_channels(x: Tensor, factor: int) -> Tensor:
    """Move each ``factor``^dim block of positions into channels: pixel-unshuffle in 1, 2 or 3 dimensions.

    Args:
        x: ``[B, C, *S]``, every axis of S a multiple of ``factor``.
        factor: block edge.

    Returns:
        ``[B, C * factor**dim, *(S // factor)]``; the block's position is the fastest channel index.
    """
    if x.ndim == 4:
        return F.pixel_unshuffle(x, factor)
    b, c, *size = x.shape
    split = x.reshape(b, c, *[n for s in size for n in (s // factor, factor)])
    dims = len(size)
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return split.permute(order).reshape(b, c * factor**dims, *[s // factor for s in size])


def channels_to_space(x: Tensor, factor: int) -> Tensor:
    """Undo :func:`space_to_channels`: pixel-shuffle in 1, 2 or 3 dimensions.

    Args:
        x: ``[B, C * factor**dim, *S]``.
        factor: block edge.

    Returns:
        ``[B, C, *(S * factor)]``.
    """
    if x.ndim == 4:
        return F.pixel_shuffle(x, factor)
    b, c, *size = x.shape
    dims = len(size)
    split = x.reshape(b, c // factor**dims, *[factor] * dims, *size)
    order = [0, 1, *[axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]]
    return split.permute(order).reshape(b, c // factor**dims, *[s * factor for s in size])


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    """Repeat every position ``factor`` times along each spatial axis."""
    return F.interpolate(x, scale_factor=factor, mode="nearest")


def refuse_cond(network: nn.Module, cond: Tensor | None) -> None:
    """Raise ``ValueError`` where an unconditional network is given a condition: it is never ignored.

    Args:
        network: named in the message.
        cond: must be ``None``.
    """
    if cond is not None:
        raise ValueError(
            f"got a condition of shape {tuple(cond.shape)}; {type(network).__name__} is built without one: "
            "leave cond out, or choose a network that takes conditions"
        )


def check_divisible(network: Network, x: Tensor) -> None:
    """Raise ``ValueError`` unless the network's stride divides every spatial axis of ``x``.

    Args:
        network: has ``stride``.
        x: ``[B, C, *S]``.
    """
    size, stride = tuple(x.shape[2:]), network.stride
    if any(n % stride for n in size):
        raise ValueError(
            f"got an image of size {size}; {type(network).__name__} takes multiples of {stride}: "
            "pad it (VAE.encode does)"
        )
