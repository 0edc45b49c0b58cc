"""Swin encoder and decoder: stages of shifted-window attention over 4x4 patches, in 2-D.

Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2021; the decoder's patch
expanding is that of Cao et al., Swin-Unet, 2021. The blocks are timm's. Between stem and head
features are ``[B, H, W, C]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.layers import check_divisible, refuse_cond


class PatchMerging(nn.Module):
    """Halve the size: join each 2x2 block of positions, normalise, project (Swin Transformer, section 3.1).

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.projection = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, in_channels]`` to ``[B, H / 2, W / 2, out_channels]``."""
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
        return self.projection(self.norm(x))


class PatchExpanding(nn.Module):
    """Double the size: project each position to a 2x2 block, normalise (Swin-Unet, section 3.4).

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(in_channels, 4 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, in_channels]`` to ``[B, 2 H, 2 W, out_channels]``."""
        b, h, w, _ = x.shape
        x = self.projection(x).reshape(b, h, w, 2, 2, -1).transpose(2, 3).reshape(b, 2 * h, 2 * w, -1)
        return self.norm(x)


class SwinEncoder(nn.Module, Component):
    """Images to features: patches, then stages of window attention joined by patch merging.

    Any multiple of the stride goes through, whatever the window: a window that reaches over the edge is filled with
    zeros inside each block, as in timm.

    Args:
        in_channels: image channels.
        dims: width of each stage, shallowest first, multiples of ``head_dim``; the stride is
            ``patch_size * 2 ** (len(dims) - 1)``.
        depths: blocks of each stage; every second one has shifted windows.
        window_size: edge of a window in positions.
        head_dim: channels of an attention head.
        mlp_ratio: hidden channels of the feed-forward network over channels.
        patch_size: edge of a patch in pixels.

    Raises:
        ValueError: for dims and depths that do not fit each other or the heads.

    Example:
        >>> import torch
        >>> SwinEncoder(3, (32, 64), (2, 2), window_size=4)(torch.zeros(1, 3, 16, 40)).shape
        torch.Size([1, 64, 2, 5])
    """

    dim = 2

    def __init__(
        self,
        in_channels: int = 3,
        dims: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (2, 2, 10),
        *,
        window_size: int = 8,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        _check(dims, depths, window_size, head_dim, patch_size)
        self.in_channels = in_channels
        self.out_channels = dims[-1]
        self.stride = patch_size * 2 ** (len(dims) - 1)
        self.gradient_checkpointing = False
        self.stem = nn.Conv2d(in_channels, dims[0], patch_size, stride=patch_size)
        self.stem_norm = nn.LayerNorm(dims[0])
        self.stages = _stages(dims, depths, window_size, head_dim, mlp_ratio)
        self.resamples = nn.ModuleList(PatchMerging(i, o) for i, o in pairwise(dims))
        self.norm_out = nn.LayerNorm(dims[-1])
        self.apply(_initialize)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, H, W]``, multiples of the stride.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, H / stride, W / stride]``.

        Raises:
            ValueError: for a condition, or a size that the stride does not divide.
        """
        refuse_cond(self, cond)
        check_divisible(self, x)
        x = self.stem_norm(self.stem(x).movedim(1, -1))
        x = _run(self.stages, self.resamples, x, self.gradient_checkpointing and self.training)
        return self.norm_out(x).movedim(-1, 1)


class SwinDecoder(nn.Module, Component):
    """Latents to likelihood parameters: the mirror of :class:`SwinEncoder`, patch expanding for patch merging.

    The head is a 3x3 convolution and a pixel shuffle (Liang et al., SwinIR, 2021), which sees across patch borders.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        dims: width of each stage, deepest first, multiples of ``head_dim``.
        depths: blocks of each stage, deepest first.
        window_size: edge of a window in positions.
        head_dim: channels of an attention head.
        mlp_ratio: hidden channels of the feed-forward network over channels.
        patch_size: edge of a patch in pixels.

    Raises:
        ValueError: for dims and depths that do not fit each other or the heads.

    Example:
        >>> import torch
        >>> SwinDecoder(4, 3, (64, 32), (2, 2), window_size=4)(torch.zeros(1, 4, 2, 5)).shape
        torch.Size([1, 3, 16, 40])
    """

    dim = 2

    def __init__(
        self,
        latent_dim: int = 32,
        out_channels: int = 3,
        dims: Sequence[int] = (384, 192, 96),
        depths: Sequence[int] = (10, 2, 2),
        *,
        window_size: int = 8,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        _check(dims, depths, window_size, head_dim, patch_size)
        self.in_channels = latent_dim
        self.out_channels = out_channels
        self.patch_size = patch_size
        self.stride = patch_size * 2 ** (len(dims) - 1)
        self.gradient_checkpointing = False
        self.stem = nn.Linear(latent_dim, dims[0])
        self.stages = _stages(dims, depths, window_size, head_dim, mlp_ratio)
        self.resamples = nn.ModuleList(PatchExpanding(i, o) for i, o in pairwise(dims))
        self.norm_out = nn.LayerNorm(dims[-1])
        self.head = nn.Conv2d(dims[-1], out_channels * patch_size**2, 3, padding=1)
        self.apply(_initialize)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim, H, W]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, H * stride, W * stride]``.

        Raises:
            ValueError: for a condition.
        """
        refuse_cond(self, cond)
        x = self.stem(x.movedim(1, -1))
        x = _run(self.stages, self.resamples, x, self.gradient_checkpointing and self.training)
        return F.pixel_shuffle(self.head(self.norm_out(x).movedim(-1, 1)), self.patch_size)


def _stages(
    dims: Sequence[int], depths: Sequence[int], window_size: int, head_dim: int, mlp_ratio: float
) -> nn.ModuleList:
    try:
        from timm.models.swin_transformer import SwinTransformerBlock
    except ImportError as error:
        raise ImportError("the Swin networks need the package timm: pip install timm") from error

    def block(width: int, shift: int) -> nn.Module:
        made = SwinTransformerBlock(
            width,
            # Sizes come with each input: windows are never shrunk to a grid, masks are made for the grid at hand.
            input_resolution=(window_size, window_size),
            always_partition=True,
            dynamic_mask=True,
            num_heads=width // head_dim,
            head_dim=head_dim,
            window_size=window_size,
            shift_size=shift,
            mlp_ratio=mlp_ratio,
        )
        # timm decides from a process-wide switch; the fused kernel is the same function without the attention matrix.
        made.attn.fused_attn = True  # type: ignore[misc]
        return made

    return nn.ModuleList(
        nn.ModuleList(block(width, window_size // 2 if i % 2 else 0) for i in range(depth))
        for width, depth in zip(dims, depths, strict=True)
    )


def _run(stages: nn.ModuleList, resamples: nn.ModuleList, x: Tensor, checkpointed: bool) -> Tensor:
    for stage, resample in zip(stages, (*resamples, None), strict=True):
        for block in stage:  # type: ignore[attr-defined]
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        if resample is not None:
            x = resample(x)
    return x


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(dims: Sequence[int], depths: Sequence[int], window_size: int, head_dim: int, patch_size: int) -> None:
    if not dims or len(dims) != len(depths) or min(depths) < 1:
        raise ValueError(
            f"got dims={tuple(dims)} and depths={tuple(depths)}; expected as many of each, depths at least 1"
        )
    if head_dim < 1 or any(width < 1 or width % head_dim for width in dims):
        raise ValueError(
            f"got dims={tuple(dims)} and head_dim={head_dim}; expected widths that are multiples of head_dim"
        )
    if window_size < 2 or patch_size < 1:
        raise ValueError(f"got window_size={window_size} and patch_size={patch_size}; expected at least 2 and 1")
