"""VisCy's 2.5-D VAE: stacks of microscopy slices through an image backbone to one vector, and back to a stack.

VisCy (github.com/mehta-lab/VisCy) defines the function and the names; its weights load as they are. Depth is folded into
channels by the stem, a backbone of timm sees an image, and the decoder's head unfolds depth again.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.depth import (
    PixelShuffleUpsample,
    PixelToVoxelHead,
    ResidualUnit,
    StemDepthtoChannels,
    UnitNorm,
    UpsampleMode,
    as_triple,
)
from omnivae.networks.layers import refuse_cond

#: Where a family of backbones keeps the convolution that the stem replaces.
STEMS = {"convnext": "stem_0", "resnet": "conv1"}


class VaeUpStage(nn.Module):
    """Enlarge and convolve.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
        scale_factor: factor of height and width.
        mode: "pixelshuffle", or "deconv" for a transposed convolution.
        conv_blocks: residual units after "pixelshuffle".
        norm_name: "batch" or "instance".
        upsample_pre_conv: "default" for a 3x3 convolution before pixels are shuffled, or ``None``.

    Example:
        >>> VaeUpStage(16, 6, 2, "pixelshuffle", 2, "batch", None)(torch.zeros(2, 16, 3, 5)).shape
        torch.Size([2, 6, 6, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale_factor: int,
        mode: UpsampleMode,
        conv_blocks: int,
        norm_name: UnitNorm,
        upsample_pre_conv: Literal["default"] | None,
    ) -> None:
        super().__init__()
        if upsample_pre_conv not in (None, "default") or conv_blocks < 1:
            raise ValueError(
                f"got upsample_pre_conv={upsample_pre_conv!r} and conv_blocks={conv_blocks}; expected None or 'default', and "
                "at least one block"
            )
        if mode == "deconv":
            transposed = nn.ConvTranspose2d(in_channels, out_channels, scale_factor, stride=scale_factor, bias=False)
            self.upsample: nn.Module = nn.Sequential()
            self.upsample.add_module("conv", transposed)
            self.conv = nn.Sequential(
                ResidualUnit(out_channels, out_channels, norm_name), nn.Conv2d(out_channels, out_channels, 1)
            )
        elif mode == "pixelshuffle":
            self.upsample = PixelShuffleUpsample(in_channels, scale_factor, upsample_pre_conv == "default")
            widths = [in_channels // scale_factor**2, *[out_channels] * conv_blocks]
            self.conv = nn.Sequential(*(ResidualUnit(a, b, norm_name) for a, b in itertools.pairwise(widths)))
        else:
            raise ValueError(f"got upsample_mode={mode!r}; expected 'deconv' or 'pixelshuffle'")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, out_channels, fH, fW]``."""
        return self.conv(self.upsample(x))


class VaeEncoder(nn.Module, Component):
    """Stack of slices to mean and log-variance of one vector.

    Args:
        backbone: a network of timm of the resnet or convnext family, such as "resnet50" or "convnext_tiny".
        in_channels: channels of the stack.
        in_stack_depth: slices of the stack.
        latent_dim: size of the vector.
        input_spatial_size: height and width.
        stem_kernel_size: kernel of the stem along depth, height and width.
        stem_stride: its stride.
        drop_path_rate: share of the backbone's residual branches that training leaves out.
        pretrained: start the backbone from timm's weights, which are downloaded.
        compatible: accept what VisCy accepts: rows, columns and slices that no kernel reaches.

    Raises:
        ValueError: for another backbone, or a stack that does not fit.

    Example:
        >>> encoder = VaeEncoder("test_convnext", 1, 4, 8, (32, 64), (2, 4, 4), (2, 4, 4)).eval()
        >>> encoder(torch.zeros(2, 1, 4, 32, 64)).mean.shape
        torch.Size([2, 8])
    """

    dim = 3
    stride = 1  # of a vector latent: the stack is neither padded nor cut to multiples

    def __init__(
        self,
        backbone: str = "resnet50",
        in_channels: int = 2,
        in_stack_depth: int = 16,
        latent_dim: int = 1024,
        input_spatial_size: Sequence[int] = (256, 256),
        stem_kernel_size: Sequence[int] = (2, 4, 4),
        stem_stride: Sequence[int] = (2, 4, 4),
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        *,
        compatible: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = as_triple("stem_kernel_size", stem_kernel_size), as_triple("stem_stride", stem_stride)
        self.backbone, self.latent_dim = backbone, latent_dim
        self.in_channels, self.out_channels = in_channels, 2 * latent_dim
        self.canvas = as_triple("in_stack_depth and input_spatial_size", (in_stack_depth, *input_spatial_size))
        self.gradient_checkpointing = False
        network = _backbone(backbone, drop_path_rate, pretrained)
        self.num_channels = tuple(network.feature_info.channels())
        self.stem = StemDepthtoChannels(in_channels, in_stack_depth, self.num_channels[0], kernel, stride)
        self.encoder = network
        reduction = 2 ** (len(self.num_channels) - 1)
        self.encoder_spatial_size = tuple(n // s // reduction for n, s in zip(self.canvas[1:], stride[1:], strict=True))
        floors = "convnext" in backbone
        _check_reach(self.canvas, kernel, stride, reduction, floors=floors, compatible=compatible)
        self.fc = nn.Linear(
            self.num_channels[-1] * self.encoder_spatial_size[0] * self.encoder_spatial_size[1], latent_dim
        )
        self.fc_mu = nn.Linear(latent_dim, latent_dim)
        self.fc_logvar = nn.Linear(latent_dim, latent_dim)

    def moments(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return mean and log-variance in one tensor.

        Args:
            x: ``[B, in_channels, D, H, W]`` of the size that it was built for.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, 2 * latent_dim]``.

        Raises:
            ValueError: for a condition, or another size.
        """
        refuse_cond(self, cond)
        if tuple(x.shape[2:]) != self.canvas:
            raise ValueError(f"got a stack of size {tuple(x.shape[2:])}; this encoder takes {self.canvas}")
        x = self.stem(x)
        if self.gradient_checkpointing and self.training:
            features = checkpoint(self.encoder, x, use_reentrant=False)[-1]
        else:
            features = self.encoder(x)[-1]
        h = self.fc(features.flatten(1))
        return torch.cat([self.fc_mu(h), self.fc_logvar(h)], dim=1)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> SimpleNamespace:
        """Return what VisCy's encoder returns.

        Args:
            x: as for :meth:`moments`.
            cond: as for :meth:`moments`.

        Returns:
            ``mean``, ``log_covariance`` and ``z``, each ``[B, latent_dim]``: z is a sample in training and the mean otherwise.
        """
        mean, logvar = self.moments(x, cond).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.training else mean
        return SimpleNamespace(mean=mean, log_covariance=logvar, z=z)


class MomentsEncoder(VaeEncoder):
    """:class:`VaeEncoder` as a network: it returns mean and log-variance in one tensor. Arguments and weights are the same.

    Example:
        >>> encoder = MomentsEncoder("test_convnext", 1, 4, 8, (32, 64), (2, 4, 4), (2, 4, 4)).eval()
        >>> encoder(torch.zeros(2, 1, 4, 32, 64)).shape
        torch.Size([2, 16])
    """

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return ``[B, 2 * latent_dim]``; see :meth:`VaeEncoder.moments`."""
        return self.moments(x, cond)


class VaeDecoder(nn.Module, Component):
    """Vector to stack of slices.

    Args:
        decoder_channels: width before each stage and after the last.
        latent_dim: size of the vector.
        out_channels: channels of the stack; the likelihood says how many it needs.
        out_stack_depth: slices of the stack.
        head_expansion_ratio: see :class:`~omnivae.networks.depth.PixelToVoxelHead`.
        strides: factor of each stage.
        encoder_spatial_size: edge of the image that the vector is laid out on, or its height and width.
        head_pool: average pixels in the head.
        upsample_mode: "pixelshuffle" or "deconv".
        conv_blocks: residual units of each stage.
        norm_name: "batch" or "instance".
        upsample_pre_conv: "default" or ``None``.
        output_size: depth, height and width that the stack is resampled to (trilinear), or ``None``.
        compatible: accept a vector that does not divide into the image, as VisCy does: a linear layer first makes it fit.

    Raises:
        ValueError: when the vector has fewer numbers than the image pixels, or does not divide into them.

    Example:
        >>> decoder = VaeDecoder((16, 8, 48), 8, 1, 4, strides=(2, 2), encoder_spatial_size=(1, 2))
        >>> decoder(torch.zeros(2, 8)).shape
        torch.Size([2, 1, 4, 16, 32])
    """

    dim = 3
    stride = 1

    def __init__(
        self,
        decoder_channels: Sequence[int] = (1024, 512, 256, 128),
        latent_dim: int = 1024,
        out_channels: int = 2,
        out_stack_depth: int = 16,
        head_expansion_ratio: int = 2,
        strides: Sequence[int] = (2, 2, 2, 1),
        encoder_spatial_size: int | Sequence[int] = 16,
        head_pool: bool = False,
        upsample_mode: UpsampleMode = "pixelshuffle",
        conv_blocks: int = 2,
        norm_name: UnitNorm = "batch",
        upsample_pre_conv: Literal["default"] | None = None,
        *,
        output_size: Sequence[int] | None = None,
        compatible: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.latent_dim = latent_dim, out_channels, latent_dim
        self.decoder_channels, self.out_stack_depth = tuple(decoder_channels), out_stack_depth
        self.spatial_size = _image_size(encoder_spatial_size)
        self.output_size = None if output_size is None else as_triple("output_size", output_size)
        self.gradient_checkpointing = False
        height, width = self.spatial_size
        self.spatial_channels = latent_dim // (height * width)
        _check_layout(latent_dim, height, width, compatible)
        self.latent_reshape = nn.Linear(latent_dim, self.spatial_channels * height * width)
        self.latent_proj = nn.Conv2d(self.spatial_channels, self.decoder_channels[0], 1)
        pairs = zip(self.decoder_channels[:-1], self.decoder_channels[1:], strict=True)
        self.decoder_stages = nn.ModuleList(
            VaeUpStage(a, b, factor, upsample_mode, conv_blocks, norm_name, upsample_pre_conv)
            # One factor too many is VisCy's own default.
            for (a, b), factor in zip(pairs, strides, strict=False)
        )
        if len(self.decoder_stages) != len(self.decoder_channels) - 1:
            raise ValueError(f"got {len(strides)} strides for {len(self.decoder_channels) - 1} stages")
        self.head = PixelToVoxelHead(
            self.decoder_channels[-1], out_channels, out_stack_depth, head_expansion_ratio, head_pool
        )
        factor = 4
        for stage_factor, _ in zip(strides, self.decoder_stages, strict=False):
            factor *= stage_factor
        #: Size of the stack before any resampling.
        self.natural_size = (out_stack_depth, height * factor, width * factor)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            z: ``[B, latent_dim]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, D, H, W]``: ``natural_size``, or ``output_size`` where given.

        Raises:
            ValueError: for a condition.
        """
        refuse_cond(self, cond)
        x = self.latent_proj(self.latent_reshape(z).unflatten(1, (self.spatial_channels, *self.spatial_size)))
        checkpointed = self.gradient_checkpointing and self.training
        for stage in self.decoder_stages:
            x = checkpoint(stage, x, use_reentrant=False) if checkpointed else stage(x)
        x = self.head(x)
        if self.output_size is None or tuple(x.shape[2:]) == self.output_size:
            return x
        return F.interpolate(x, size=self.output_size, mode="trilinear", align_corners=False)


def _backbone(name: str, drop_path_rate: float, pretrained: bool) -> Any:
    """Return a backbone of timm without its first convolution."""
    import timm

    family = next((family for family in STEMS if family in name), None)
    known = family is not None and name in timm.list_models(f"*{family}*")
    if known:
        network = timm.create_model(name, pretrained=pretrained, features_only=True, drop_path_rate=drop_path_rate)
        if STEMS[family] in dict(network.named_children()):  # type: ignore[index]
            setattr(network, STEMS[family], nn.Identity())  # type: ignore[index]
            return network
    raise ValueError(
        f"got backbone={name!r}; expected 'resnet50', 'convnext_tiny' or another of timm's resnet and convnext families whose "
        "stem begins with one convolution"
    )


def _image_size(size: int | Sequence[int]) -> tuple[int, int]:
    numbers = (size, size) if isinstance(size, int) else tuple(int(n) for n in size)
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(f"got encoder_spatial_size={size}; expected an edge, or height and width, each at least 1")
    return numbers  # type: ignore[return-value]


def _check_reach(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], reduction: int, *, floors: bool, compatible: bool
) -> None:
    """Refuse heights and widths of which something would be lost, and warn of slices that would be.

    ``floors`` says whether the backbone drops what its strides do not divide (convnext) or counts it (resnet), where the
    linear layer after it, which VisCy sizes for dropping, would not fit.
    """
    for name, n, k, s in zip(("height", "width"), size[1:], kernel[1:], stride[1:], strict=True):
        step = s * reduction
        if n < step:
            raise ValueError(f"got {name} {n}; stem and backbone need at least {step}")
        positions = (n - k) // s + 1
        if positions != n // s:
            raise ValueError(
                f"got a stem of kernel {k} and stride {s} for {name} {n}: the backbone would see {positions} positions where "
                f"the layer after it expects {n // s}; make kernel and stride equal"
            )
        if (positions % reduction and not floors) or (not compatible and (_unseen(n, k, s) or n % step)):
            raise ValueError(
                f"got {name} {n}; stem (kernel {k}, stride {s}) and backbone ({reduction}) see all of it for multiples of {step} "
                f"with equal kernel and stride: crop to {n - n % step}, or pad to {n - n % step + step}"
                + ("; compatible=True loses the rest as VisCy does" if floors or positions % reduction == 0 else "")
            )
    unseen = _unseen(size[0], kernel[0], stride[0])
    if unseen and not compatible:
        warnings.warn(
            f"the stem (kernel {kernel[0]}, stride {stride[0]} along depth) never sees slices {unseen} of {size[0]}, counted from "
            "0: choose another in_stack_depth for a model of your own; for one of VisCy's, compatible=True says that you know",
            stacklevel=6,
        )


def _unseen(n: int, kernel: int, stride: int) -> list[int]:
    """Return the places of an axis that no kernel reaches."""
    seen = {start + i for start in range(0, n - kernel + 1, stride) for i in range(kernel)}
    return sorted(set(range(n)) - seen)


def _check_layout(latent_dim: int, height: int, width: int, compatible: bool) -> None:
    places = height * width
    if latent_dim < places:
        raise ValueError(
            f"got latent_dim={latent_dim}; the decoder lays it out on {height}x{width} positions and needs at least {places}"
        )
    if latent_dim % places and not compatible:
        raise ValueError(
            f"got latent_dim={latent_dim}, which {height}x{width} positions do not divide; set it to "
            f"{latent_dim - latent_dim % places} or {latent_dim - latent_dim % places + places}, or compatible=True to cut it to "
            "fit as VisCy does"
        )
