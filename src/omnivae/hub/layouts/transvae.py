"""TransVAE, under our names, as ``model_state_dict`` of a training checkpoint holds it; its authors published no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from omnivae.hub.layouts.base import (
    Alternative,
    Architecture,
    Choice,
    Layout,
    NotThisLayout,
    Reference,
    Shapes,
    indices,
    need,
)


class TransVAELayout(Layout):
    """TransVAE: stages of convolution below, of attention above."""

    name = "TransVAE"
    sentinel = r"encoder\.stages\.0\.0\.(?:norm1|attention\.qkv)\.weight"
    grammar = (
        r"(?:en|de)coder\.(?:stages\.\d+\.\d+\.(?:table|(?:norm[12]|conv[12]|attention\.(?:qkv|q_norm|k_norm|projection)"
        r"|ffn\.(?:expand|spatial|contract))\.(?:weight|bias))|(?:stem|head)(?:\.\d)?\.(?:weight|bias)"
        r"|(?:down|up)samples\.\d+\.conv\.(?:weight|bias)|(?:norm_out|conv_in)\.(?:weight|bias))"
        r"|posterior\.projection\.(?:weight|bias)"
    )

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        if any(".main_path." in name for name in shapes) or "conv_mu.weight" in shapes:
            raise NotThisLayout(
                "these are the names of a re-implementation that circulates (conv_mu, main_path, dc_conv); it computes another "
                "function than ours, with group norms in its convolutional blocks and a learned shortcut around each "
                "resampling, so that its weights cannot be converted"
            )
        stages = indices(shapes, r"encoder\.stages\.(\d+)\.")
        depths, widths, conv_stages = [], [], 0
        for i in stages:
            blocks = indices(shapes, rf"encoder\.stages\.{i}\.(\d+)\.norm1\.weight")
            if not blocks:
                raise NotThisLayout(f"stage {i} of the encoder has no blocks")
            depths.append(len(blocks))
            widths.append(need(shapes, f"encoder.stages.{i}.{blocks[0]}.norm1.weight")[0])
            conv_stages += any(n.startswith(f"encoder.stages.{i}.") and ".conv1." in n for n in shapes)
        attention = [n for n in shapes if n.startswith("encoder.") and n.endswith("attention.q_norm.weight")]
        table = any(n.endswith(".table") for n in shapes)
        stem = "sequential-conv" if "encoder.stem.0.weight" in shapes else "single-conv"
        first = need(shapes, "encoder.stem.0.weight" if stem == "sequential-conv" else "encoder.stem.weight")
        arguments: dict[str, Any] = {
            "compression_ratio": 2 ** (len(stages) - 1),
            "latent_dim": need(shapes, "decoder.conv_in.weight")[1],
            "depths": depths,
            "base_dims": widths,
            "num_conv_stages": conv_stages,
            "in_channels": first[1],
            "norm": "layer" if "encoder.norm_out.bias" in shapes else "rms",
            "stem": stem,
            "use_absolute_positions": table,
            "use_rope": bool(stated.get("use_rope", not table)),
            "use_dc_path": bool(stated.get("use_dc_path", True)),
            "input_resolution": int(stated.get("input_resolution", 256)),
        }
        if table:
            grid = next(shape for name, shape in shapes.items() if name.endswith(".table"))[-1]
            arguments["input_resolution"] = int(stated.get("input_resolution", grid * 2**conv_stages))
        if attention:
            block = attention[0].removesuffix("attention.q_norm.weight")
            wide = need(shapes, f"{block}ffn.expand.weight")
            spatial = shapes.get(f"{block}ffn.spatial.weight")
            arguments["head_dim"] = shapes[attention[0]][0]
            arguments["mlp_ratio"] = wide[0] / wide[1]
            arguments["ffn"] = "standard" if spatial is None else "dwconv" if spatial[1] == 1 else "fullconv"
            arguments["use_conv_ffn"] = spatial is not None
        config = {"component": "TransVAE", "variant": "tiny", **arguments}
        names = {name: name for name in shapes}

        def other(label: str, key: str) -> Alternative:
            return Alternative(label, config | {key: not config[key]}, names)

        choices = [
            Choice(
                "shortcut of the resampling",
                "pixels to channels" if config["use_dc_path"] else "none",
                "default, or as stated: use_dc_path",
                (other("none" if config["use_dc_path"] else "pixels to channels", "use_dc_path"),),
                argument="use_dc_path",
            )
        ]
        if attention:
            rotary = config["use_rope"]
            words = ("rotary", "none") if rotary else ("none", "rotary")
            choices.append(
                Choice(
                    "positions",
                    words[0],
                    "default, or as stated: use_rope",
                    (other(words[1], "use_rope"),),
                    argument="use_rope",
                )
            )
        return Architecture(
            layout=self.name,
            arguments=arguments,
            config=config,
            names=names,
            recipe={"recipe": "transvae", **{k: v for k, v in config.items() if k != "component"}},
            facts={
                "axes": f"2-D, {first[1]} channel(s)",
                "widths": ", ".join(map(str, widths)),
                "blocks": ", ".join(map(str, depths)) + f", the first {conv_stages} stages convolutional",
                "attention": f"heads of {arguments['head_dim']}" if attention else "none",
                "compression": f"{arguments['compression_ratio']} x {arguments['compression_ratio']}, "
                f"{arguments['latent_dim']} latent channels",
            },
            choices=tuple(choices),
        )

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        raise ImportError(
            "TransVAE's authors published no implementation, and these are the names of omnivae's own: the weights fill it whole, "
            "which says nothing about any other code"
        )
