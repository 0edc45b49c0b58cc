"""Plain convolutional encoder and decoder: 4-wide, stride-2 convolutions (Radford et al., DCGAN, 2015), 1-D to 3-D.

Each stage is convolution -> normalisation -> ReLU and halves (doubles) the size. With an ``image_size`` the network
ends in (starts from) a flat vector; without one it is fully convolutional and takes any multiple of its stride. With a
``cond_dim`` it takes a condition, in one of the ways of :mod:`omnivae.networks.conditioning`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.conditioning import (
    ConditionedStage,
    Conditioning,
    check_cond,
    check_conditioning,
    modulation,
    with_planes,
)
from omnivae.networks.layers import (
    CONV,
    CONV_TRANSPOSE,
    check_dim,
    check_divisible,
    convolution,
    normalization,
)

ConvNorm = Literal["batch", "group", "none"]


class ConvEncoder(nn.Module, Component):
    """Images to features by one k4 s2 p1 convolution, normalisation and ReLU for each stage.

    Args:
        in_channels: image channels.
        channels: output channels of each stage; the stride is ``2 ** len(channels)``.
        dim: number of spatial axes, 1 to 3.
        norm: "batch", "group" (groups of at least four channels) or "none".
        image_size: size of the images, ``dim`` numbers >= 1, for flat features; ``None`` for spatial ones. The network
            takes this size rounded up to a multiple of the stride.
        cond_dim: size E of the condition, or ``None`` for a network without one.
        conditioning: "concat" (planes at the input), "batch_norm" (needs ``norm="batch"``) or "film"; counts only with
            a ``cond_dim``.

    Example:
        >>> import torch
        >>> ConvEncoder(1, (8, 16))(torch.zeros(2, 1, 12, 20)).shape
        torch.Size([2, 16, 3, 5])
        >>> ConvEncoder(1, (8, 16), image_size=(28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 784])
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        dim: int = 2,
        *,
        norm: ConvNorm = "batch",
        image_size: Sequence[int] | None = None,
        cond_dim: int | None = None,
        conditioning: Conditioning = "concat",
    ) -> None:
        super().__init__()
        _check(in_channels, channels, dim, norm)
        check_conditioning(cond_dim, conditioning, norm)
        self.dim = dim
        self.in_channels = in_channels
        self.cond_dim, self.conditioning = cond_dim, conditioning
        self.stride = 2 ** len(channels)
        self.grid = _grid(image_size, self.stride, dim)
        self.out_channels = channels[-1] * (1 if self.grid is None else math.prod(self.grid))
        # A bias before batch normalisation would be subtracted again.
        self.stages = nn.ModuleList(
            _stage(CONV[dim](i, o, 4, stride=2, padding=1, bias=norm != "batch"), o, dim, norm, cond_dim, conditioning)
            for i, o in zip((in_channels + _planes(cond_dim, conditioning), *channels), channels, strict=False)
        )

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, *S]``, S a multiple of the stride.
            cond: condition ``[B, cond_dim]``; ``None`` for a network built without.

        Returns:
            ``[B, out_channels]`` where ``image_size`` was given, else ``[B, out_channels, *(S / stride)]``.

        Raises:
            ValueError: for a size that does not fit, a missing condition, or one that the network was not built for.
        """
        check_cond(self, cond, len(x))
        check_divisible(self, x)
        if cond is not None and self.conditioning == "concat":
            x = with_planes(x, cond)
        for stage in self.stages:
            x = stage(x, cond) if isinstance(stage, ConditionedStage) else stage(x)
        if self.grid is None:
            return x
        if tuple(x.shape[2:]) != self.grid:
            got, want = (tuple(n * self.stride for n in grid) for grid in (x.shape[2:], self.grid))
            raise ValueError(f"got an image of size {got}; this network with flat features takes {want}")
        return x.flatten(1)


class ConvDecoder(nn.Module, Component):
    """Latents to likelihood parameters: the mirror of :class:`ConvEncoder`, without a final activation.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        channels: input channels of each stage, deepest first; the stride is ``2 ** len(channels)``.
        dim: number of spatial axes of the images, 1 to 3.
        norm: "batch", "group" (groups of at least four channels) or "none".
        image_size: size of the images for a vector latent; ``None`` for a spatial latent.
        cond_dim: size E of the condition, or ``None`` for a network without one.
        conditioning: "concat" (numbers or planes behind z), "batch_norm" (needs ``norm="batch"``) or "film"; counts only with
            a ``cond_dim``.

    Example:
        >>> import torch
        >>> ConvDecoder(4, 3, (16, 8))(torch.zeros(2, 4, 3, 5)).shape
        torch.Size([2, 3, 12, 20])
    """

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        channels: Sequence[int] = (128, 64, 32),
        *,
        dim: int = 2,
        norm: ConvNorm = "batch",
        image_size: Sequence[int] | None = None,
        cond_dim: int | None = None,
        conditioning: Conditioning = "concat",
    ) -> None:
        super().__init__()
        _check(latent_dim, channels, dim, norm)
        check_conditioning(cond_dim, conditioning, norm)
        self.dim = dim
        self.in_channels = latent_dim
        self.cond_dim, self.conditioning = cond_dim, conditioning
        self.out_channels = out_channels
        self.stride = 2 ** len(channels)
        self.grid = _grid(image_size, self.stride, dim)
        self.stem: nn.Module
        inputs = latent_dim + _planes(cond_dim, conditioning)
        if self.grid is None:
            self.stem = convolution(dim, inputs, channels[0], 3)
        else:
            self.stem = nn.Linear(inputs, channels[0] * math.prod(self.grid))
        if cond_dim is not None and conditioning != "concat":
            self.modulation = modulation(conditioning, cond_dim, channels[0], dim=dim)
        self.stages = nn.ModuleList(
            _stage(
                CONV_TRANSPOSE[dim](i, o, 4, stride=2, padding=1, bias=norm != "batch"),
                o,
                dim,
                norm,
                cond_dim,
                conditioning,
            )
            for i, o in pairwise(channels)
        )
        self.head = CONV_TRANSPOSE[dim](channels[-1], out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim]`` where ``image_size`` was given, else ``[B, latent_dim, *S]``.
            cond: condition ``[B, cond_dim]``; ``None`` for a network built without.

        Returns:
            ``[B, out_channels, *(S * stride)]``.

        Raises:
            ValueError: for a missing condition, or one that the network was not built for.
        """
        check_cond(self, cond, len(x))
        concat = self.conditioning == "concat"
        x = self.stem(with_planes(x, cond) if cond is not None and concat else x)
        if self.grid is not None:
            x = x.unflatten(1, (-1, *self.grid))
        if cond is not None and not concat:
            x = self.modulation(x, cond)
        for stage in self.stages:
            x = stage(x, cond) if isinstance(stage, ConditionedStage) else stage(x)
        return self.head(x)


def _stage(
    convolution: nn.Module,
    channels: int,
    dim: int,
    norm: ConvNorm,
    cond_dim: int | None,
    conditioning: Conditioning,
) -> nn.Module:
    # Groups of one channel would erase a 1x1 feature map: at least four, where the channels divide so.
    groups = math.gcd(max(channels // 4, 1), channels, 32) if norm == "group" else 1
    made = None if norm == "none" else normalization(norm, channels, dim=dim, num_groups=groups)
    if cond_dim is not None and conditioning != "concat":
        own = None if conditioning == "batch_norm" else made
        return ConditionedStage(convolution, own, modulation(conditioning, cond_dim, channels, dim=dim), nn.ReLU())
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
    if made is not None:
        layers["norm"] = made
    layers["act"] = nn.ReLU()
    return nn.Sequential(layers)


def _planes(cond_dim: int | None, conditioning: str) -> int:
    return cond_dim if cond_dim is not None and conditioning == "concat" else 0


def _grid(image_size: Sequence[int] | None, stride: int, dim: int) -> tuple[int, ...] | None:
    if image_size is None:
        return None
    if len(image_size) != dim or min(image_size) < 1:
        raise ValueError(f"got image_size={tuple(image_size)}; expected {dim} numbers of at least 1 (dim={dim})")
    return tuple(math.ceil(n / stride) for n in image_size)


def _check(in_channels: int, channels: Sequence[int], dim: int, norm: str) -> None:
    check_dim(dim)
    if in_channels < 1 or not channels or min(channels) < 1:
        raise ValueError(
            f"got {in_channels} input channels and channels={tuple(channels)}; expected positive numbers, one a stage"
        )
    if norm not in ("batch", "group", "none"):
        raise ValueError(f"got norm={norm!r}; expected 'batch', 'group' or 'none'")
