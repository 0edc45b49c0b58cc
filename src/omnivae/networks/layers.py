"""Dimension-generic layers: convolutions, normalisation, resampling in 0 to 3 spatial dimensions.

Shapes are ``[B, C, *S]``. Networks keep one memory layout from end to end (channels last pays on every device measured).
"""

from __future__ import annotations

import functools
import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from omnivae.types import Network, strides

NormKind = Literal["rms", "layer", "group", "batch", "none"]

#: Convolutions by number of spatial axes.
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
#: Positions of a batch from which folding the kernel costs less than it saves (measured on CPUs).
FOLD_POSITIONS = 1024
#: Channels last by number of axes.
LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}
BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


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


class _RMSNorm(torch.autograd.Function):
    """RMS normalisation of the last axis in half the memory passes of torch's, which is a chain of operators on CPUs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # Autocast would copy x to float32; the norm accumulates in float32 anyway.
        with without_autocast(x):
            # Bfloat16 holds the norm as it is; asked for float32, the kernel would copy x first. Half would overflow.
            wide = torch.float32 if x.dtype == torch.float16 else x.dtype
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).to(
                torch.promote_types(wide, torch.float32)
            )
            scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
            return (x * scale).mul_(weight), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        # Sums accumulate in float32 inside the kernel; asked for a float32 result, it would copy its input first.
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        mean = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.sub_(normed.mul_(mean)).mul_(scale), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the last axis (Zhang & Sennrich, Root Mean Square Layer Normalization, 2019).

    Args:
        x: ``[..., C]``.
        weight: ``[C]``; cast to the precision of ``x``.
        eps: added to the mean square.

    Returns:
        Same shape and precision as ``x``.
    """
    weight = weight.to(x.dtype)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _RMSNorm.apply(x, weight, eps)[0]


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
        # Channels last, this is a view of contiguous memory.
        return rms_norm(x.movedim(1, -1), self.weight, self.eps).movedim(-1, 1)


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
        # Autocast would hand on a float32 copy; the kernel accumulates in float32 for any input.
        with without_autocast(x):
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
        return BATCH_NORM[dim](channels)
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
    coarse, dims = [s // factor for s in size], len(size)
    split = x.reshape(b, c, *[n for s in coarse for n in (s, factor)])
    places, blocks = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    if _is_channels_last(x):
        moved = split.permute(0, *places, 1, *blocks).reshape(b, *coarse, c * factor**dims)
        return moved.movedim(-1, 1)
    return split.permute(0, 1, *blocks, *places).reshape(b, c * factor**dims, *coarse)


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
    fine, channels = [s * factor for s in size], c // factor**dims
    split = x.unflatten(1, (channels, *[factor] * dims))
    order = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    if _is_channels_last(x):
        return split.permute(0, *order, 1).reshape(b, *fine, channels).movedim(-1, 1)
    return split.permute(0, 1, *order).reshape(b, channels, *fine)


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    """Repeat every position ``factor`` times along each spatial axis."""
    return F.interpolate(x, scale_factor=factor, mode="nearest")


def upsampled_convolution(convolution: nn.Module, x: Tensor) -> Tensor:
    """Double the size by repetition and convolve, in 4/9 of the arithmetic (8/27 in 3-D) and without the large copy.

    Output positions of one parity see only two different inputs along an axis, so the 3-wide kernel folds into a 2-wide
    one for each parity (Shi et al., Is the deconvolution layer the same as a convolutional layer?, 2016).

    Args:
        convolution: stride 1, kernel 3, padding 1, one group.
        x: ``[B, C, *S]``.

    Returns:
        ``convolution(upsample_nearest(x, 2))`` up to rounding, ``[B, C', *(S * 2)]``.
    """
    if has_torch_function_unary(x):
        # A tensor that only records what is done to it wants the operation by name, not the writes below.
        return handle_torch_function(upsampled_convolution, (x,), convolution, x)
    dim, size = x.ndim - 2, x.shape[2:]
    # A convolution that also sees other frames (networks.video) has one axis more than what is doubled here.
    sees_frames = cast("Tensor", convolution.weight).ndim > x.ndim
    if sees_frames or x.shape[0] * size.numel() < FOLD_POSITIONS:
        return convolution(upsample_nearest(x, 2))
    weight, bias = cast("Tensor", convolution.weight), cast("Tensor", convolution.bias)
    out_channels, in_channels, phases = weight.shape[0], weight.shape[1], 2**dim
    # Even outputs see taps (0 | 1 + 2), odd ones (0 + 1 | 2) of [phase, tap, kernel].
    axis = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=weight.dtype, device=x.device)
    fold = functools.reduce(_outer, [axis] * dim)  # [phases, taps, kernel elements]
    with without_autocast(x):  # sums of weights are taken before any rounding
        folded = weight.flatten(2) @ fold.flatten(0, 1).mT
    folded = folded.reshape(out_channels, in_channels, phases, *[2] * dim).movedim(2, 0).flatten(0, 1)
    parts = CONVOLVE[dim](x, folded, bias.repeat(phases), padding=1).unflatten(1, (phases, out_channels))
    fine = (x.shape[0], out_channels, *(2 * n for n in size))
    y = torch.empty(fine, dtype=parts.dtype, device=x.device, memory_format=_layout_of(x))
    for i, parity in enumerate(itertools.product((0, 1), repeat=dim)):
        window = [slice(p, p + n) for p, n in zip(parity, size, strict=True)]
        where = [slice(p, None, 2) for p in parity]
        y[(..., *where)] = parts[(slice(None), i, slice(None), *window)]  # type: ignore[index]
    return y


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ptk,qul->pqtukl", a, b).reshape(*(m * n for m, n in zip(a.shape, b.shape, strict=True)))


def pointwise(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution as a matrix product over channels, which channels last is a view.

    Args:
        convolution: kernel 1, stride 1, one group.
        x: ``[B, C, *S]``.

    Returns:
        ``convolution(x)``, channels last.
    """
    weight, bias = cast("Tensor", convolution.weight), cast("Tensor", convolution.bias)
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def silu(fresh: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in place where no gradient will ask for it."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


def add(fresh: Tensor, x: Tensor) -> Tensor:
    """Add ``x`` to a tensor that nobody else holds: in place where no gradient is recorded."""
    return fresh + x if torch.is_grad_enabled() else fresh.add_(x)


def to_channels_last(x: Tensor) -> Tensor:
    """Return an image or volume channels last; anything else as it is."""
    return x if x.ndim not in LAYOUT else x.contiguous(memory_format=LAYOUT[x.ndim])


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast leaves operators on the device of ``x`` alone."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim in LAYOUT and x.is_contiguous(memory_format=LAYOUT[x.ndim])


def _layout_of(x: Tensor) -> torch.memory_format:
    return LAYOUT[x.ndim] if _is_channels_last(x) else torch.contiguous_format


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
    size = tuple(x.shape[2:])
    if any(n % s for n, s in zip(size, strides(network, len(size)), strict=True)):
        raise ValueError(
            f"got an image of size {size}; {type(network).__name__} takes multiples of {network.stride}: "
            "pad it (VAE.encode does)"
        )
