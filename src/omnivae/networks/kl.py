"""The KL autoencoder of latent diffusion, in 1-D, 2-D and 3-D.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022. The function is that of diffusers'
``AutoencoderKL``: its ``quant_conv`` is ``GaussianPosterior(2 * latent_dim, latent_dim, kernel_size=1)``, its
``post_quant_conv`` is ``KLDecoder.post_quant``. Activations keep the layout they come in (channels last is fast).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.layers import (
    CONV,
    check_dim,
    check_divisible,
    convolution,
    normalization,
    refuse_cond,
    upsampled_convolution,
)


class ResBlock(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; the shortcut is a 1x1 convolution where they differ.
        dim: number of spatial axes.
        num_groups: groups of each group normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, dim: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = normalization("group", in_channels, num_groups=num_groups)
        self.conv1 = convolution(dim, in_channels, out_channels, 3)
        self.norm2 = normalization("group", out_channels, num_groups=num_groups)
        self.conv2 = convolution(dim, out_channels, out_channels, 3)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = convolution(dim, in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *S]``."""
        h = self.conv1(F.silu(_normalize(self.norm1, x)))
        h = self.conv2(F.silu(_normalize(self.norm2, h)))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """``x + out(attention(norm(x)))`` between all positions, one head as wide as the features.

    Args:
        channels: channels of x.
        num_groups: groups of the group normalisation.
    """

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = normalization("group", channels, num_groups=num_groups)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        size = x.shape[2:]
        # Positions first, channels last and contiguous: a strided head axis falls back to the slow kernel silently.
        h_BNC = _normalize(self.norm, x).flatten(2).transpose(1, 2)
        q, k, v = (projection(h_BNC).unsqueeze(1) for projection in (self.query, self.key, self.value))
        h_BNC = self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + h_BNC.unflatten(1, size).movedim(-1, 1)


class Downsample(nn.Module):
    """Halve the size by a 3x3 convolution of stride 2 that pads only at the end of each axis.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.pad = (0, 1) * dim
        self.conv = CONV[dim](channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *(S / 2)]``."""
        return self.conv(F.pad(x, self.pad))


class Upsample(nn.Module):
    """Double the size by repetition, then a 3x3 convolution.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv = convolution(dim, channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *(S * 2)]``."""
        return upsampled_convolution(self.conv, x)


class Stage(nn.Module):
    """Residual blocks and a resampling.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
        num_res_blocks: number of blocks.
        dim: number of spatial axes.
        num_groups: groups of each group normalisation.
        attention: whether attention follows each block.
        resample: last module, or ``None``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_res_blocks: int,
        *,
        dim: int,
        num_groups: int,
        attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels, dim, num_groups)
            for i in range(num_res_blocks)
        )
        self.attentions: nn.ModuleList | None = None
        if attention:
            self.attentions = nn.ModuleList(SpatialAttention(out_channels, num_groups) for _ in range(num_res_blocks))
        self.resample = resample

    def forward(self, x: Tensor, checkpointed: bool = False) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *S']``, recomputing blocks backward if asked."""
        for i, block in enumerate(self.blocks):
            x = _run(block, x, checkpointed)
            if self.attentions is not None:
                x = _run(self.attentions[i], x, checkpointed)
        return x if self.resample is None else self.resample(x)


class KLEncoder(nn.Module, Component):
    """Images to features: residual stages, attention in the middle, group normalisation throughout.

    Args:
        in_channels: image channels.
        out_channels: feature channels; twice the latent channels in the paper.
        channels: width of each stage, shallowest first, multiples of ``num_groups``; the stride is
            ``2 ** (len(channels) - 1)``.
        num_res_blocks: residual blocks of each stage.
        dim: number of spatial axes, 1 to 3.
        num_groups: groups of each group normalisation.
        mid_attention: whether the middle has attention between all positions.
        attention_levels: for each stage, in the order of ``channels``, whether attention between all positions follows each
            of its blocks, as in latent diffusion's f16 and f32; nowhere by default.

    Example:
        >>> encoder = KLEncoder(3, 8, (16, 32), num_res_blocks=1, num_groups=8)
        >>> encoder(torch.zeros(1, 3, 8, 12)).shape
        torch.Size([1, 8, 4, 6])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 8,
        channels: Sequence[int] = (128, 256, 512, 512),
        *,
        num_res_blocks: int = 2,
        dim: int = 2,
        num_groups: int = 32,
        mid_attention: bool = True,
        attention_levels: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        _check(channels, num_res_blocks, dim)
        levels = checked_levels(channels, attention_levels)
        self.dim = dim
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = 2 ** (len(channels) - 1)
        self.gradient_checkpointing = False
        self.conv_in = convolution(dim, in_channels, channels[0], 3)
        last = len(channels) - 1
        self.stages = nn.ModuleList(
            Stage(
                channels[max(i - 1, 0)],
                width,
                num_res_blocks,
                dim=dim,
                num_groups=num_groups,
                attention=levels[i],
                resample=Downsample(width, dim) if i < last else None,
            )
            for i, width in enumerate(channels)
        )
        self.mid = _middle(channels[-1], dim, num_groups, mid_attention)
        self.norm_out = normalization("group", channels[-1], num_groups=num_groups)
        self.conv_out = convolution(dim, channels[-1], out_channels, 3)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, *S]``, S a multiple of the stride.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, *(S / stride)]``.

        Raises:
            ValueError: for a condition, or a size that the stride does not divide.
        """
        refuse_cond(self, cond)
        check_divisible(self, x)
        x = self.conv_in(x)
        checkpointed = self.gradient_checkpointing and self.training
        for stage in self.stages:
            x = stage(x, checkpointed)
        for block in self.mid:
            x = _run(block, x, checkpointed)
        return self.conv_out(F.silu(_normalize(self.norm_out, x)))


class KLDecoder(nn.Module, Component):
    """Latents to likelihood parameters: the mirror of :class:`KLEncoder` with one more residual block in each stage.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        channels: width of each stage, deepest first, multiples of ``num_groups``.
        num_res_blocks: residual blocks of each stage of the encoder; each stage here has one more.
        dim: number of spatial axes, 1 to 3.
        num_groups: groups of each group normalisation.
        mid_attention: whether the middle has attention between all positions.
        attention_levels: for each stage, in the order of ``channels``, whether attention between all positions follows each
            of its blocks, as in latent diffusion's f16 and f32; nowhere by default.

    Example:
        >>> decoder = KLDecoder(4, 3, (32, 16), num_res_blocks=1, num_groups=8)
        >>> decoder(torch.zeros(1, 4, 4, 6)).shape
        torch.Size([1, 3, 8, 12])
    """

    def __init__(
        self,
        latent_dim: int = 4,
        out_channels: int = 3,
        channels: Sequence[int] = (512, 512, 256, 128),
        *,
        num_res_blocks: int = 2,
        dim: int = 2,
        num_groups: int = 32,
        mid_attention: bool = True,
        attention_levels: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        _check(channels, num_res_blocks, dim)
        levels = checked_levels(channels, attention_levels)
        self.dim = dim
        self.in_channels = latent_dim
        self.out_channels = out_channels
        self.stride = 2 ** (len(channels) - 1)
        self.gradient_checkpointing = False
        self.post_quant = convolution(dim, latent_dim, latent_dim, 1)
        self.conv_in = convolution(dim, latent_dim, channels[0], 3)
        self.mid = _middle(channels[0], dim, num_groups, mid_attention)
        last = len(channels) - 1
        self.stages = nn.ModuleList(
            Stage(
                channels[max(i - 1, 0)],
                width,
                num_res_blocks + 1,
                dim=dim,
                num_groups=num_groups,
                attention=levels[i],
                resample=Upsample(width, dim) if i < last else None,
            )
            for i, width in enumerate(channels)
        )
        self.norm_out = normalization("group", channels[-1], num_groups=num_groups)
        self.conv_out = convolution(dim, channels[-1], out_channels, 3)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim, *S]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, *(S * stride)]``.

        Raises:
            ValueError: for a condition.
        """
        refuse_cond(self, cond)
        x = self.conv_in(self.post_quant(x))
        checkpointed = self.gradient_checkpointing and self.training
        for block in self.mid:
            x = _run(block, x, checkpointed)
        for stage in self.stages:
            x = stage(x, checkpointed)
        return self.conv_out(F.silu(_normalize(self.norm_out, x)))


def _middle(channels: int, dim: int, num_groups: int, attention: bool) -> nn.ModuleList:
    blocks: list[nn.Module] = [ResBlock(channels, channels, dim, num_groups) for _ in range(2)]
    if attention:
        blocks.insert(1, SpatialAttention(channels, num_groups))
    return nn.ModuleList(blocks)


def _normalize(norm: nn.Module, x: Tensor) -> Tensor:
    # Autocast would hand on a float32 copy of every activation. The kernel accumulates its statistics in float32 for
    # any input, and the convolution that follows rounds to the input's precision anyway.
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return norm(x)
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)  # type: ignore[operator,union-attr]
        return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)  # type: ignore[arg-type]


def _run(module: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    return checkpoint(module, x, use_reentrant=False) if checkpointed else module(x)


def checked_levels(channels: Sequence[int], levels: Sequence[bool] | None) -> tuple[bool, ...]:
    """Return where attention is, one value a stage; nowhere for ``None``."""
    if levels is None:
        return (False,) * len(channels)
    if len(levels) != len(channels):
        raise ValueError(
            f"got attention_levels={tuple(levels)} for {len(channels)} stages; expected one true or false a stage"
        )
    return tuple(bool(level) for level in levels)


def _check(channels: Sequence[int], num_res_blocks: int, dim: int) -> None:
    check_dim(dim)
    if not channels or min(channels) < 1:
        raise ValueError(f"got channels={tuple(channels)}; expected positive widths, one a stage")
    if num_res_blocks < 1:
        raise ValueError(f"got num_res_blocks={num_res_blocks}; expected at least 1")
