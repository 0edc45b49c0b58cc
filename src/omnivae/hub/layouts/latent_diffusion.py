"""CompVis' latent diffusion: the first stage of its ``.ckpt`` files, and MedVAE, which has its layout in 2-D and 3-D.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Varma et al., MedVAE, 2025.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from torch import Tensor

from omnivae.hub.layouts.base import (
    Architecture,
    Layout,
    NotThisLayout,
    Reference,
    Rules,
    Shapes,
    indices,
    need,
    original,
    translate,
    without_randomness,
)
from omnivae.hub.layouts.diffusers import (
    attention_levels,
    diffusers_reference,
    kl_architecture,
    kl_arguments,
    without_gap,
)

_OURS: Rules = [
    (r"^quant_conv\.", "posterior.projection."),
    (r"^post_quant_conv\.", "decoder.post_quant."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.stages.\1.blocks."),
    (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.stages.\1.attentions."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.stages.\1.attentions."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.stages.\1.resample."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.stages.\1.blocks."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.stages.\1.resample."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"\.proj_out\.", ".out."),
]
_BLOCK = r"(?:norm[12]|conv[12]|nin_shortcut)"
_ATTENTION = r"(?:norm|q|k|v|proj_out)"
#: Latent diffusion's attention -> diffusers'; diffusers' own conversion knows the middle's only.
_TO_DIFFUSERS: Rules = [
    (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.up_blocks.\1.attentions."),
    (r"\.norm\.", ".group_norm."),
    (r"\.([qkv])\.", r".to_\1."),
    (r"\.proj_out\.", ".to_out.0."),
]


class LatentDiffusion(Layout):
    """The first stage of latent diffusion (``first_stage_model.``), alone or inside a checkpoint of the whole model."""

    name = "latent-diffusion AutoencoderKL"
    sentinel = r"encoder\.down\.0\.block\.0\.conv1\.weight"
    grammar = (
        rf"(?:en|de)coder\.(?:(?:down|up)\.\d+\.(?:block\.\d+\.{_BLOCK}|attn\.\d+\.{_ATTENTION}|(?:down|up)sample\.conv)"
        rf"|mid\.(?:block_[12]\.{_BLOCK}|attn_1\.{_ATTENTION})|conv_in|conv_out|norm_out)\.(?:weight|bias)"
        r"|(?:post_)?quant_conv\.(?:weight|bias)"
    )
    library = "diffusers"
    install = "pip install omnivae[diffusion]"

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        unused = {name: why for name in shapes if (why := _beside(name))}
        if any(".lora_down." in name for name in shapes):
            raise NotThisLayout(
                "low-rank factors (LoRA) lie beside its kernels, as in MedVAE's medvae_4_3_2d and medvae_8_4_2d: merge them "
                "into the kernels first, where they were trained"
            )
        if any(name.startswith("quantize.") for name in shapes):
            raise NotThisLayout("it quantises its latent (VQ); only latents with a mean and a variance are converted")
        stages = indices(shapes, r"encoder\.down\.(\d+)\.")
        widths = [need(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in stages]
        blocks = {len(indices(shapes, rf"encoder\.down\.{i}\.block\.(\d+)\.")) for i in stages}
        if len(blocks) > 1:
            raise NotThisLayout(f"its stages have different numbers of residual blocks: {sorted(blocks)}")
        arguments = kl_arguments(
            shapes,
            stated,
            widths=widths,
            num_res_blocks=blocks.pop(),
            attention=any(".mid.attn_1." in name for name in shapes),
            levels=attention_levels(shapes, [f"encoder.down.{i}.attn." for i in stages]),
        )
        last = len(stages) - 1
        names = {}
        for name in shapes:
            if name not in unused:
                names[name] = translate(_turned(name, last), _OURS)
        medical = any(name.startswith(("channel_ds.", "channel_proj.")) for name in unused)
        layout = "MedVAE" if medical else self.name
        return kl_architecture(layout, arguments, without_gap(names, arguments), shapes, stated, unused=unused)

    def wrote(self, architecture: Architecture) -> bool:
        return architecture.layout in (self.name, "MedVAE")

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        if architecture.arguments["dim"] == 3:
            return _medvae(architecture, tensors)
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        stages = len(architecture.arguments["channels"])
        config = {"down_block_types": ("",) * stages, "up_block_types": ("",) * stages}
        kept = {k: v for k, v in tensors.items() if k not in architecture.unused}
        inside = {k: kept.pop(k) for k in list(kept) if re.match(r"(?:encoder\.down|decoder\.up)\.\d+\.attn\.", k)}
        # diffusers' own conversion is a second opinion about the names.
        theirs = convert_ldm_vae_checkpoint(kept, config)
        for name, tensor in inside.items():
            flat = tensor.flatten(1) if tensor.ndim > 2 else tensor
            theirs[translate(_turned(name, stages - 1), _TO_DIFFUSERS)] = flat
        return diffusers_reference(architecture, theirs)


def _medvae(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
    """Return MedVAE's own 3-D class, the one that was published in this layout, with the weights in it."""
    a = architecture.arguments
    if a["num_groups"] != 32 or any(a.get("attention_levels", ())):
        raise ImportError(
            "MedVAE's 3-D class normalises in 32 groups and has no attention in its stages: there is no original to compare "
            "these weights with"
        )
    try:
        from medvae.models import AutoencoderKL_3D
    except ModuleNotFoundError as error:
        raise ImportError(
            "diffusers' class is 2-D, and medvae, whose class is 3-D, is not installed, so that nothing was compared with an "
            "original: pip install medvae"
        ) from error
    widths = a["channels"]
    described = {
        "ch": widths[0],
        "ch_mult": [width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths],
        "out_ch": a["out_channels"],
        "in_channels": a["in_channels"],
        "z_channels": a["latent_dim"],
        "num_res_blocks": a["num_res_blocks"],
        "resolution": 2 ** len(widths),
        "attn_resolutions": [],
        "attn_type": "vanilla" if a["mid_attention"] else "none",
        "double_z": True,
    }
    with redirect_stdout(StringIO()):  # it prints while it is built
        module: Any = without_randomness(lambda: AutoencoderKL_3D(described, a["latent_dim"], apply_channel_ds=False))
    module = original(module, {k: v for k, v in tensors.items() if k not in architecture.unused})

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = module.encode(x)
        return posterior.mean, posterior.logvar

    return Reference("medvae AutoencoderKL_3D", module, encode, module.decode)


def _turned(name: str, last: int) -> str:
    """Return a name with the decoder's stages counted from the latent; latent diffusion counts them from the image."""
    return re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{last - int(m[1])}.", name)


def _beside(name: str) -> str:
    """Return why a tensor is not needed to encode and decode, or an empty string."""
    if name.startswith(("loss.", "model_ema.")):
        return "of the training: discriminator, perceptual network or averages"
    if name.startswith(("channel_ds.", "channel_proj.")):
        return "MedVAE's second head on the latent, for classifiers; not on the way to the reconstruction"
    return ""
