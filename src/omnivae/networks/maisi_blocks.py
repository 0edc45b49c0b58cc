"""Blocks of MAISI's autoencoder, under MONAI's names: normalisation, residual blocks, attention, resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae.networks.layers import add, silu
from omnivae.networks.slabs import SlabConv3d, SlabConvTranspose3d


class Named(nn.Module):
    """A module under the name ``conv``: MONAI wraps its convolutions once or twice.

    Args:
        conv: what is called.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Return ``conv(x)``."""
        return self.conv(x)


class MaisiGroupNorm(nn.GroupNorm):
    """Group normalisation, with MAISI's option to round what is normalised to half precision before scale and shift.

    Args:
        num_groups: number of groups; divides ``num_channels``.
        num_channels: channels of x.
        eps: added to the variance.
        norm_float16: round as MAISI does; under autocast on CUDA only.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float, norm_float16: bool = False) -> None:
        if num_channels % num_groups:
            raise ValueError(
                f"got {num_channels} channels and {num_groups} groups; expected groups that divide every width"
            )
        super().__init__(num_groups, num_channels, eps)
        self.norm_float16 = norm_float16

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, num_channels, *S]`` to the same shape."""
        autocast = torch.is_autocast_enabled(x.device.type) if x.device.type != "meta" else False
        if self.norm_float16:
            return self._half(x, autocast)
        if not autocast:
            return super().forward(x)
        # Autocast would hand on a float32 copy of every activation. The kernel accumulates its statistics in float32
        # for any input, and the convolution that follows rounds to the input's precision anyway.
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def _half(self, x: Tensor, autocast: bool) -> Tensor:
        if x.device.type != "cuda" or not autocast:
            raise ValueError(
                f"got norm_float16=True on {x.device.type}{'' if autocast else ' without autocast'}; it needs a GPU and "
                "torch.autocast('cuda'): build the model with norm_float16=False, which has the same weights"
            )
        with torch.autocast("cuda", enabled=False):
            normed = F.group_norm(x.float(), self.num_groups, eps=self.eps).half()
            shape = (1, -1, *[1] * (x.ndim - 2))
            return (normed * self.weight.view(shape)).half().add(self.bias.view(shape)).half()


class MaisiResBlock(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; the shortcut is a 1x1 convolution where they differ.
        norm_num_groups: groups of each group normalisation.
        norm_eps: added to each variance.
        wrappers: MONAI's name of a convolution has so many ``.conv``.
        num_splits: slabs of each convolution.
        dim_split: axis that is cut.
        norm_float16: see :class:`MaisiGroupNorm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm_num_groups: int,
        norm_eps: float,
        wrappers: int = 2,
        num_splits: int = 1,
        dim_split: int = 0,
        norm_float16: bool = False,
    ) -> None:
        super().__init__()

        def convolution(width: int, kernel_size: int) -> nn.Module:
            return maisi_convolution(
                width, out_channels, kernel_size, wrappers=wrappers, num_splits=num_splits, dim_split=dim_split
            )

        self.norm1 = MaisiGroupNorm(norm_num_groups, in_channels, norm_eps, norm_float16)
        self.conv1 = convolution(in_channels, 3)
        self.norm2 = MaisiGroupNorm(norm_num_groups, out_channels, norm_eps, norm_float16)
        self.conv2 = convolution(out_channels, 3)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else convolution(in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, out_channels, *S]``."""
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return add(h, self.nin_shortcut(x))


class MaisiAttention(nn.Module):
    """``x + attention(norm(x))`` between all positions, one head as wide as the features.

    Args:
        channels: channels of x.
        norm_num_groups: groups of the group normalisation.
        norm_eps: added to its variance.
        include_fc: whether a linear layer follows the attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
    """

    def __init__(
        self, channels: int, norm_num_groups: int, norm_eps: float, *, include_fc: bool, use_combined_linear: bool
    ) -> None:
        super().__init__()
        self.norm = MaisiGroupNorm(norm_num_groups, channels, norm_eps)
        names = ["qkv"] if use_combined_linear else ["to_q", "to_k", "to_v"]
        layers = {name: nn.Linear(channels, channels * 3 // len(names)) for name in names}
        if include_fc:
            layers["out_proj"] = nn.Linear(channels, channels)
        self.attn = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        # Positions first, channels last and contiguous: a strided head axis falls back to the slow kernel silently.
        h_BNC = self.norm(x).flatten(2).transpose(1, 2)
        if "qkv" in self.attn:
            projected = self.attn["qkv"](h_BNC).chunk(3, dim=-1)
        else:
            projected = tuple(self.attn[name](h_BNC) for name in ("to_q", "to_k", "to_v"))
        q, k, v = (part.unsqueeze(1).contiguous() for part in projected)
        h_BNC = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        if "out_proj" in self.attn:
            h_BNC = self.attn["out_proj"](h_BNC)
        return x + h_BNC.unflatten(1, x.shape[2:]).movedim(-1, 1)


class MaisiDownsample(nn.Module):
    """Halve the size by a convolution of stride 2 that pads only at the far end of each axis.

    Args:
        channels: channels of x.
        num_splits: slabs of the convolution.
        dim_split: axis that is cut.
    """

    def __init__(self, channels: int, num_splits: int, dim_split: int) -> None:
        super().__init__()
        self.conv = maisi_convolution(
            channels, channels, 3, stride=2, padding=0, num_splits=num_splits, dim_split=dim_split
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *(S / 2)]``."""
        return self.conv(F.pad(x, (0, 1) * 3))


class MaisiUpsample(nn.Module):
    """Double the size: trilinear interpolation and a convolution, or a transposed convolution with equal weights.

    Args:
        channels: channels of x.
        use_convtranspose: which of them; names and shapes of the weights do not tell.
        num_splits: slabs of the convolution.
        dim_split: axis that is cut.
    """

    def __init__(self, channels: int, use_convtranspose: bool, num_splits: int, dim_split: int) -> None:
        super().__init__()
        self.use_convtranspose = use_convtranspose
        if use_convtranspose:
            transposed = SlabConvTranspose3d(channels, channels, num_splits=num_splits, dim_split=dim_split)
            self.conv: nn.Module = Named(Named(transposed))
        else:
            self.conv = maisi_convolution(channels, channels, 3, num_splits=num_splits, dim_split=dim_split)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *(S * 2)]``."""
        if not self.use_convtranspose:
            x = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
        return self.conv(x)


def maisi_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    wrappers: int = 2,
    num_splits: int = 1,
    dim_split: int = 0,
) -> nn.Module:
    """Return a convolution under MONAI's names.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: edge of the kernel.
        stride: stride of every axis.
        padding: zeros at both ends of every axis; what keeps the size by default.
        wrappers: number of ``.conv`` in front of ``.weight``.
        num_splits: slabs that it runs in.
        dim_split: axis that is cut.

    Returns:
        The module.
    """
    conv: nn.Module = SlabConv3d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2 if padding is None else padding,
        num_splits=num_splits,
        dim_split=dim_split,
    )
    for _ in range(wrappers):
        conv = Named(conv)
    return conv
