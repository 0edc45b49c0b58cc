"""Networks of deep hierarchical VAEs: groups of spatial latents at several resolutions, in 1-D, 2-D and 3-D.

Vahdat & Kautz, NVAE: A Deep Hierarchical Variational Autoencoder, 2020 (https://arxiv.org/abs/2007.03898); Child, Very Deep
VAEs Generalize Autoregressive Models and Can Outperform Them on Images, 2021 (https://arxiv.org/abs/2011.10650).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.ladder import in_full_precision
from omnivae.networks.layers import (
    CONV,
    check_dim,
    check_divisible,
    convolution,
    normalization,
    refuse_cond,
    upsample_nearest,
)

Block = Literal["nvae", "vdvae"]
_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate from its mean over positions (Hu et al., Squeeze-and-Excitation Networks, 2018).

    Args:
        channels: channels of x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.down = nn.Linear(channels, hidden)
        self.up = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        gate = torch.sigmoid(self.up(F.relu(self.down(x.flatten(2).mean(2)))))
        return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))


class ResidualCell(nn.Module):
    """NVAE's bottom-up cell: x + s SE(conv3(swish(bn(conv3(swish(bn(x))))))) (Vahdat & Kautz, 2020, figure 3b).

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        scale: s, 0.1 in the authors' code.
    """

    def __init__(self, channels: int, dim: int, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        # No bias where batch normalisation would subtract it again.
        self.body = nn.Sequential(
            normalization("batch", channels, dim=dim),
            nn.SiLU(),
            CONV[dim](channels, channels, 3, padding=1, bias=False),
            normalization("batch", channels, dim=dim),
            nn.SiLU(),
            convolution(dim, channels, channels, 3),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        return x + self.scale * self.body(x)


class DepthwiseCell(nn.Module):
    """NVAE's top-down cell: expand, a depthwise convolution 5 wide, project, squeeze and excite (2020, figure 3a).

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        expansion: factor of the hidden width.
        scale: of the residual, 0.1 in the authors' code.
    """

    def __init__(self, channels: int, dim: int, expansion: int = 3, scale: float = 0.1) -> None:
        super().__init__()
        hidden = channels * expansion
        self.scale = scale
        self.body = nn.Sequential(
            normalization("batch", channels, dim=dim),
            CONV[dim](channels, hidden, 1, bias=False),
            normalization("batch", hidden, dim=dim),
            nn.SiLU(),
            CONV[dim](hidden, hidden, 5, padding=2, groups=hidden, bias=False),
            normalization("batch", hidden, dim=dim),
            nn.SiLU(),
            CONV[dim](hidden, channels, 1, bias=False),
            normalization("batch", channels, dim=dim),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        return x + self.scale * self.body(x)


class BottleneckBlock(nn.Module):
    """VDVAE's block: x + four convolutions 1, 3, 3, 1 wide with GELU before each, a quarter as many channels inside.

    The last one starts ``1 / sqrt(N)`` of its usual size in a network of N blocks (Child, 2021, section 3.2).

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        num_blocks: N.
    """

    def __init__(self, channels: int, dim: int, num_blocks: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 1)
        self.convs = nn.ModuleList(
            convolution(dim, i, o, k)
            for i, o, k in ((channels, hidden, 1), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, channels, 1))
        )
        with torch.no_grad():
            last: Any = self.convs[-1]
            last.weight.mul_(1 / math.sqrt(num_blocks))
            last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        h = x
        for conv in self.convs:
            h = conv(F.gelu(h))
        return x + h


class DeepEncoder(nn.Module, Component):
    """Images to features at each group, from the coarsest resolution to the finest: the deterministic pass upwards.

    Args:
        in_channels: image channels.
        channels: width at each resolution, the finest (that of the image) first; the stride is ``2 ** (len(channels) - 1)``.
        num_groups: groups of latents at each resolution, the finest first; 0 for none there, at least one at the coarsest.
        dim: number of spatial axes, 1 to 3.
        block: "nvae" (batch normalisation, squeeze and excite) or "vdvae" (bottlenecks without normalisation).

    Example:
        >>> up = DeepEncoder(3, (8, 16, 16), (0, 1, 2))
        >>> [tuple(f.shape) for f in up(torch.zeros(1, 3, 8, 12))]
        [(1, 16, 2, 3), (1, 16, 2, 3), (1, 16, 4, 6)]
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        num_groups: Sequence[int] = (0, 2, 2),
        *,
        dim: int = 2,
        block: Block = "nvae",
    ) -> None:
        super().__init__()
        _check(channels, num_groups, dim, block)
        self.dim = dim
        self.in_channels = in_channels
        self.out_channels = channels[-1]
        self.stride = 2 ** (len(channels) - 1)
        self.num_groups = tuple(num_groups)
        self.gradient_checkpointing = False
        self.conv_in = convolution(dim, in_channels, channels[0], 3)
        depth = sum(max(n, 1) for n in num_groups)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                ResidualCell(c, dim) if block == "nvae" else BottleneckBlock(c, dim, depth) for _ in range(max(n, 1))
            )
            for c, n in zip(channels, num_groups, strict=True)
        )
        self.widen = nn.ModuleList(convolution(dim, i, o, 1) for i, o in itertools.pairwise(channels))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return features, those of the top group first.

        Args:
            x: ``[B, in_channels, *S]``, S a multiple of the stride.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, width, *(S / 2**r)]`` for each group, at resolution r.

        Raises:
            ValueError: for a condition, or a size that the stride does not divide.
        """
        refuse_cond(self, cond)
        check_divisible(self, x)
        found: list[Tensor] = []
        h = self.conv_in(x)
        for r, (blocks, count) in enumerate(zip(self.blocks, self.num_groups, strict=True)):
            if r:
                h = self.widen[r - 1](_POOL[self.dim](h, 2))
            for block in blocks:  # type: ignore[attr-defined]
                h = _run(block, h, self.gradient_checkpointing and self.training)
                if count:
                    found.append(h)
        return tuple(found[::-1])


class Group(nn.Module):
    """One group of latents: the parameters of its prior and posterior, what z adds to the state, and a block.

    Args:
        channels: channels of the state and of the encoder's features.
        latent_dim: channels of z.
        dim: number of spatial axes.
        top: whether it is the first, whose prior is the standard normal.
        make_block: builds a block that keeps the shape.
    """

    def __init__(
        self, channels: int, latent_dim: int, *, dim: int, top: bool, make_block: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.prior = None if top else convolution(dim, channels, 2 * latent_dim, 1)
        self.join = convolution(dim, 2 * channels, channels, 1)
        self.posterior_block = make_block()
        self.posterior = convolution(dim, channels, 2 * latent_dim, 1)
        self.project = convolution(dim, latent_dim, channels, 1)
        self.block = make_block()

    def forward(self, h: Tensor, feature: Tensor | None, choose: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Return the next state.

        Args:
            h: the state, ``[N, C, *S]``.
            feature: of the encoder, the same shape; ``None`` without an image.
            choose: from the parameters of prior and posterior ``[N, 2 latent_dim, *S]`` to z.

        Returns:
            ``[N, C, *S]``.
        """
        if self.prior is None:
            prior = h.new_zeros(len(h), 2 * self.latent_dim, *h.shape[2:])
        else:
            prior = in_full_precision(self.prior, F.elu(h))
        posterior = None
        if feature is not None:
            joined = self.posterior_block(self.join(torch.cat([h, feature], 1)))
            posterior = in_full_precision(self.posterior, F.elu(joined))
        z = choose(prior, posterior)
        return self.block(h + self.project(z.to(h.dtype)))


class DeepDecoder(nn.Module, Component):
    """A walk down the groups from a learned constant, doubling the size between resolutions.

    The first group's prior is the standard normal, the others' a convolution of the state. The constant is one number a
    channel, the same at all positions, so any size can be drawn.

    Args:
        out_channels: channels of the result; the likelihood says how many it needs.
        channels: width at each resolution, the coarsest first.
        num_groups: groups at each resolution, the coarsest first.
        latent_dim: channels of z in each group.
        dim: number of spatial axes, 1 to 3.
        block: "nvae" (depthwise convolutions) or "vdvae" (bottlenecks).

    Example:
        >>> down = DeepDecoder(3, (16, 16, 8), (2, 1, 0), latent_dim=4)
        >>> down.level_channels, down.level_scales
        ((4, 4, 4), (1, 1, 2))
        >>> down(1, (2, 3), None, lambda level, prior, posterior: prior.chunk(2, 1)[0]).shape
        torch.Size([1, 3, 8, 12])
    """

    def __init__(
        self,
        out_channels: int,
        channels: Sequence[int] = (128, 64, 32),
        num_groups: Sequence[int] = (2, 2, 0),
        *,
        latent_dim: int = 16,
        dim: int = 2,
        block: Block = "nvae",
    ) -> None:
        super().__init__()
        _check(tuple(channels)[::-1], tuple(num_groups)[::-1], dim, block)
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1 channel a group")
        self.dim = dim
        self.level_channels = (latent_dim,) * sum(num_groups)
        self.level_scales = tuple(2**r for r, n in enumerate(num_groups) for _ in range(n))
        self.in_channels = latent_dim
        self.out_channels = out_channels
        self.stride = 2 ** (len(channels) - 1)
        self.num_groups = tuple(num_groups)
        self.gradient_checkpointing = False
        depth = 2 * sum(max(n, 1) for n in num_groups)

        def cell(width: int) -> nn.Module:
            return DepthwiseCell(width, dim) if block == "nvae" else BottleneckBlock(width, dim, depth)

        def stage(r: int, width: int, count: int) -> nn.ModuleList:
            if not count:
                return nn.ModuleList([cell(width)])
            return nn.ModuleList(
                Group(width, latent_dim, dim=dim, top=r == i == 0, make_block=partial(cell, width))
                for i in range(count)
            )

        self.start = nn.Parameter(torch.randn(1, channels[0], *[1] * dim) * 0.1)
        self.stages = nn.ModuleList(stage(r, c, n) for r, (c, n) in enumerate(zip(channels, num_groups, strict=True)))
        self.narrow = nn.ModuleList(convolution(dim, i, o, 1) for i, o in itertools.pairwise(channels))
        self.conv_out = convolution(dim, channels[-1], out_channels, 3)

    def forward(
        self,
        batch: int,
        grid: tuple[int, ...],
        features: tuple[Tensor, ...] | None,
        choose: Callable[[int, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Return likelihood parameters.

        Args:
            batch: number of rows N.
            grid: size of the coarsest resolution.
            features: of the encoder, one for each group; ``None`` without an image.
            choose: from a group, the parameters of its prior ``[N, 2C, *S]`` and of its posterior to z ``[N, C, *S]``.

        Returns:
            ``[N, out_channels, *(grid * stride)]``.
        """
        h = self.start.expand(batch, -1, *grid)
        level = 0
        for r, (stage, count) in enumerate(zip(self.stages, self.num_groups, strict=True)):
            if r:
                h = upsample_nearest(self.narrow[r - 1](h), 2)
            for part in stage:  # type: ignore[attr-defined]
                if not count:
                    h = _run(part, h, self.gradient_checkpointing and self.training)
                    continue
                feature = None if features is None else features[level]
                h = part(h, feature, partial(choose, level))
                level += 1
        return self.conv_out(F.elu(h))


def _run(block: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    return checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)


def _check(channels: Sequence[int], num_groups: Sequence[int], dim: int, block: str) -> None:
    check_dim(dim)
    if not channels or min(channels) < 1 or len(num_groups) != len(channels):
        raise ValueError(
            f"got channels={tuple(channels)} and num_groups={tuple(num_groups)}; expected one positive width and one number of "
            "groups for each resolution, the finest first"
        )
    if min(num_groups) < 0 or num_groups[-1] < 1:
        raise ValueError(
            f"got num_groups={tuple(num_groups)}, the finest resolution first; expected numbers >= 0, at least 1 at the coarsest"
        )
    if block not in get_args(Block):
        raise ValueError(f"got block={block!r}; expected 'nvae' or 'vdvae'")
