"""Between stacks of slices and images: a stem that folds depth into channels, a head that unfolds it, blocks for images.

Names and function are those of VisCy's models (github.com/mehta-lab/VisCy), so that its weights load by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UnitNorm = Literal["batch", "instance"]
UpsampleMode = Literal["deconv", "pixelshuffle"]

NORMS = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): nn.InstanceNorm2d,
    ("instance", 3): nn.InstanceNorm3d,
}


class StemDepthtoChannels(nn.Module):
    """A 3-D convolution whose output depth becomes channels: ``[B, C, D, H, W]`` to ``[B, C', H', W']``.

    Args:
        in_channels: channels of the stack.
        in_stack_depth: slices D.
        in_channels_encoder: channels C'; a multiple of the convolution's output depth.
        stem_kernel_size: kernel along depth, height and width.
        stem_stride: stride along depth, height and width.

    Raises:
        ValueError: when the stack is thinner than the kernel, or its depth does not divide the channels.

    Example:
        >>> StemDepthtoChannels(2, 16, 64, (2, 4, 4), (2, 4, 4))(torch.zeros(1, 2, 16, 8, 8)).shape
        torch.Size([1, 64, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        in_stack_depth: int,
        in_channels_encoder: int,
        stem_kernel_size: Sequence[int] = (5, 4, 4),
        stem_stride: Sequence[int] = (5, 4, 4),
    ) -> None:
        super().__init__()
        kernel, stride = as_triple("stem_kernel_size", stem_kernel_size), as_triple("stem_stride", stem_stride)
        if in_stack_depth < kernel[0]:
            raise ValueError(
                f"got in_stack_depth={in_stack_depth}; the stem's kernel needs at least {kernel[0]} slices"
            )
        depth = (in_stack_depth - kernel[0]) // stride[0] + 1
        if in_channels_encoder % depth:
            raise ValueError(
                f"got in_stack_depth={in_stack_depth}: the stem turns it into {depth} slices, which do not divide the "
                f"{in_channels_encoder} channels of the backbone; change in_stack_depth, stem_kernel_size or stem_stride"
            )
        self.conv = nn.Conv3d(in_channels, in_channels_encoder // depth, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, D, H, W]`` to ``[B, in_channels_encoder, H', W']``; depth is the fastest channel index."""
        return self.conv(x).flatten(1, 2)


class PixelToVoxelHead(nn.Module):
    """Images to stacks of four times their edge: ``[B, C, H, W]`` to ``[B, out_channels, out_stack_depth, 4H, 4W]``.

    Pixels are shuffled twice; between, a 3-D convolution over the depth that was folded into channels.

    Args:
        in_channels: channels of the image; ``4 * (out_stack_depth + 2)`` divides them.
        out_channels: channels of the stack.
        out_stack_depth: its slices.
        expansion_ratio: width of the convolution as a multiple of ``4 * out_channels``.
        pool: average 2x2 pixels after the first shuffle.

    Raises:
        ValueError: when the channels do not divide.

    Example:
        >>> PixelToVoxelHead(24, 1, 4, 2, False)(torch.zeros(1, 24, 3, 5)).shape
        torch.Size([1, 1, 4, 12, 20])
    """

    def __init__(
        self, in_channels: int, out_channels: int, out_stack_depth: int, expansion_ratio: int, pool: bool
    ) -> None:
        super().__init__()
        if in_channels % (4 * (out_stack_depth + 2)):
            raise ValueError(
                f"got {in_channels} channels for a head of {out_stack_depth} slices; expected a multiple of "
                f"4 * (out_stack_depth + 2) = {4 * (out_stack_depth + 2)}"
            )
        self.out_stack_depth = out_stack_depth
        self.pool = pool
        width = 4 * out_channels * expansion_ratio
        self.conv = nn.Sequential(
            _Unit(3, in_channels // 4 // (out_stack_depth + 2), width, padding=(0, 1, 1)),
            nn.Conv3d(width, 4 * out_channels, 1),
        )
        self._equal_phases()

    @torch.no_grad()
    def _equal_phases(self) -> None:
        # Aitken et al., Checkerboard artifact free sub-pixel convolution, 2017: the four pixels of a block start equal.
        weight: Tensor = self.conv[1].weight  # type: ignore[assignment]
        first = torch.empty_like(weight[::4])
        nn.init.kaiming_normal_(first)
        weight.copy_(first.repeat_interleave(4, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, out_channels, out_stack_depth, 4H, 4W]``."""
        x = F.pixel_shuffle(x, 2)
        if self.pool:
            x = F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, stride=1)
        x = self.conv(x.unflatten(1, (-1, self.out_stack_depth + 2)))
        return F.pixel_shuffle(x.transpose(1, 2), 2).transpose(1, 2)


class ResidualUnit(nn.Module):
    """Two convolutions, each with normalisation and PReLU, and a shortcut (the function of MONAI's ``ResidualUnit``).

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; the shortcut is a 1x1 convolution where they differ.
        norm: "batch" or "instance".

    Example:
        >>> ResidualUnit(4, 8, "batch")(torch.zeros(2, 4, 3, 5)).shape
        torch.Size([2, 8, 3, 5])
    """

    def __init__(self, in_channels: int, out_channels: int, norm: UnitNorm) -> None:
        super().__init__()
        units = [_Unit(2, in_channels, out_channels, norm=norm), _Unit(2, out_channels, out_channels, norm=norm)]
        self.conv = nn.Sequential(OrderedDict((f"unit{i}", unit) for i, unit in enumerate(units)))
        same = in_channels == out_channels
        self.residual: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, out_channels, H, W]``."""
        return self.conv(x) + self.residual(x)


class PixelShuffleUpsample(nn.Module):
    """Enlarge by moving channels into pixels, after a convolution where asked.

    Args:
        in_channels: channels of x.
        scale_factor: factor of height and width.
        pre_conv: a 3x3 convolution first.

    Raises:
        ValueError: when the square of the factor does not divide the channels.
    """

    def __init__(self, in_channels: int, scale_factor: int, pre_conv: bool) -> None:
        super().__init__()
        if in_channels % scale_factor**2:
            raise ValueError(f"got {in_channels} channels to shuffle into {scale_factor}x{scale_factor} pixels")
        self.scale_factor = scale_factor
        width = in_channels // scale_factor**2 * scale_factor**2
        block: nn.Module = nn.Conv2d(in_channels, width, 3, padding=1) if pre_conv else nn.Identity()
        self.pixelshuffle = nn.ModuleDict({"conv_block": block})

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C / f^2, fH, fW]``."""
        return F.pixel_shuffle(self.pixelshuffle["conv_block"](x), self.scale_factor)


class _Unit(nn.Module):
    """Convolution, normalisation, PReLU under MONAI's names ``conv``, ``adn.N`` and ``adn.A``."""

    def __init__(
        self,
        dim: Literal[2, 3],
        in_channels: int,
        out_channels: int,
        *,
        norm: UnitNorm = "instance",
        padding: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if (norm, dim) not in NORMS:
            raise ValueError(f"got norm_name={norm!r}; expected 'batch' or 'instance'")
        convolution = nn.Conv2d if dim == 2 else nn.Conv3d
        self.conv = convolution(in_channels, out_channels, 3, padding=(1,) * dim if padding is None else tuple(padding))  # type: ignore[arg-type]
        self.adn = nn.Sequential(OrderedDict(N=NORMS[norm, dim](out_channels), A=nn.PReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.adn(self.conv(x))


def as_triple(name: str, values: Sequence[int]) -> tuple[int, int, int]:
    """Return three positive numbers.

    Args:
        name: of the argument, for the message.
        values: what was given.

    Returns:
        The same as a tuple.

    Raises:
        ValueError: for another number of them, or one below 1.
    """
    numbers = tuple(int(n) for n in values)
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"got {name}={numbers}; expected depth, height and width, each at least 1")
    return numbers  # type: ignore[return-value]
