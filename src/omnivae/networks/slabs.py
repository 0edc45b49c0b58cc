"""Convolutions that run in slabs along one axis: the same numbers, a smaller workspace.

A slab carries the neighbours that its kernel reads, so that nothing depends on where the cuts are. MONAI's
AutoencoderKlMaisi has the option under the same names (``num_splits``, ``dim_split``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def legal_splits(length: int, stride: int) -> list[int]:
    """Return the numbers of slabs that an axis may be cut into at every level of a network.

    MONAI computes a wrong shape or fails for any other number: ``length % (stride * n) == 0`` and at least three
    positions a slab where the network is coarsest.

    Args:
        length: size of the axis in voxels.
        stride: total stride of the network.

    Returns:
        In ascending order; always with 1.

    Example:
        >>> legal_splits(96, 4)
        [1, 2, 3, 4, 6, 8]
    """
    return [1] + [n for n in range(2, length // (3 * stride) + 1) if length % (stride * n) == 0]


def check_splits(size: Sequence[int], stride: int, num_splits: int, dim_split: int) -> None:
    """Raise ``ValueError`` unless ``num_splits`` slabs are legal along axis ``dim_split``.

    Args:
        size: spatial size in voxels, after padding.
        stride: total stride of the network.
        num_splits: number of slabs.
        dim_split: axis that is cut, 0 to 2.
    """
    length = size[dim_split]
    legal = legal_splits(length, stride)
    if num_splits not in legal:
        raise ValueError(
            f"got num_splits={num_splits} along axis {dim_split} of {length} voxels; a slab holds a multiple of {stride} voxels "
            f"and at least {3 * stride}: set num_splits to {_either(legal)}, or dim_split to another axis"
        )


class SlabConv3d(nn.Conv3d):
    """A 3-D convolution with cubic kernel, stride and padding that may run in slabs.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: edge of the kernel.
        stride: stride of every axis.
        padding: zeros at both ends of every axis.
        num_splits: number of slabs; 1 for an ordinary convolution.
        dim_split: axis that is cut, 0 to 2.

    Example:
        >>> SlabConv3d(1, 2, 3, padding=1, num_splits=3)(torch.zeros(1, 1, 6, 4, 4)).shape
        torch.Size([1, 2, 6, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        num_splits: int = 1,
        dim_split: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.num_splits, self.dim_split = num_splits, dim_split

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *S']``."""
        if self.num_splits == 1:
            return super().forward(x)
        axis, kernel = self.dim_split, self.kernel_size[0]
        stride, pad = self.stride[0], int(self.padding[0])
        length = x.shape[axis + 2]
        ends = _cuts((length + 2 * pad - kernel) // stride + 1, self.num_splits)
        padding = [0 if i == axis else pad for i in range(3)]
        parts = []
        for start, stop in ends:
            first, last = start * stride - pad, (stop - 1) * stride - pad + kernel
            slab = x.narrow(axis + 2, max(first, 0), min(last, length) - max(first, 0))
            # F.pad counts axes from the last one.
            zeros = [0, 0] * (2 - axis) + [max(-first, 0), max(last - length, 0)]
            if any(zeros):
                slab = F.pad(slab, zeros)
            parts.append(F.conv3d(slab, self.weight, self.bias, self.stride, padding))  # type: ignore[arg-type]
        return torch.cat(parts, dim=axis + 2)


class SlabConvTranspose3d(nn.ConvTranspose3d):
    """The transposed convolution that doubles a size (kernel 3, stride 2, padding 1, output padding 1), perhaps in slabs.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        num_splits: number of slabs; 1 for an ordinary transposed convolution.
        dim_split: axis that is cut, 0 to 2.

    Example:
        >>> SlabConvTranspose3d(1, 2, num_splits=3)(torch.zeros(1, 1, 6, 4, 4)).shape
        torch.Size([1, 2, 12, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_splits: int = 1, dim_split: int = 0) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.num_splits, self.dim_split = num_splits, dim_split

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *(S * 2)]``."""
        if self.num_splits == 1:
            return super().forward(x, output_size)
        axis = self.dim_split + 2
        length = x.shape[axis]
        parts = []
        for start, stop in _cuts(length, self.num_splits):
            # Output 2i comes from input i alone, output 2i + 1 from i and i + 1.
            slab = x.narrow(axis, start, min(stop + 1, length) - start)
            parts.append(super().forward(slab).narrow(axis, 0, 2 * (stop - start)))
        return torch.cat(parts, dim=axis)


def _cuts(length: int, n: int) -> list[tuple[int, int]]:
    edges = [length * i // n for i in range(n + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
