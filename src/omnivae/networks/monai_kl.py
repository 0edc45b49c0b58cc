"""MONAI's ``AutoencoderKL`` in 1-D, 2-D and 3-D, under MONAI's names (Pinaya et al., Brain Imaging Generation, 2022).

It is latent diffusion's autoencoder with attention where asked, equal numbers of residual blocks in encoder and decoder,
and no activation before the last convolution. Three choices that its weights do not show are arguments, because public
re-implementations made others: how sizes double, where stride-2 convolutions pad, and that last activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.layers import CONV, CONV_TRANSPOSE, check_dim, check_divisible, convolution, refuse_cond
from omnivae.networks.maisi import checked_levels
from omnivae.networks.maisi_blocks import MaisiAttention, MaisiGroupNorm, Named

Upsampling = Literal["nearest", "linear", "transpose"]
Padding = Literal["end", "both"]

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


class MonaiResBlock(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``, under MONAI's names.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; the shortcut is a 1x1 convolution where they differ.
        dim: number of spatial axes.
        num_groups: groups of each group normalisation.
        eps: added to each variance.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dim: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = MaisiGroupNorm(num_groups, in_channels, eps)
        self.conv1 = Named(convolution(dim, in_channels, out_channels, 3))
        self.norm2 = MaisiGroupNorm(num_groups, out_channels, eps)
        self.conv2 = Named(convolution(dim, out_channels, out_channels, 3))
        self.nin_shortcut = (
            nn.Identity() if in_channels == out_channels else Named(convolution(dim, in_channels, out_channels, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *S]``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class MonaiDownsample(nn.Module):
    """Halve the size by a convolution of stride 2.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        padding: "end" for one zero at the far end of each axis, as MONAI does, "both" for one at either end.
    """

    def __init__(self, channels: int, dim: int, padding: Padding) -> None:
        super().__init__()
        self.pad = (0, 1) * dim if padding == "end" else (1, 1) * dim
        self.conv = Named(CONV[dim](channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *(S / 2)]``."""
        return self.conv(F.pad(x, self.pad))


class MonaiUpsample(nn.Module):
    """Double the size: interpolation and a convolution, or a transposed convolution of kernel 2.

    Args:
        channels: channels of x.
        dim: number of spatial axes.
        mode: "nearest" (MONAI's AutoencoderKL), "linear" (MAISI) or "transpose".
    """

    def __init__(self, channels: int, dim: int, mode: Upsampling) -> None:
        super().__init__()
        self.mode = mode
        self.interpolation = "nearest" if mode == "nearest" else _INTERPOLATION[dim]
        if mode == "transpose":
            self.deconv = CONV_TRANSPOSE[dim](channels, channels, 2, stride=2)
        else:
            self.postconv = Named(convolution(dim, channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *(S * 2)]``."""
        if self.mode == "transpose":
            return self.deconv(x)
        align = None if self.mode == "nearest" else False
        return self.postconv(F.interpolate(x, scale_factor=2.0, mode=self.interpolation, align_corners=align))


class _Blocks(nn.Module):
    """What encoder and decoder share: blocks in MONAI's order, and the makers of them."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        dim: int,
        num_groups: int,
        eps: float,
        include_fc: bool,
        use_combined_linear: bool,
        final_silu: bool,
    ) -> None:
        super().__init__()
        check_dim(dim)
        self.dim = dim
        self.stride = 2 ** (len(channels) - 1)
        self.gradient_checkpointing = False
        self.final_silu = final_silu
        self.blocks = nn.ModuleList()
        self._norm = (num_groups, eps)
        self._linear = {"include_fc": include_fc, "use_combined_linear": use_combined_linear}

    def add_convolution(self, in_channels: int, out_channels: int) -> None:
        self.blocks.append(Named(convolution(self.dim, in_channels, out_channels, 3)))

    def add_block(self, in_channels: int, out_channels: int) -> None:
        groups, eps = self._norm
        self.blocks.append(MonaiResBlock(in_channels, out_channels, dim=self.dim, num_groups=groups, eps=eps))

    def add_attention(self, channels: int) -> None:
        self.blocks.append(MaisiAttention(channels, *self._norm, **self._linear))

    def add_middle(self, channels: int) -> None:
        self.add_block(channels, channels)
        self.add_attention(channels)
        self.add_block(channels, channels)

    def add_output(self, channels: int, out_channels: int) -> None:
        self.blocks.append(MaisiGroupNorm(self._norm[0], channels, self._norm[1]))
        self.add_convolution(channels, out_channels)

    def run(self, x: Tensor) -> Tensor:
        checkpointed = self.gradient_checkpointing and self.training
        for block in list(self.blocks)[:-1]:
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        return self.blocks[-1](F.silu(x) if self.final_silu else x)


class MonaiKLEncoder(_Blocks, Component):
    """Images or volumes to features, as the encoder of MONAI's ``AutoencoderKL``.

    Args:
        in_channels: channels of the image.
        out_channels: feature channels, as many as the latent has.
        channels: width of each stage, shallowest first; the stride is ``2 ** (len(channels) - 1)``.
        num_res_blocks: residual blocks of each stage.
        attention_levels: whether attention follows each residual block of a stage; nowhere by default.
        dim: number of spatial axes, 1 to 3.
        with_nonlocal_attn: whether two residual blocks with attention between them end it.
        num_groups: groups of each group normalisation; divides every width.
        eps: added to each variance.
        include_fc: whether a linear layer follows each attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
        padding: where stride-2 convolutions pad: "end" of each axis as MONAI does, or "both" ends.
        final_silu: whether SiLU stands before the last convolution; not in MONAI.

    Example:
        >>> import torch
        >>> MonaiKLEncoder(1, 3, (8, 16), (1, 1), num_groups=4)(torch.zeros(1, 1, 8, 6)).shape
        torch.Size([1, 3, 4, 3])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 3,
        channels: Sequence[int] = (32, 64, 64, 64),
        num_res_blocks: Sequence[int] = (2, 2, 2, 2),
        *,
        attention_levels: Sequence[bool] | None = None,
        dim: int = 2,
        with_nonlocal_attn: bool = True,
        num_groups: int = 32,
        eps: float = 1e-6,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        padding: Padding = "end",
        final_silu: bool = False,
    ) -> None:
        if padding not in ("end", "both"):
            raise ValueError(f"got padding={padding!r}; expected 'end' or 'both'")
        levels = checked_levels(channels, num_res_blocks, attention_levels)
        super().__init__(
            channels,
            dim=dim,
            num_groups=num_groups,
            eps=eps,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            final_silu=final_silu,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        width = channels[0]
        self.add_convolution(in_channels, width)
        for level, wide in enumerate(channels):
            for _ in range(num_res_blocks[level]):
                self.add_block(width, wide)
                width = wide
                if levels[level]:
                    self.add_attention(width)
            if level < len(channels) - 1:
                self.blocks.append(MonaiDownsample(width, dim, padding))
        if with_nonlocal_attn:
            self.add_middle(width)
        self.add_output(width, out_channels)

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
        return self.run(x)


class MonaiKLDecoder(_Blocks, Component):
    """Latents to images or volumes, as ``post_quant_conv`` and the decoder of MONAI's ``AutoencoderKL``.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        channels: width of each stage, deepest first.
        num_res_blocks: residual blocks of each stage, deepest first.
        attention_levels: whether attention follows each residual block of a stage, deepest first; nowhere by default.
        dim: number of spatial axes, 1 to 3.
        with_nonlocal_attn: whether two residual blocks with attention between them begin it.
        num_groups: groups of each group normalisation; divides every width.
        eps: added to each variance.
        include_fc: whether a linear layer follows each attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
        upsample: how sizes double: "nearest" as MONAI does, "linear" as MAISI does, or "transpose".
        final_silu: whether SiLU stands before the last convolution; not in MONAI.

    Example:
        >>> import torch
        >>> MonaiKLDecoder(3, 1, (16, 8), (1, 1), num_groups=4)(torch.zeros(1, 3, 4, 3)).shape
        torch.Size([1, 1, 8, 6])
    """

    def __init__(
        self,
        latent_dim: int = 3,
        out_channels: int = 1,
        channels: Sequence[int] = (64, 64, 64, 32),
        num_res_blocks: Sequence[int] = (2, 2, 2, 2),
        *,
        attention_levels: Sequence[bool] | None = None,
        dim: int = 2,
        with_nonlocal_attn: bool = True,
        num_groups: int = 32,
        eps: float = 1e-6,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        upsample: Upsampling = "nearest",
        final_silu: bool = False,
    ) -> None:
        if upsample not in ("nearest", "linear", "transpose"):
            raise ValueError(f"got upsample={upsample!r}; expected 'nearest', 'linear' or 'transpose'")
        levels = checked_levels(channels, num_res_blocks, attention_levels)
        super().__init__(
            channels,
            dim=dim,
            num_groups=num_groups,
            eps=eps,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            final_silu=final_silu,
        )
        self.in_channels, self.out_channels = latent_dim, out_channels
        self.post_quant_conv = Named(convolution(dim, latent_dim, latent_dim, 1))
        width = channels[0]
        self.add_convolution(latent_dim, width)
        if with_nonlocal_attn:
            self.add_middle(width)
        for level, wide in enumerate(channels):
            for _ in range(num_res_blocks[level]):
                self.add_block(width, wide)
                width = wide
                if levels[level]:
                    self.add_attention(width)
            if level < len(channels) - 1:
                self.blocks.append(MonaiUpsample(width, dim, upsample))
        self.add_output(width, out_channels)

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
        return self.run(self.post_quant_conv(x))
