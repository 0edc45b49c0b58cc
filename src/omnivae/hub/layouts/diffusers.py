"""diffusers' ``AutoencoderKL``: Stable Diffusion's, SDXL's, SD3's and Flux's autoencoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from omnivae.hub.layouts.base import (
    LAPLACE,
    STANDARD_NORMAL,
    Alternative,
    Architecture,
    Choice,
    Config,
    Layout,
    NotThisLayout,
    Reference,
    Rules,
    Shapes,
    groups_for,
    indices,
    need,
    original,
    published,
    translate,
    value_range,
    without_randomness,
)

#: Names of attention before diffusers 0.17.
OLD: Rules = [
    (r"\.attentions\.(\d+)\.query\.", r".attentions.\1.to_q."),
    (r"\.attentions\.(\d+)\.key\.", r".attentions.\1.to_k."),
    (r"\.attentions\.(\d+)\.value\.", r".attentions.\1.to_v."),
    (r"\.attentions\.(\d+)\.proj_attn\.", r".attentions.\1.to_out.0."),
]
OURS: Rules = [
    (r"^quant_conv\.", "posterior.projection."),
    (r"^post_quant_conv\.", "decoder.post_quant."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.(?:down|up)_blocks\.(\d+)\.attentions\.", r".stages.\1.attentions."),
    (r"\.mid_block\.resnets\.0\.", ".mid.0."),
    (r"\.mid_block\.attentions\.0\.", ".mid.1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.2."),
    (r"\.(?:down|up)_blocks\.(\d+)\.resnets\.", r".stages.\1.blocks."),
    (r"\.(?:down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.", r".stages.\1.resample."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".out."),
]
_BLOCK = r"(?:norm[12]|conv[12]|conv_shortcut)"
_ATTENTION = r"(?:group_norm|to_[qkv]|to_out\.0|query|key|value|proj_attn)"


class DiffusersKL(Layout):
    """diffusers' AutoencoderKL; our KL autoencoder computes the same."""

    name = "diffusers AutoencoderKL"
    sentinel = r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight"
    grammar = (
        rf"(?:en|de)coder\.(?:(?:down|up)_blocks\.\d+\.(?:resnets\.\d+\.{_BLOCK}|attentions\.\d+\.{_ATTENTION}"
        rf"|(?:down|up)samplers\.0\.conv)|mid_block\.(?:resnets\.[01]\.{_BLOCK}|attentions\.0\.{_ATTENTION})"
        r"|conv_in|conv_out|conv_norm_out)\.(?:weight|bias)|(?:post_)?quant_conv\.(?:weight|bias)"
    )
    library = "diffusers"
    install = "pip install omnivae[diffusion]"

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        stages = indices(shapes, r"encoder\.down_blocks\.(\d+)\.")
        widths = [need(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in stages]
        blocks = {len(indices(shapes, rf"encoder\.down_blocks\.{i}\.resnets\.(\d+)\.")) for i in stages}
        if len(blocks) > 1:
            raise NotThisLayout(f"its stages have different numbers of residual blocks: {sorted(blocks)}")
        arguments = kl_arguments(
            shapes,
            stated,
            widths=widths,
            num_res_blocks=blocks.pop(),
            attention=any(".mid_block.attentions." in name for name in shapes),
            levels=attention_levels(shapes, [f"encoder.down_blocks.{i}.attentions." for i in stages]),
        )
        names = {name: translate(translate(name, OLD), OURS) for name in shapes}
        return kl_architecture(self.name, arguments, without_gap(names, arguments), shapes, stated)

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        return diffusers_reference(architecture, {translate(k, OLD): v for k, v in tensors.items()})


def kl_arguments(
    shapes: Shapes,
    stated: Mapping[str, Any],
    *,
    widths: list[int],
    num_res_blocks: int,
    attention: bool,
    levels: list[bool],
) -> dict[str, Any]:
    """Return the arguments of our KL autoencoder from what all its layouts share."""
    first, last = need(shapes, "encoder.conv_in.weight"), need(shapes, "decoder.conv_out.weight")
    latent = need(shapes, "decoder.conv_in.weight")[1]
    outputs = need(shapes, "encoder.conv_out.weight")[0]
    if outputs != 2 * latent:
        raise NotThisLayout(f"its encoder ends in {outputs} channels; expected mean and log-variance of {latent} each")
    if "post_quant_conv.weight" in shapes and shapes["post_quant_conv.weight"][:2] != (latent, latent):
        raise NotThisLayout(
            f"post_quant_conv maps {shapes['post_quant_conv.weight'][1]} to {latent} channels; ours keeps their number"
        )
    return {
        "in_channels": first[1],
        "out_channels": last[0],
        "latent_dim": latent,
        "channels": widths,
        "num_res_blocks": num_res_blocks,
        "dim": len(first) - 2,
        "num_groups": groups_for(widths, stated),
        "mid_attention": attention,
    } | ({"attention_levels": levels} if any(levels) else {})


def attention_levels(shapes: Shapes, starts: Sequence[str]) -> list[bool]:
    """Return for each stage whether any name starts as its attention does."""
    return [any(name.startswith(start) for name in shapes) for start in starts]


def without_gap(names: Mapping[str, str], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the names with the middle's second block where it is when no attention stands between the two."""
    if arguments["mid_attention"]:
        return dict(names)
    return {theirs: ours.replace(".mid.2.", ".mid.1.") for theirs, ours in names.items()}


def kl_architecture(
    layout: str,
    a: Mapping[str, Any],
    names: Mapping[str, str],
    shapes: Shapes,
    stated: Mapping[str, Any],
    *,
    unused: Mapping[str, str] | None = None,
) -> Architecture:
    """Return the architecture of one of the layouts of the KL autoencoder."""
    made: dict[str, str] = {}
    if "quant_conv.weight" not in shapes:
        made |= {"posterior.projection.weight": "identity", "posterior.projection.bias": "zeros"}
    if "post_quant_conv.weight" not in shapes:
        made |= {"decoder.post_quant.weight": "identity", "decoder.post_quant.bias": "zeros"}
    pixels = value_range(stated)
    config = _config(a, a["num_groups"], pixels)
    recipe = {"recipe": "kl_autoencoder", **{k: v for k, v in a.items() if k != "out_channels"}}
    if pixels != [-1.0, 1.0]:
        recipe["value_range"] = pixels
    stride = 2 ** (len(a["channels"]) - 1)
    factors = published(stated)
    fewer = a["num_groups"] // 2
    regroup = (Alternative(f"{fewer} groups", _config(a, fewer, pixels), names),) if fewer else ()
    return Architecture(
        layout=layout,
        arguments=dict(a),
        config=config,
        names=names,
        recipe=recipe if a["in_channels"] == a["out_channels"] else None,
        facts={
            "axes": f"{a['dim']}-D, {a['in_channels']} channel(s) in, {a['out_channels']} out",
            "widths": ", ".join(map(str, a["channels"])),
            "residual blocks": f"{a['num_res_blocks']} a stage, one more in the decoder",
            "attention": _attention(a),
            "compression": " x ".join([str(stride)] * a["dim"]) + f", {a['latent_dim']} latent channels",
            "up-sampling": "nearest",
        },
        statistics={"published": factors} if factors else {},
        unused=unused or {},
        made=made,
        choices=(
            Choice("up-sampling", "nearest", "the class of this layout"),
            Choice("padding of stride 2", "far end of each axis", "the class of this layout"),
            Choice("eps of the norms", "1e-06", "the class of this layout"),
            Choice(
                "groups of the norms",
                str(a["num_groups"]),
                "32 where it divides every width, or as stated",
                regroup,
                argument="norm_num_groups",
            ),
            Choice(
                "intensities", f"{pixels}", "usual for this layout, or as stated: value_range", argument="value_range"
            ),
        ),
    )


def _attention(a: Mapping[str, Any]) -> str:
    where = [str(w) for w, on in zip(a["channels"], a.get("attention_levels", ()), strict=False) if on]
    parts = [f"after each block at width {', '.join(where)}"] if where else []
    parts += ["middle of encoder and decoder"] if a["mid_attention"] else []
    return "; ".join(parts) or "none"


def _config(a: Mapping[str, Any], groups: int, pixels: list[float]) -> Config:
    shared = {"dim": a["dim"], "num_groups": groups, "mid_attention": a["mid_attention"]}
    shared["num_res_blocks"] = a["num_res_blocks"]
    latent = a["latent_dim"]
    encoder: Config = {"component": "KLEncoder", "in_channels": a["in_channels"], "out_channels": 2 * latent}
    decoder: Config = {"component": "KLDecoder", "latent_dim": latent, "out_channels": a["out_channels"]}
    if "attention_levels" in a:
        encoder["attention_levels"] = list(a["attention_levels"])
        decoder["attention_levels"] = list(a["attention_levels"])[::-1]
    return {
        "component": "VAE",
        "encoder": encoder | {"channels": list(a["channels"]), **shared},
        "posterior": {
            "component": "GaussianPosterior",
            "in_channels": 2 * latent,
            "latent_dim": latent,
            "dim": a["dim"],
        },
        "decoder": decoder | {"channels": list(a["channels"])[::-1], **shared},
        "likelihood": LAPLACE,
        "prior": STANDARD_NORMAL,
        "value_range": pixels,
    }


def diffusers_reference(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
    """Return diffusers' AutoencoderKL with weights under its names."""
    import diffusers

    a = architecture.arguments
    if a["dim"] != 2:
        raise ImportError(f"diffusers' AutoencoderKL is 2-D; there is no original to compare {a['dim']}-D weights with")
    attends = a.get("attention_levels", [False] * len(a["channels"]))
    module: Any = without_randomness(
        lambda: diffusers.AutoencoderKL(
            in_channels=a["in_channels"],
            out_channels=a["out_channels"],
            latent_channels=a["latent_dim"],
            block_out_channels=tuple(a["channels"]),
            down_block_types=tuple("AttnDownEncoderBlock2D" if on else "DownEncoderBlock2D" for on in attends),
            up_block_types=tuple("AttnUpDecoderBlock2D" if on else "UpDecoderBlock2D" for on in attends[::-1]),
            layers_per_block=a["num_res_blocks"],
            norm_num_groups=a["num_groups"],
            use_quant_conv="quant_conv.weight" in tensors,
            use_post_quant_conv="post_quant_conv.weight" in tensors,
            mid_block_add_attention=a["mid_attention"],
        )
    )
    module = original(module, tensors)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = module.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    name = f"diffusers {diffusers.__version__} AutoencoderKL"
    return Reference(name, module, encode, lambda z: module.decode(z).sample)
