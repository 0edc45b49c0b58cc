"""MAISI's autoencoder: volumes at a quarter of their size along each axis.

Guo et al., MAISI: Medical AI for Synthetic Imaging, 2024. The function and the names are those of MONAI's
``AutoencoderKlMaisi``, so that a file of its weights is read by renaming three prefixes (:func:`from_monai`). What the names
do not say: stride-2 convolutions pad at the far end of each axis only, sizes double by trilinear interpolation (or by a
transposed convolution with the same weights), and no activation stands before the last convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.component import Component
from omnivae.networks.layers import check_divisible, refuse_cond
from omnivae.networks.maisi_blocks import (
    MaisiAttention,
    MaisiDownsample,
    MaisiGroupNorm,
    MaisiResBlock,
    MaisiUpsample,
    Named,
    maisi_convolution,
)
from omnivae.networks.slabs import check_splits

#: Prefixes of MONAI's names and ours; every other name is the same.
PREFIXES = {
    "quant_conv_mu.": "posterior.quant_conv_mu.",
    "quant_conv_log_sigma.": "posterior.quant_conv_log_sigma.",
    "post_quant_conv.": "decoder.post_quant_conv.",
}


def from_monai(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of MONAI's ``AutoencoderKlMaisi`` to those of :class:`~omnivae.recipes.MaisiVAE`.

    Args:
        state_dict: MONAI's names to tensors.

    Returns:
        Our names to the same tensors; load them with ``strict=True``.

    Example:
        >>> import torch
        >>> list(from_monai({"quant_conv_mu.conv.bias": torch.zeros(4)}))
        ['posterior.quant_conv_mu.conv.bias']
    """
    return {_renamed(name, PREFIXES): tensor for name, tensor in state_dict.items()}


def to_monai(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of :class:`~omnivae.recipes.MaisiVAE` to those of MONAI's ``AutoencoderKlMaisi``.

    Args:
        state_dict: our names to tensors.

    Returns:
        MONAI's names to the same tensors. A likelihood with a learned scale adds a name that MONAI does not have.
    """
    return {_renamed(name, {ours: theirs for theirs, ours in PREFIXES.items()}): t for name, t in state_dict.items()}


class _Stack(nn.Module):
    """What encoder and decoder share: a list of blocks that may be recomputed in the backward pass."""

    dim = 3

    def __init__(self, *, in_channels: int, out_channels: int, levels: int, num_splits: int, dim_split: int) -> None:
        super().__init__()
        if dim_split not in (0, 1, 2) or num_splits < 1:
            raise ValueError(
                f"got num_splits={num_splits} and dim_split={dim_split}; expected at least 1 slab along axis 0, 1 or 2"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride = 2 ** (levels - 1)
        self.num_splits, self.dim_split = num_splits, dim_split
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList()

    def run(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Apply the blocks to features of a volume of ``size``."""
        if self.num_splits > 1:
            check_splits(size, self.stride, self.num_splits, self.dim_split)
        checkpointed = self.gradient_checkpointing and self.training
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        return x


class MaisiEncoder(_Stack, Component):
    """Volumes to features: residual stages with attention where asked.

    Args:
        in_channels: channels of the volume.
        out_channels: feature channels, as many as the latent has.
        num_channels: width of each stage, shallowest first; the stride is ``2 ** (len(num_channels) - 1)``.
        num_res_blocks: residual blocks of each stage.
        attention_levels: whether attention follows each residual block of a stage; nowhere by default.
        with_nonlocal_attn: whether two residual blocks with attention between them end it.
        norm_num_groups: groups of each group normalisation; divides every width.
        norm_eps: added to each variance.
        include_fc: whether a linear layer follows each attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
        num_splits: slabs that each convolution runs in: the same numbers with less workspace on a GPU. The size must allow
            it, see :func:`~omnivae.networks.slabs.legal_splits`.
        dim_split: axis that is cut, 0 to 2.
        norm_float16: round normalised features to half precision, as the released model was trained; under autocast on CUDA.

    Example:
        >>> import torch
        >>> encoder = MaisiEncoder(1, 4, (8, 16), (1, 1), norm_num_groups=4)
        >>> encoder(torch.zeros(1, 1, 4, 8, 6)).shape
        torch.Size([1, 4, 2, 4, 3])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 4,
        num_channels: Sequence[int] = (64, 128, 256),
        num_res_blocks: Sequence[int] = (2, 2, 2),
        *,
        attention_levels: Sequence[bool] | None = None,
        with_nonlocal_attn: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        num_splits: int = 1,
        dim_split: int = 0,
        norm_float16: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            levels=len(num_channels),
            num_splits=num_splits,
            dim_split=dim_split,
        )
        attention_levels = checked_levels(num_channels, num_res_blocks, attention_levels)
        make = _Maker(
            norm_num_groups, norm_eps, include_fc, use_combined_linear, num_splits, dim_split, norm_float16=norm_float16
        )
        self.blocks.append(make.convolution(in_channels, num_channels[0]))
        width = num_channels[0]
        for level, channels in enumerate(num_channels):
            for _ in range(num_res_blocks[level]):
                self.blocks.append(make.block(width, channels))
                width = channels
                if attention_levels[level]:
                    self.blocks.append(make.attention(width))
            if level < len(num_channels) - 1:
                self.blocks.append(MaisiDownsample(width, num_splits, dim_split))
        if with_nonlocal_attn:
            self.blocks.extend(make.middle(width))
        self.blocks.append(make.norm(width))
        self.blocks.append(make.convolution(width, out_channels))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, *S]``, S a multiple of the stride.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, *(S / stride)]``.

        Raises:
            ValueError: for a condition, a size that the stride does not divide, or slabs that the size does not allow.
        """
        refuse_cond(self, cond)
        check_divisible(self, x)
        return self.run(x, x.shape[2:])


class MaisiDecoder(_Stack, Component):
    """Latents to volumes: the mirror of :class:`MaisiEncoder`, after MONAI's ``post_quant_conv``.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        num_channels: width of each stage, deepest first.
        num_res_blocks: residual blocks of each stage, deepest first.
        attention_levels: whether attention follows each residual block of a stage, deepest first; nowhere by default.
        with_nonlocal_attn: whether two residual blocks with attention between them begin it.
        norm_num_groups: groups of each group normalisation; divides every width.
        norm_eps: added to each variance.
        include_fc: whether a linear layer follows each attention.
        use_combined_linear: whether one linear layer makes queries, keys and values.
        use_convtranspose: transposed convolutions instead of trilinear interpolation; the weights look the same.
        num_splits: slabs that each convolution runs in, as in :class:`MaisiEncoder`.
        dim_split: axis that is cut, 0 to 2.
        norm_float16: as in :class:`MaisiEncoder`.

    Example:
        >>> import torch
        >>> decoder = MaisiDecoder(4, 1, (16, 8), (1, 1), norm_num_groups=4)
        >>> decoder(torch.zeros(1, 4, 2, 4, 3)).shape
        torch.Size([1, 1, 4, 8, 6])
    """

    def __init__(
        self,
        latent_dim: int = 4,
        out_channels: int = 1,
        num_channels: Sequence[int] = (256, 128, 64),
        num_res_blocks: Sequence[int] = (2, 2, 2),
        *,
        attention_levels: Sequence[bool] | None = None,
        with_nonlocal_attn: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_convtranspose: bool = False,
        num_splits: int = 1,
        dim_split: int = 0,
        norm_float16: bool = False,
    ) -> None:
        super().__init__(
            in_channels=latent_dim,
            out_channels=out_channels,
            levels=len(num_channels),
            num_splits=num_splits,
            dim_split=dim_split,
        )
        attention_levels = checked_levels(num_channels, num_res_blocks, attention_levels)
        make = _Maker(
            norm_num_groups, norm_eps, include_fc, use_combined_linear, num_splits, dim_split, norm_float16=norm_float16
        )
        self.post_quant_conv = Named(nn.Conv3d(latent_dim, latent_dim, 1))
        width = num_channels[0]
        self.blocks.append(make.convolution(latent_dim, width))
        if with_nonlocal_attn:
            self.blocks.extend(make.middle(width))
        for level, channels in enumerate(num_channels):
            for _ in range(num_res_blocks[level]):
                self.blocks.append(make.block(width, channels))
                width = channels
                if attention_levels[level]:
                    self.blocks.append(make.attention(width))
            if level < len(num_channels) - 1:
                self.blocks.append(MaisiUpsample(width, use_convtranspose, num_splits, dim_split))
        self.blocks.append(make.norm(width))
        self.blocks.append(make.convolution(width, out_channels))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim, *S]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, *(S * stride)]``.

        Raises:
            ValueError: for a condition, or slabs that the size does not allow.
        """
        refuse_cond(self, cond)
        return self.run(self.post_quant_conv(x), [n * self.stride for n in x.shape[2:]])


class _Maker:
    """Builds blocks that share their options."""

    def __init__(
        self,
        groups: int,
        eps: float,
        include_fc: bool,
        combined: bool,
        num_splits: int,
        dim_split: int,
        *,
        norm_float16: bool,
    ) -> None:
        self.groups, self.eps, self.half = groups, eps, norm_float16
        self.linear = {"include_fc": include_fc, "use_combined_linear": combined}
        self.num_splits, self.dim_split = num_splits, dim_split

    def convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return maisi_convolution(in_channels, out_channels, 3, num_splits=self.num_splits, dim_split=self.dim_split)

    def norm(self, channels: int) -> nn.Module:
        return MaisiGroupNorm(self.groups, channels, self.eps, self.half)

    def attention(self, channels: int) -> nn.Module:
        return MaisiAttention(channels, self.groups, self.eps, **self.linear)

    def block(self, in_channels: int, out_channels: int) -> nn.Module:
        return MaisiResBlock(
            in_channels,
            out_channels,
            norm_num_groups=self.groups,
            norm_eps=self.eps,
            num_splits=self.num_splits,
            dim_split=self.dim_split,
            norm_float16=self.half,
        )

    def middle(self, channels: int) -> list[nn.Module]:
        # MONAI takes these two blocks from AutoencoderKL: one wrapper, no slabs, no rounding.
        first, last = (
            MaisiResBlock(channels, channels, norm_num_groups=self.groups, norm_eps=self.eps, wrappers=1)
            for _ in range(2)
        )
        return [first, self.attention(channels), last]


def checked_levels(
    num_channels: Sequence[int], num_res_blocks: Sequence[int], attention_levels: Sequence[bool] | None
) -> tuple[bool, ...]:
    """Return the attention levels, none by default.

    Args:
        num_channels: width of each stage.
        num_res_blocks: residual blocks of each stage.
        attention_levels: whether a stage has attention, or ``None``.

    Returns:
        One for each stage.

    Raises:
        ValueError: for lists of different lengths or numbers below one.
    """
    levels = tuple(attention_levels) if attention_levels is not None else (False,) * len(num_channels)
    if not num_channels or not len(num_channels) == len(num_res_blocks) == len(levels):
        raise ValueError(
            f"got {len(num_channels)} widths, {len(num_res_blocks)} numbers of residual blocks and {len(levels)} attention "
            "levels; expected one of each for every stage"
        )
    if min(*num_channels, *num_res_blocks) < 1:
        raise ValueError(f"got widths {tuple(num_channels)} and residual blocks {tuple(num_res_blocks)}; expected >= 1")
    return levels


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
