"""The orthonormal Haar wavelet in 1-D, 2-D and 3-D, and LiteVAE's encoder, which reads an image through it.

Haar, Zur Theorie der orthogonalen Funktionensysteme, 1910; Sadat et al., LiteVAE: Lightweight and Efficient Variational
Autoencoders for Latent Diffusion Models, 2024 (https://arxiv.org/abs/2405.14477); for volumes and video the same in three
axes (Li et al., WF-VAE, 2024, https://arxiv.org/abs/2411.17459).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.kl import ResBlock, _normalize
from omnivae.networks.layers import check_dim, check_divisible, convolution, normalization, refuse_cond


def haar(x: Tensor) -> Tensor:
    """Return the subbands of one level of the Haar transform; orthonormal, so that it keeps the sum of squares.

    Along each axis a pair (a, b) becomes ``(a + b) / sqrt(2)`` (low) and ``(a - b) / sqrt(2)`` (high).

    Args:
        x: ``[B, C, *S]`` with 1 to 3 axes of even size.

    Returns:
        ``[B, 2**dim * C, *(S / 2)]``: the bands one after the other with C channels each, low in all axes first; the last
        axis is the fastest.

    Raises:
        ValueError: for an odd size.

    Example:
        >>> haar(torch.tensor([[[1.0, 1.0, 4.0, 2.0]]]))
        tensor([[[1.4142, 4.2426],
                 [0.0000, 1.4142]]])
    """
    if any(n % 2 for n in x.shape[2:]):
        raise ValueError(f"got an image of size {tuple(x.shape[2:])}; the Haar transform takes even sizes: pad it")
    bands = [x]
    for axis in range(2, x.ndim):
        pairs = [band.unflatten(axis, (-1, 2)).unbind(axis + 1) for band in bands]
        bands = [part for a, b in pairs for part in ((a + b) * math.sqrt(0.5), (a - b) * math.sqrt(0.5))]
    return torch.cat(bands, dim=1)


def inverse_haar(bands: Tensor) -> Tensor:
    """Undo :func:`haar`.

    Args:
        bands: ``[B, 2**dim * C, *S]``.

    Returns:
        ``[B, C, *(S * 2)]``.

    Example:
        >>> x = torch.rand(2, 3, 4, 6)
        >>> torch.allclose(inverse_haar(haar(x)), x, atol=1e-6)
        True
    """
    dim = bands.ndim - 2
    parts = list(bands.chunk(2**dim, dim=1))
    for axis in range(bands.ndim - 1, 1, -1):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [
            torch.stack(((low + high) * math.sqrt(0.5), (low - high) * math.sqrt(0.5)), axis + 1).flatten(
                axis, axis + 1
            )
            for low, high in pairs
        ]
    return parts[0]


class FlatUNet(nn.Module):
    """A U-Net without resampling: residual blocks that widen, a middle, and blocks that narrow, joined across.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
        channels: base width.
        multipliers: width of each stage as a multiple of the base.
        num_res_blocks: residual blocks of each stage.
        dim: number of spatial axes.
        num_groups: groups of each group normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        dim: int,
        num_groups: int,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers for _ in range(num_res_blocks)]
        self.conv_in = convolution(dim, in_channels, channels, 3)
        before = [channels, *widths[:-1]]
        self.down = nn.ModuleList(ResBlock(i, o, dim, num_groups) for i, o in zip(before, widths, strict=True))
        self.mid = ResBlock(widths[-1], widths[-1], dim, num_groups)
        after = [widths[-1], *widths[:0:-1]]
        self.up = nn.ModuleList(ResBlock(i + w, w, dim, num_groups) for i, w in zip(after, widths[::-1], strict=True))
        self.norm_out = normalization("group", widths[0], num_groups=num_groups)
        self.conv_out = convolution(dim, widths[0], out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *S]``."""
        h = self.conv_in(x)
        kept = []
        for block in self.down:
            h = block(h)
            kept.append(h)
        h = self.mid(h)
        for block in self.up:
            h = block(torch.cat([h, kept.pop()], 1))
        return self.conv_out(F.silu(_normalize(self.norm_out, h)))


class WaveletEncoder(nn.Module, Component):
    """LiteVAE's encoder: a Haar pyramid, a small U-Net for the bands of each level, another for all of them together.

    The transform halves the size once a level and costs no parameters, so the networks work at an eighth of the image's
    size from the start. Features of the finer levels are brought to the coarsest one's size by strided convolutions.

    Args:
        in_channels: image channels.
        out_channels: feature channels; twice the latent channels in the paper.
        num_levels: levels of the pyramid; the stride is ``2 ** num_levels``.
        channels: base width of the U-Nets, a multiple of ``num_groups``.
        multipliers: widths of their stages as multiples of it.
        num_res_blocks: residual blocks of each stage.
        level_channels: channels of each level's features.
        dim: number of spatial axes, 1 to 3.
        num_groups: groups of each group normalisation.

    Raises:
        ValueError: for sizes below 1.

    Example:
        >>> encoder = WaveletEncoder(1, 8, channels=8, num_groups=4)
        >>> encoder(torch.zeros(1, 1, 16, 24)).shape
        torch.Size([1, 8, 2, 3])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 8,
        *,
        num_levels: int = 3,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 3),
        num_res_blocks: int = 2,
        level_channels: int = 12,
        dim: int = 2,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        check_dim(dim)
        if min(in_channels, out_channels, num_levels, channels, num_res_blocks, level_channels, *multipliers) < 1:
            raise ValueError(
                f"got num_levels={num_levels}, channels={channels}, multipliers={tuple(multipliers)}, "
                f"num_res_blocks={num_res_blocks}, level_channels={level_channels}; expected positive numbers"
            )
        self.dim = dim
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_levels = num_levels
        self.stride = 2**num_levels

        def unet(inputs: int, outputs: int) -> FlatUNet:
            return FlatUNet(
                inputs,
                outputs,
                channels=channels,
                multipliers=multipliers,
                num_res_blocks=num_res_blocks,
                dim=dim,
                num_groups=num_groups,
            )

        self.extract = nn.ModuleList(unet(2**dim * in_channels, level_channels) for _ in range(num_levels))
        self.shrink = nn.ModuleList(
            nn.Sequential(
                *(convolution(dim, level_channels, level_channels, 3, stride=2) for _ in range(num_levels - 1 - i))
            )
            for i in range(num_levels)
        )
        self.aggregate = unet(num_levels * level_channels, out_channels)

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
        found = []
        gain = 2.0 ** (self.dim / 2)
        for extract, shrink in zip(self.extract, self.shrink, strict=True):
            # Divided by the gain of a constant, the low band has the image's range at every level.
            bands = haar(x) / gain
            x = bands[:, : self.in_channels]
            found.append(shrink(extract(bands)))
        return self.aggregate(torch.cat(found, 1))
