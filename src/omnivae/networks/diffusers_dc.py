"""The deep compression autoencoder, computed by diffusers (Chen et al., Deep Compression Autoencoder, 2024).

Stages halve the size by convolutions with a shortcut from pixels to channels; the deep ones attend linearly. The latent is a
point, and the strides go up to 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.layers import check_divisible, refuse_cond

BlockType = Literal["ResBlock", "EfficientViTBlock"]


class DCEncoder(nn.Module, Component):
    """Images to latents; the encoder of diffusers' ``AutoencoderDC``, which needs ``pip install omnivae[diffusion]``.

    Args:
        in_channels: image channels.
        latent_dim: channels of z.
        channels: width of each stage, shallowest first; the stride is ``2 ** (len(channels) - 1)``.
        num_blocks: blocks of each stage; without blocks in the first, the image is halved before the second.
        block_types: kind of block of each stage.
        head_dim: width of each head of attention.
        multiscales: for each stage, the kernels of the further scales that its attention sees.
        downsample: "pixel_unshuffle" (pixels become channels) or "conv" (stride 2).
        out_shortcut: whether the last features, averaged in groups, are added to the latent.

    Raises:
        ImportError: where diffusers is not installed.
        ValueError: for stages that do not agree.

    Example:
        >>> import torch
        >>> encoder = DCEncoder(3, 4, (8, 16), (1, 1), block_types=("ResBlock",) * 2, multiscales=((), ()))
        >>> encoder(torch.zeros(1, 3, 8, 12)).shape
        torch.Size([1, 4, 4, 6])
    """

    dim = 2

    def __init__(
        self,
        in_channels: int = 3,
        latent_dim: int = 32,
        channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024),
        num_blocks: Sequence[int] = (2, 2, 2, 3, 3, 3),
        *,
        block_types: Sequence[BlockType] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        head_dim: int = 32,
        multiscales: Sequence[Sequence[int]] = ((), (), (), (5,), (5,), (5,)),
        downsample: Literal["pixel_unshuffle", "conv"] = "pixel_unshuffle",
        out_shortcut: bool = True,
    ) -> None:
        super().__init__()
        _check(channels, num_blocks=num_blocks, block_types=block_types, multiscales=multiscales)
        self.in_channels, self.out_channels = in_channels, latent_dim
        self.stride = 2 ** (len(channels) - 1)
        self.network: nn.Module = _original().Encoder(
            in_channels=in_channels,
            latent_channels=latent_dim,
            attention_head_dim=head_dim,
            block_type=tuple(block_types),
            block_out_channels=tuple(channels),
            layers_per_block=tuple(num_blocks),
            qkv_multiscales=tuple(tuple(kernels) for kernels in multiscales),
            downsample_block_type=downsample,
            out_shortcut=out_shortcut,
        )

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return latents.

        Args:
            x: ``[B, in_channels, H, W]``, multiples of the stride.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, latent_dim, H / stride, W / stride]``.

        Raises:
            ValueError: for a condition, or a size that the stride does not divide.
        """
        refuse_cond(self, cond)
        check_divisible(self, x)
        return self.network(x)


class DCDecoder(nn.Module, Component):
    """Latents to images; the decoder of diffusers' ``AutoencoderDC``, which needs ``pip install omnivae[diffusion]``.

    Args:
        latent_dim: channels of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        channels: width of each stage, shallowest first as in :class:`DCEncoder`.
        num_blocks: blocks of each stage; without blocks in the first, the image is doubled after the second.
        block_types: kind of block of each stage.
        head_dim: width of each head of attention.
        multiscales: for each stage, the kernels of the further scales that its attention sees.
        norms: normalisation of each stage.
        activations: activation of each stage's residual blocks, as diffusers names it.
        upsample: "pixel_shuffle" (channels become pixels) or "interpolate" (repetition).
        in_shortcut: whether the latent, repeated, is added to the first features.
        last_activation: activation before the last convolution, as diffusers names it.

    Raises:
        ImportError: where diffusers is not installed.
        ValueError: for stages that do not agree.

    Example:
        >>> import torch
        >>> stages = {"block_types": ("ResBlock",) * 2, "multiscales": ((), ()), "norms": ("rms_norm",) * 2}
        >>> decoder = DCDecoder(4, 3, (8, 16), (1, 1), activations=("silu",) * 2, **stages)
        >>> decoder(torch.zeros(1, 4, 4, 6)).shape
        torch.Size([1, 3, 8, 12])
    """

    dim = 2

    def __init__(
        self,
        latent_dim: int = 32,
        out_channels: int = 3,
        channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024),
        num_blocks: Sequence[int] = (3, 3, 3, 3, 3, 3),
        *,
        block_types: Sequence[BlockType] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        head_dim: int = 32,
        multiscales: Sequence[Sequence[int]] = ((), (), (), (5,), (5,), (5,)),
        norms: Sequence[Literal["rms_norm", "batch_norm"]] = ("rms_norm",) * 6,
        activations: Sequence[str] = ("silu",) * 6,
        upsample: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle",
        in_shortcut: bool = True,
        last_activation: str = "relu",
    ) -> None:
        super().__init__()
        _check(
            channels,
            num_blocks=num_blocks,
            block_types=block_types,
            multiscales=multiscales,
            norms=norms,
            activations=activations,
        )
        self.in_channels, self.out_channels = latent_dim, out_channels
        self.stride = 2 ** (len(channels) - 1)
        self.network: nn.Module = _original().Decoder(
            in_channels=out_channels,
            latent_channels=latent_dim,
            attention_head_dim=head_dim,
            block_type=tuple(block_types),
            block_out_channels=tuple(channels),
            layers_per_block=tuple(num_blocks),
            qkv_multiscales=tuple(tuple(kernels) for kernels in multiscales),
            norm_type=tuple(norms),
            act_fn=tuple(activations),
            upsample_block_type=upsample,
            in_shortcut=in_shortcut,
            conv_act_fn=last_activation,
        )

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
        return self.network(x)


def _check(channels: Sequence[int], **stages: Sequence[Any]) -> None:
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"got channels={tuple(channels)}; expected two stages or more of positive width")
    for name, values in stages.items():
        if len(values) != len(channels):
            raise ValueError(f"got {name}={tuple(values)} for {len(channels)} stages; expected one a stage")
    if min(stages["num_blocks"][1:]) < 1 or stages["num_blocks"][0] < 0:
        raise ValueError(
            f"got num_blocks={tuple(stages['num_blocks'])}; expected at least 1 in every stage but the first"
        )


def _original() -> Any:
    try:
        from diffusers.models.autoencoders import autoencoder_dc
    except ImportError as error:
        raise ImportError("the deep compression autoencoder is diffusers': pip install omnivae[diffusion]") from error
    return autoencoder_dc
