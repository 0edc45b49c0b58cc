"""TransVAE's encoder and decoder: convolutional stages first, transformer stages after, one shortcut around each resampling.

"A Hybrid Paradigm for Vision Autoencoders: Unifying CNNs and Transformers for Learning Efficiency and Scalability" (2025).
A convolutional block costs 18 d^2 parameters, a transformer block 15 d^2: attention 4 d^2 and a feed-forward network of
1x1, full 3x3 and 1x1 convolutions, 11 d^2 at ratio 1. The shortcut is DC-AE's (Chen et al., Deep Compression Autoencoder,
2024). One stage of either kind alone gives the CNN and ViT baselines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.attention import AbsolutePositions, GridAttention
from omnivae.networks.layers import (
    add,
    channels_to_space,
    check_dim,
    convolution,
    normalization,
    pointwise,
    refuse_cond,
    silu,
    space_to_channels,
    to_channels_last,
    upsampled_convolution,
)

POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
FFNKind = Literal["standard", "dwconv", "fullconv"]
StemKind = Literal["single-conv", "sequential-conv"]
BlockNorm = Literal["rms", "layer"]


class ConvBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``, two 3x3 convolutions.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        norm: "rms" or "layer".
    """

    def __init__(self, channels: int, dim: int, norm: BlockNorm) -> None:
        super().__init__()
        self.norm1 = normalization(norm, channels)
        self.conv1 = convolution(dim, channels, channels, 3)
        self.norm2 = normalization(norm, channels)
        self.conv2 = convolution(dim, channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return add(self.conv2(silu(self.norm2(h))), x)


class FeedForward(nn.Module):
    """Feed-forward network of a transformer block: 1x1 convolution, optional 3x3 convolution, 1x1 convolution.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        ratio: hidden channels over channels.
        kind: "standard" (no 3x3 convolution), "dwconv" (depthwise) or "fullconv".
    """

    def __init__(self, channels: int, dim: int, ratio: float, kind: FFNKind) -> None:
        super().__init__()
        if kind not in ("standard", "dwconv", "fullconv"):
            raise ValueError(f"got ffn={kind!r}; expected 'standard', 'dwconv' or 'fullconv'")
        hidden = max(1, round(channels * ratio))
        self.expand = convolution(dim, channels, hidden, 1)
        self.spatial: nn.Module | None = None
        if kind != "standard":
            self.spatial = convolution(dim, hidden, hidden, 3, groups=hidden if kind == "dwconv" else 1)
        self.contract = convolution(dim, hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = silu(pointwise(self.expand, x))
        if self.spatial is not None:
            h = silu(self.spatial(h))
        return pointwise(self.contract, h)


class TransformerBlock(nn.Module):
    """``x + Attn(norm(x))``, then ``x + FFN(norm(x))``.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        norm: "rms" or "layer".
        head_dim: channels of a head.
        mlp_ratio: hidden channels of the feed-forward network over channels.
        ffn: its kind.
        use_rope: rotary positions.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        norm: BlockNorm,
        *,
        head_dim: int,
        mlp_ratio: float,
        ffn: FFNKind,
        use_rope: bool,
    ) -> None:
        super().__init__()
        self.norm1 = normalization(norm, channels)
        self.attention = GridAttention(channels, head_dim, use_rope)
        self.norm2 = normalization(norm, channels)
        self.ffn = FeedForward(channels, dim, mlp_ratio, ffn)

    def forward(self, x: Tensor) -> Tensor:
        x = add(self.attention(self.norm1(x)), x)
        return add(self.ffn(self.norm2(x)), x)


class Downsample(nn.Module):
    """Halve the size: one 3x3 convolution of stride 2, plus pixel-unshuffle with channel averaging as a shortcut.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; with the shortcut it must divide ``in_channels * 2**dim``.
        dim: number of spatial axes.
        use_dc_path: add the shortcut (Chen et al., Deep Compression Autoencoder, 2024).
    """

    def __init__(self, in_channels: int, out_channels: int, dim: int, use_dc_path: bool) -> None:
        super().__init__()
        if use_dc_path:
            _check_groups(in_channels, out_channels, dim)
        self.conv = convolution(dim, in_channels, out_channels, 3, stride=2)
        self.use_dc_path = use_dc_path

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.use_dc_path:
            y = _add_average(y, x)
        return y


class Upsample(nn.Module):
    """Double the size: nearest neighbour and one 3x3 convolution, plus channel duplication with pixel-shuffle.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; with the shortcut ``in_channels`` must divide ``out_channels * 2**dim``.
        dim: number of spatial axes.
        use_dc_path: add the shortcut (Chen et al., Deep Compression Autoencoder, 2024).
    """

    def __init__(self, in_channels: int, out_channels: int, dim: int, use_dc_path: bool) -> None:
        super().__init__()
        if use_dc_path:
            _check_groups(out_channels, in_channels, dim)
        self.conv = convolution(dim, in_channels, out_channels, 3)
        self.use_dc_path = use_dc_path

    def forward(self, x: Tensor) -> Tensor:
        y = upsampled_convolution(self.conv, x)
        if self.use_dc_path:
            y = _add_duplicate(y, x)
        return y


class _Stages(nn.Module):
    """What encoder and decoder share: the stages' blocks, checked, and gradient checkpointing."""

    def __init__(
        self,
        base_dims: Sequence[int],
        depths: Sequence[int],
        *,
        compression_ratio: int,
        dim: int,
        num_conv_stages: int | None,
        mlp_ratio: float,
        head_dim: int,
        use_rope: bool,
        use_absolute_positions: bool,
        ffn: FFNKind,
        norm: BlockNorm,
        input_resolution: int,
    ) -> None:
        super().__init__()
        check_dim(dim)
        if len(base_dims) != len(depths) or not depths or min(depths) < 0 or min(base_dims) < 1:
            raise ValueError(
                f"got depths={list(depths)} and base_dims={list(base_dims)}; expected one depth >= 0 and one width for each stage"
            )
        if norm not in ("rms", "layer"):
            raise ValueError(f"got norm={norm!r}; expected 'rms' or 'layer'")
        steps = len(depths) - 1
        if compression_ratio < 1 or compression_ratio & (compression_ratio - 1) or compression_ratio < 2**steps:
            raise ValueError(
                f"got compression_ratio={compression_ratio} with {len(depths)} stages; expected a power of two, at least {2**steps}"
            )
        self.dim = dim
        self.stride = compression_ratio
        self.stem_stride = compression_ratio // 2**steps
        self.gradient_checkpointing = False
        #: Convert the input to channels last, the fast layout on every device measured; the result stays in it.
        self.channels_last = True
        conv_stages = min(2, steps) if num_conv_stages is None else num_conv_stages
        if not 0 <= conv_stages <= len(depths):
            raise ValueError(f"got num_conv_stages={conv_stages}; expected 0 to {len(depths)}")

        def blocks(stage: int) -> nn.Sequential:
            width = base_dims[stage]
            layers: list[nn.Module] = []
            if stage >= conv_stages and use_absolute_positions:
                side = max(1, math.ceil(input_resolution / (self.stem_stride * 2**stage)))
                layers.append(AbsolutePositions(width, [side] * dim))
            for _ in range(depths[stage]):
                if stage < conv_stages:
                    layers.append(ConvBlock(width, dim, norm))
                else:
                    layers.append(
                        TransformerBlock(
                            width, dim, norm, head_dim=head_dim, mlp_ratio=mlp_ratio, ffn=ffn, use_rope=use_rope
                        )
                    )
            return nn.Sequential(*layers)

        self.stages = nn.ModuleList([blocks(i) for i in self._order(len(depths))])

    def _order(self, num_stages: int) -> Sequence[int]:
        return range(num_stages)

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        for block in stage.children():
            x = self._maybe_checkpoint(block, x)
        return x

    def _maybe_checkpoint(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and x.requires_grad:
            return checkpoint(function, x, use_reentrant=False)  # type: ignore[return-value]
        return function(x)


class TransVAEEncoder(_Stages, Component):
    """Images to features at the last stage's resolution.

    Args:
        in_channels: image channels.
        base_dims: width of each stage.
        depths: number of blocks of each stage.
        compression_ratio: total stride, a power of two; what ``2**(stages - 1)`` leaves over falls to the stem.
        dim: number of spatial axes.
        num_conv_stages: leading stages made of convolutional blocks; two (one fewer than the stages at most) by default.
        mlp_ratio: hidden channels of the feed-forward network over channels.
        head_dim: channels of an attention head.
        use_rope: rotary positions in attention.
        use_absolute_positions: learned position tables at the start of each transformer stage.
        ffn: feed-forward kind, "standard", "dwconv" or "fullconv".
        stem: "single-conv" (one convolution takes the stem's stride) or "sequential-conv" (stride 2 at a time).
        norm: "rms" or "layer".
        use_dc_path: shortcut around each down-sampling.
        input_resolution: image size that the position tables are made for.
    """

    def __init__(
        self,
        in_channels: int,
        base_dims: Sequence[int],
        depths: Sequence[int],
        *,
        compression_ratio: int = 16,
        dim: int = 2,
        num_conv_stages: int | None = None,
        mlp_ratio: float = 1.0,
        head_dim: int = 64,
        use_rope: bool = True,
        use_absolute_positions: bool = False,
        ffn: FFNKind = "fullconv",
        stem: StemKind = "single-conv",
        norm: BlockNorm = "rms",
        use_dc_path: bool = True,
        input_resolution: int = 256,
    ) -> None:
        super().__init__(
            base_dims,
            depths,
            compression_ratio=compression_ratio,
            dim=dim,
            num_conv_stages=num_conv_stages,
            mlp_ratio=mlp_ratio,
            head_dim=head_dim,
            use_rope=use_rope,
            use_absolute_positions=use_absolute_positions,
            ffn=ffn,
            norm=norm,
            input_resolution=input_resolution,
        )
        self.in_channels = in_channels
        self.out_channels = base_dims[-1]
        self.stem = _stem(in_channels, base_dims[0], self.stem_stride, dim, stem)
        self.downsamples = nn.ModuleList([Downsample(a, b, dim, use_dc_path) for a, b in pairwise(base_dims)])
        self.norm_out = normalization(norm, base_dims[-1])

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features ``[B, base_dims[-1], *S / compression_ratio]`` of images ``[B, C, *S]``."""
        refuse_cond(self, cond)
        x = self._maybe_checkpoint(self.stem, to_channels_last(x) if self.channels_last else x)
        for index, stage in enumerate(self.stages):
            if index:
                x = self._maybe_checkpoint(self.downsamples[index - 1], x)
            x = self._run(stage, x)
        return silu(self.norm_out(x))


class TransVAEDecoder(_Stages, Component):
    """Latents to likelihood parameters; the encoder mirrored.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result.
        base_dims: width of each stage, in the encoder's order.
        depths: number of blocks of each stage, in the encoder's order.
        compression_ratio: total stride, a power of two.
        dim: number of spatial axes.
        num_conv_stages: stages nearest to the image made of convolutional blocks.
        mlp_ratio: hidden channels of the feed-forward network over channels.
        head_dim: channels of an attention head.
        use_rope: rotary positions in attention.
        use_absolute_positions: learned position tables at the start of each transformer stage.
        ffn: feed-forward kind, "standard", "dwconv" or "fullconv".
        stem: how the encoder's stem stride is undone: "single-conv" at once, "sequential-conv" by 2 at a time.
        norm: "rms" or "layer".
        use_dc_path: shortcut around each up-sampling.
        input_resolution: image size that the position tables are made for.
    """

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        base_dims: Sequence[int],
        depths: Sequence[int],
        *,
        compression_ratio: int = 16,
        dim: int = 2,
        num_conv_stages: int | None = None,
        mlp_ratio: float = 1.0,
        head_dim: int = 64,
        use_rope: bool = True,
        use_absolute_positions: bool = False,
        ffn: FFNKind = "fullconv",
        stem: StemKind = "single-conv",
        norm: BlockNorm = "rms",
        use_dc_path: bool = True,
        input_resolution: int = 256,
    ) -> None:
        super().__init__(
            base_dims,
            depths,
            compression_ratio=compression_ratio,
            dim=dim,
            num_conv_stages=num_conv_stages,
            mlp_ratio=mlp_ratio,
            head_dim=head_dim,
            use_rope=use_rope,
            use_absolute_positions=use_absolute_positions,
            ffn=ffn,
            norm=norm,
            input_resolution=input_resolution,
        )
        self.in_channels = latent_dim
        self.out_channels = out_channels
        widths = list(base_dims)[::-1]
        self.conv_in = convolution(dim, latent_dim, widths[0], 3)
        self.upsamples = nn.ModuleList([Upsample(a, b, dim, use_dc_path) for a, b in pairwise(widths)])
        self.norm_out = normalization(norm, widths[-1])
        self.head = _head(widths[-1], out_channels, self.stem_stride, dim, stem)

    def _order(self, num_stages: int) -> Sequence[int]:
        return range(num_stages - 1, -1, -1)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters ``[B, out_channels, *S * compression_ratio]`` for z ``[B, latent_dim, *S]``."""
        refuse_cond(self, cond)
        x = self._maybe_checkpoint(self.conv_in, to_channels_last(x) if self.channels_last else x)
        for index, stage in enumerate(self.stages):
            if index:
                x = self._maybe_checkpoint(self.upsamples[index - 1], x)
            x = self._run(stage, x)
        return self.head(silu(self.norm_out(x)))


class _PixelShuffle(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return channels_to_space(x, self.factor)


def _stem(in_channels: int, out_channels: int, stride: int, dim: int, kind: StemKind) -> nn.Module:
    if kind == "single-conv":
        return convolution(dim, in_channels, out_channels, 3 if stride == 1 else stride, stride=stride)
    if kind != "sequential-conv":
        raise ValueError(f"got stem={kind!r}; expected 'single-conv' or 'sequential-conv'")
    strides = [2] * int(math.log2(stride)) or [1]
    widths = [max(8, out_channels // 2 ** (len(strides) - i)) for i in range(len(strides))]
    layers: list[nn.Module] = []
    channels = in_channels
    for width, step in zip(widths, strides, strict=True):
        layers += [convolution(dim, channels, width, 3, stride=step), nn.SiLU()]
        channels = width
    return nn.Sequential(*layers, convolution(dim, channels, out_channels, 3))


def _head(in_channels: int, out_channels: int, stride: int, dim: int, kind: StemKind) -> nn.Module:
    if stride == 1 and kind == "single-conv":
        return convolution(dim, in_channels, out_channels, 3)
    if kind == "single-conv":
        return nn.Sequential(convolution(dim, in_channels, out_channels * stride**dim, 1), _PixelShuffle(stride))
    strides = [2] * int(math.log2(stride)) or [1]
    layers: list[nn.Module] = []
    channels = in_channels
    for step in strides:
        width = max(8, channels // 2)
        layers.append(convolution(dim, channels, width * step**dim, 3))
        if step > 1:
            layers.append(_PixelShuffle(step))
        layers.append(nn.SiLU())
        channels = width
    return nn.Sequential(*layers, convolution(dim, channels, out_channels, 3))


def _add_average(y: Tensor, x: Tensor) -> Tensor:
    """Add pixel-unshuffle by 2 of x, averaged over neighbouring channels, without building it."""
    dim, channels = x.ndim - 2, x.shape[1]
    group = channels * 2**dim // y.shape[1]
    if group % 2**dim == 0:
        pooled = POOL[dim](x, 2)
        return add(y, pooled if group == 2**dim else pooled.unflatten(1, (y.shape[1], -1)).mean(2))
    if group & (group - 1):
        return add(y, space_to_channels(x, 2).unflatten(1, (y.shape[1], -1)).mean(2))
    # The last axes of each block are averaged, the first ones become channels: [B, C, parities, places].
    kept = dim - group.bit_length() + 1
    pooled = x if kept == dim else POOL[dim](x, (1,) * kept + (2,) * (dim - kept))
    for axis in range(kept):
        pooled = pooled.unflatten(2 + 2 * axis, (-1, 2))
    order = [0, 1, *range(3, 3 + 2 * kept, 2), *range(2, 2 + 2 * kept, 2), *range(2 + 2 * kept, pooled.ndim)]
    total = add(y.unflatten(1, (channels, *[2] * kept)), pooled.permute(order))
    return total.flatten(1, 1 + kept)


def _add_duplicate(y: Tensor, x: Tensor) -> Tensor:
    """Add pixel-shuffle by 2 of x with duplicated channels, without building it."""
    dim, channels = x.ndim - 2, x.shape[1]
    repeats = y.shape[1] * 2**dim // channels
    if repeats % 2**dim and repeats & (repeats - 1):
        return add(y, channels_to_space(x.repeat_interleave(repeats, dim=1), 2))
    # The first axes of each block come from channels, the last ones repeat: y as [B, C, copies, place, parity, ...].
    kept = max(0, dim - repeats.bit_length() + 1) if repeats < 2**dim else 0
    copies = max(1, repeats // 2**dim)
    wide = x.unflatten(1, (-1, *[2] * kept))
    wide = wide.permute(0, 1, *(a for i in range(kept) for a in (2 + kept + i, 2 + i)), *range(2 + 2 * kept, wide.ndim))
    for axis in range(kept, dim):
        wide = wide.unsqueeze(3 + 2 * axis)
    fine = y.unflatten(1, (-1, copies))
    for axis in range(dim):
        fine = fine.unflatten(3 + 2 * axis, (-1, 2))
    fine = add(fine, wide.unsqueeze(2))
    for axis in range(dim):
        fine = fine.flatten(3 + axis, 4 + axis)
    return fine.flatten(1, 2)


def _check_groups(fine: int, coarse: int, dim: int) -> None:
    if (fine * 2**dim) % coarse:
        raise ValueError(
            f"got widths {fine} and {coarse} in neighbouring stages; the shortcut of the DC path needs {coarse} to divide "
            f"{fine * 2**dim}: change base_dims or set use_dc_path to false"
        )
