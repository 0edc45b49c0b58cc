"""diffusers' ``AutoencoderKLCogVideoX``: the autoencoder of video of CogVideoX and CogVideoX1.5."""

from __future__ import annotations

from collections.abc import Mapping
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

_OURS: Rules = [(r"^(encoder|decoder)\.", r"\1.network.")]
_NORM = r"(?:norm_layer\.|conv_[yb]\.conv\.)?"
_BLOCK = rf"resnets\.\d+\.(?:norm[12]\.{_NORM}|conv[12]\.conv\.|conv_shortcut\.)"


class CogVideoX(Layout):
    """diffusers' AutoencoderKLCogVideoX; our networks run diffusers' own modules."""

    name = "diffusers AutoencoderKLCogVideoX"
    sentinel = r"decoder\.mid_block\.resnets\.0\.norm1\.conv_y\.conv\.weight"
    grammar = (
        rf"(?:en|de)coder\.(?:(?:down|up)_blocks\.\d+\.(?:{_BLOCK}|(?:down|up)samplers\.0\.conv\.)|mid_block\.{_BLOCK}"
        rf"|conv_in\.conv\.|conv_out\.conv\.|norm_out\.{_NORM})(?:weight|bias)"
    )
    library = "diffusers"
    install = "pip install omnivae[diffusion]"

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        if any(name.startswith(("quant_conv.", "post_quant_conv.")) for name in shapes):
            raise NotThisLayout("it has convolutions around its latent, which no published CogVideoX has")
        stages = indices(shapes, r"encoder\.down_blocks\.(\d+)\.")
        widths = [need(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight")[0] for i in stages]
        blocks = {len(indices(shapes, rf"encoder\.down_blocks\.{i}\.resnets\.(\d+)\.")) for i in stages}
        if len(blocks) > 1:
            raise NotThisLayout(f"its stages have different numbers of residual blocks: {sorted(blocks)}")
        arguments: dict[str, Any] = {
            "in_channels": need(shapes, "encoder.conv_in.conv.weight")[1],
            "out_channels": need(shapes, "decoder.conv_out.conv.weight")[0],
            "latent_channels": need(shapes, "decoder.conv_in.conv.weight")[1],
            "block_out_channels": widths,
            "layers_per_block": blocks.pop(),
            "act_fn": str(stated.get("act_fn", "silu")),
            "norm_eps": float(stated.get("norm_eps", 1e-6)),
            "norm_num_groups": groups_for(widths, stated),
            "temporal_compression_ratio": int(stated.get("temporal_compression_ratio", 4)),
        }
        pixels = value_range(stated)
        names = {name: translate(name, _OURS) for name in shapes}
        groups, time = arguments["norm_num_groups"], arguments["temporal_compression_ratio"]
        space = 2 ** (len(widths) - 1)
        fewer = _config(arguments | {"norm_num_groups": groups // 2}, pixels) if groups > 1 else None
        kept = {} if published(stated) is None else {"published": published(stated)}
        return Architecture(
            layout=self.name,
            arguments=arguments,
            config=_config(arguments, pixels),
            names=names,
            recipe=_recipe(arguments, pixels),
            facts={
                "axes": f"video (time, height, width), {arguments['in_channels']} channel(s) in, {arguments['out_channels']} out",
                "widths": ", ".join(map(str, widths)),
                "residual blocks": f"{arguments['layers_per_block']} a stage, one more in the decoder",
                "attention": "none; the decoder's norms see the latent",
                "compression": f"{time} x {space} x {space}, {arguments['latent_channels']} latent channels",
                "frames": "8k and 8k + 1 as they are, others padded by the last frame and cropped",
            },
            statistics=kept,
            choices=(
                Choice(
                    "frames of one latent",
                    str(time),
                    "default, or as stated: temporal_compression_ratio",
                    argument="temporal_compression_ratio",
                ),
                Choice("activation", arguments["act_fn"], "default, or as stated: act_fn", argument="act_fn"),
                Choice(
                    "eps of the norms",
                    f"{arguments['norm_eps']:g}",
                    "default, or as stated: norm_eps",
                    argument="norm_eps",
                ),
                Choice(
                    "groups of the norms",
                    str(groups),
                    "32 where it divides every width, or as stated",
                    () if fewer is None else (Alternative(f"{groups // 2} groups", fewer, names),),
                    argument="norm_num_groups",
                ),
                Choice(
                    "intensities",
                    f"{pixels}",
                    "usual for this layout, or as stated: value_range",
                    argument="value_range",
                ),
            ),
        )

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        import diffusers

        stages = len(architecture.arguments["block_out_channels"])
        module: Any = without_randomness(
            lambda: diffusers.AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * stages,
                up_block_types=("CogVideoXUpBlock3D",) * stages,
                **architecture.arguments,
            )
        )
        module = original(module, tensors)

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            posterior = module.encode(x).latent_dist
            return posterior.mean, posterior.logvar

        name = f"diffusers {diffusers.__version__} AutoencoderKLCogVideoX"
        return Reference(name, module, encode, lambda z: module.decode(z).sample)


def _recipe(a: Mapping[str, Any], pixels: list[float]) -> Config:
    made: Config = {
        "recipe": "cogvideox_vae",
        "in_channels": a["in_channels"],
        "latent_dim": a["latent_channels"],
        "channels": list(a["block_out_channels"]),
        "num_res_blocks": a["layers_per_block"],
        "time_stride": a["temporal_compression_ratio"],
        "num_groups": a["norm_num_groups"],
        "eps": a["norm_eps"],
        "activation": a["act_fn"],
    }
    made |= {"out_channels": a["out_channels"]} if a["out_channels"] != a["in_channels"] else {}
    return made | ({"value_range": pixels} if pixels != [-1.0, 1.0] else {})


def _config(a: Mapping[str, Any], pixels: list[float]) -> Config:
    latent = a["latent_channels"]
    shared: Config = {
        "num_res_blocks": a["layers_per_block"],
        "time_stride": a["temporal_compression_ratio"],
        "num_groups": a["norm_num_groups"],
        "eps": a["norm_eps"],
        "activation": a["act_fn"],
    }
    widths = list(a["block_out_channels"])
    encoder: Config = {"component": "CogVideoXEncoder", "in_channels": a["in_channels"], "latent_dim": latent}
    decoder: Config = {"component": "CogVideoXDecoder", "latent_dim": latent, "out_channels": a["out_channels"]}
    return {
        "component": "VAE",
        "encoder": encoder | {"channels": widths, **shared},
        "posterior": {"component": "SplitPosterior", "latent_dim": latent},
        "decoder": decoder | {"channels": widths[::-1], **shared},
        "likelihood": LAPLACE,
        "prior": STANDARD_NORMAL,
        "value_range": pixels,
    }
