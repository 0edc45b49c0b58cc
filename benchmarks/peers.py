"""The peers, built without downloads: diffusers' autoencoders, and how their weights map to ours."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

#: diffusers' name, ours; the test of the KL autoencoder holds both to be the same function.
KEY_MAP = [
    (r"^quant_conv\.", "posterior.projection."),
    (r"^post_quant_conv\.", "decoder.post_quant."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.0."),
    (r"\.mid_block\.attentions\.0\.", ".mid.1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.2."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".stages.\2.blocks."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".stages.\2.resample."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".out."),
]


def copy_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """Load a diffusers AutoencoderKL into our KL autoencoder."""
    state = {}
    for key, value in theirs.state_dict().items():
        for pattern, replacement in KEY_MAP:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    ours.load_state_dict(state)


def diffusers_kl() -> Any:
    """Build Stable Diffusion's autoencoder (83.7M parameters) with random weights."""
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of casting, which is what is measured here

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    ).eval()


def diffusers_dc() -> Any:
    """Build DC-AE f32c32 (312M parameters; Chen et al., Deep Compression Autoencoder, 2024) with random weights."""
    from diffusers import AutoencoderDC

    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return AutoencoderDC(
        latent_channels=32,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="pixel_unshuffle",
    ).eval()
