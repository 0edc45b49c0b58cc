"""diffusers' ``AutoencoderDC``: the deep compression autoencoders of SANA and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from omnivae.hub.layouts.base import (
    LAPLACE,
    Alternative,
    Architecture,
    Choice,
    Config,
    Layout,
    NotThisLayout,
    Reference,
    Shapes,
    indices,
    need,
    original,
    published,
    value_range,
    without_randomness,
)

_RES = r"(?:conv[12]|norm)"
_ATTENTION = r"attn\.(?:to_[qkv]|to_out|norm_out|to_qkv_multiscale\.\d+\.proj_(?:in|out))|conv_out\.(?:conv_\w+|norm)"
_BLOCK = rf"\d+\.(?:{_RES}|{_ATTENTION}|conv)"


class DeepCompression(Layout):
    """diffusers' AutoencoderDC; our networks run diffusers' own modules."""

    name = "diffusers AutoencoderDC"
    sentinel = r"decoder\.up_blocks\.\d+\.\d+\.(?:conv1|attn\.to_q)\.weight"
    grammar = (
        rf"(?:en|de)coder\.(?:(?:down|up)_blocks\.\d+\.{_BLOCK}|conv_in(?:\.conv)?|conv_out(?:\.conv)?|norm_out)"
        r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
    )
    library = "diffusers"
    install = "pip install omnivae[diffusion]"

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        arguments = _arguments(shapes, stated)
        pixels = value_range(stated)
        latent = arguments["latent_channels"]
        names = {name: re.sub(r"^(encoder|decoder)\.", r"\1.network.", name) for name in shapes}

        def other(label: str, **changes: Any) -> tuple[Alternative, ...]:
            return (Alternative(label, _config(arguments | changes, pixels), names),)

        def shortcut(name: str) -> Choice:
            used = arguments[name]
            words = ("yes", "no") if used else ("no", "yes")
            where = "end of the encoder" if name.startswith("encoder") else "start of the decoder"
            return Choice(
                f"shortcut at the {where}",
                words[0],
                f"default, or as stated: {name}",
                other(words[1], **{name: not used}),
                argument=name,
            )

        widths = arguments["encoder_block_out_channels"]
        stride = 2 ** (len(widths) - 1)
        last = arguments["decoder_conv_act_fn"]
        turned = "silu" if last == "relu" else "relu"
        kept = {} if published(stated) is None else {"published": published(stated)}
        return Architecture(
            layout=self.name,
            arguments=arguments,
            config=_config(arguments, pixels),
            names=names,
            recipe=_recipe(arguments, pixels),
            facts={
                "axes": f"2-D, {arguments['in_channels']} channel(s)",
                "widths": ", ".join(map(str, widths)),
                "blocks": f"{_listed(arguments['encoder_layers_per_block'])} in the encoder, "
                f"{_listed(arguments['decoder_layers_per_block'])} in the decoder",
                "attention": _attention(arguments),
                "compression": f"{stride} x {stride}, {latent} latent channels",
                "resampling": f"{arguments['downsample_block_type']}, {arguments['upsample_block_type']}",
            },
            statistics=kept,
            made={"posterior.projection.weight": "identity", "posterior.projection.bias": "zeros"},
            choices=(
                *(_heads(arguments, other) if _hidden_heads(arguments) else ()),
                Choice(
                    "activations of the decoder",
                    _listed(arguments["decoder_act_fns"]),
                    "ReLU where the norm is of batches, SiLU elsewhere, or as stated: decoder_act_fns",
                    argument="decoder_act_fns",
                ),
                Choice(
                    "activation before the last convolution",
                    last,
                    "default, or as stated: decoder_conv_act_fn",
                    other(turned, decoder_conv_act_fn=turned),
                    argument="decoder_conv_act_fn",
                ),
                shortcut("encoder_out_shortcut"),
                shortcut("decoder_in_shortcut"),
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

        module: Any = without_randomness(lambda: diffusers.AutoencoderDC(**architecture.arguments))
        module = original(module, tensors)
        name = f"diffusers {diffusers.__version__} AutoencoderDC"
        return Reference(name, module, lambda x: (module.encode(x).latent, None), lambda z: module.decode(z).sample)


def _arguments(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of diffusers' class."""
    encoder, decoder = _stages(shapes, "encoder.down_blocks"), _stages(shapes, "decoder.up_blocks")
    if len(encoder["widths"]) != len(decoder["widths"]):
        raise NotThisLayout(f"encoder and decoder have {len(encoder['widths'])} and {len(decoder['widths'])} stages")
    heads = set(encoder["head_dims"]) | set(decoder["head_dims"])
    if len(heads) > 1:
        raise NotThisLayout(f"its attention has heads of different widths: {sorted(heads)}")
    norms = decoder["norms"]
    widths = encoder["widths"]
    # The first stage may have no blocks; then the image is resampled on its way in and out.
    first = need(shapes, "encoder.conv_in.weight" if encoder["blocks"][0] else "encoder.conv_in.conv.weight")
    down = first[0] != widths[1] if not encoder["blocks"][0] else _resampling(shapes, "encoder") != widths[1]
    last = need(shapes, "decoder.conv_out.weight" if decoder["blocks"][0] else "decoder.conv_out.conv.weight")
    up = last[0] != first[1] if not decoder["blocks"][0] else _resampling(shapes, "decoder") != decoder["widths"][0]
    return {
        "in_channels": first[1],
        "latent_channels": need(shapes, "encoder.conv_out.weight")[0],
        "attention_head_dim": int(stated.get("attention_head_dim", min(heads, default=_usual_head(encoder, decoder)))),
        "encoder_block_types": encoder["types"],
        "decoder_block_types": decoder["types"],
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": decoder["widths"],
        "encoder_layers_per_block": encoder["blocks"],
        "decoder_layers_per_block": decoder["blocks"],
        "encoder_qkv_multiscales": encoder["scales"],
        "decoder_qkv_multiscales": decoder["scales"],
        "upsample_block_type": "pixel_shuffle" if up else "interpolate",
        "downsample_block_type": "pixel_unshuffle" if down else "conv",
        "decoder_norm_types": norms,
        "decoder_act_fns": _each(
            stated.get("decoder_act_fns", ["relu" if norm == "batch_norm" else "silu" for norm in norms]), len(norms)
        ),
        "encoder_out_shortcut": bool(stated.get("encoder_out_shortcut", True)),
        "decoder_in_shortcut": bool(stated.get("decoder_in_shortcut", True)),
        "decoder_conv_act_fn": str(stated.get("decoder_conv_act_fn", "relu")),
    }


def _usual_head(*halves: Mapping[str, list[Any]]) -> int:
    """Return the published width of heads, or the largest power of two below it that divides every width that attends."""
    attending = [w for half in halves for w, t in zip(half["widths"], half["types"], strict=True) if t != "ResBlock"]
    return next(head for head in (32, 16, 8, 4, 2, 1) if all(width % head == 0 for width in attending))


def _stages(shapes: Shapes, where: str) -> dict[str, list[Any]]:
    """Return what the names below ``where`` say of each stage."""
    found: dict[str, list[Any]] = {k: [] for k in ("widths", "blocks", "types", "scales", "norms", "head_dims")}
    there = indices(shapes, rf"{re.escape(where)}\.(\d+)\.")
    for stage in range(there[-1] + 1) if there else ():
        start = f"{where}.{stage}."
        inside = indices(shapes, rf"{re.escape(start)}(\d+)\.")
        residual = [j for j in inside if f"{start}{j}.conv1.weight" in shapes]
        attending = [j for j in inside if f"{start}{j}.attn.to_q.weight" in shapes]
        if (residual and attending) or (stage and not residual and not attending):
            raise NotThisLayout(f"{where}.{stage} has {'blocks of two kinds' if residual else 'no blocks'}")
        block = f"{start}{(residual or attending or [0])[0]}."
        scales = indices(shapes, rf"{re.escape(block)}attn\.to_qkv_multiscale\.(\d+)\.")
        kernels = [need(shapes, f"{block}attn.to_qkv_multiscale.{i}.proj_in.weight")[-1] for i in scales]
        found["head_dims"] += [need(shapes, f"{block}attn.to_qkv_multiscale.{i}.proj_out.weight")[1] for i in scales]
        widest = f"{block}conv1.weight" if residual else f"{block}attn.to_out.weight"
        # A stage without blocks has no width that anything depends on.
        found["widths"].append(need(shapes, widest)[0] if residual or attending else 0)
        found["blocks"].append(len(residual) + len(attending))
        found["types"].append("EfficientViTBlock" if attending else "ResBlock")
        found["scales"].append(kernels)
        batch = any(n.startswith(start) and n.endswith("running_mean") for n in shapes)
        found["norms"].append("batch_norm" if batch else "rms_norm")
    if len(found["widths"]) < 2:
        raise NotThisLayout(f"there are {len(found['widths'])} stages below {where}; expected two or more")
    found["widths"][0] = found["widths"][0] or found["widths"][1]
    return found


def _resampling(shapes: Shapes, half: str) -> int:
    """Return the channels that the convolution of the first resampling makes."""
    pattern = (
        r"encoder\.down_blocks\.0\.\d+\.conv\.weight"
        if half == "encoder"
        else r"decoder\.up_blocks\.0\.0\.conv\.weight"
    )
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name):
            return shape[0]
    raise NotThisLayout(f"there is no resampling after the first stage of the {half}")


def _recipe(a: Mapping[str, Any], pixels: list[float]) -> Config:
    config = _config(a, pixels)
    encoder, decoder = dict(config["encoder"]), dict(config["decoder"])
    made: Config = {"recipe": "dc_ae"} | {k: v for k, v in encoder.items() if k != "component"}
    same = ("channels", "num_blocks", "block_types", "multiscales")
    made |= {f"decoder_{k}": decoder[k] for k in same if k == "num_blocks" or decoder[k] != encoder[k]}
    made |= {k: decoder[k] for k in ("norms", "activations", "upsample", "in_shortcut", "last_activation")}
    return made | ({"value_range": pixels} if pixels != [-1.0, 1.0] else {})


def _config(a: Mapping[str, Any], pixels: list[float]) -> Config:
    latent, head = a["latent_channels"], a["attention_head_dim"]

    def half(side: str) -> Config:
        return {
            "channels": a[f"{side}_block_out_channels"],
            "num_blocks": a[f"{side}_layers_per_block"],
            "block_types": a[f"{side}_block_types"],
            "head_dim": head,
            "multiscales": a[f"{side}_qkv_multiscales"],
        }

    encoder: Config = {"component": "DCEncoder", "in_channels": a["in_channels"], "latent_dim": latent}
    decoder: Config = {"component": "DCDecoder", "latent_dim": latent, "out_channels": a["in_channels"]}
    return {
        "component": "VAE",
        "encoder": encoder
        | half("encoder")
        | {"downsample": a["downsample_block_type"], "out_shortcut": a["encoder_out_shortcut"]},
        "posterior": {"component": "PointMassPosterior", "in_channels": latent, "latent_dim": latent, "dim": 2},
        "decoder": decoder
        | half("decoder")
        | {
            "norms": a["decoder_norm_types"],
            "activations": a["decoder_act_fns"],
            "upsample": a["upsample_block_type"],
            "in_shortcut": a["decoder_in_shortcut"],
            "last_activation": a["decoder_conv_act_fn"],
        },
        "likelihood": LAPLACE,
        "prior": None,
        "value_range": pixels,
    }


def _hidden_heads(a: Mapping[str, Any]) -> bool:
    """Whether there is attention, and of one scale only, whose weights do not show how wide its heads are."""
    scales = [*a["encoder_qkv_multiscales"], *a["decoder_qkv_multiscales"]]
    return "EfficientViTBlock" in [*a["encoder_block_types"], *a["decoder_block_types"]] and not any(scales)


def _heads(a: Mapping[str, Any], other: Callable[..., tuple[Alternative, ...]]) -> tuple[Choice]:
    head = a["attention_head_dim"]
    fewer = other(f"{head // 2}", attention_head_dim=head // 2) if head > 1 else ()
    why = "32 as in all published files, or as stated: attention_head_dim"
    return (Choice("width of the heads of attention", str(head), why, fewer, argument="attention_head_dim"),)


def _each(value: Any, stages: int) -> list[str]:
    return [value] * stages if isinstance(value, str) else [str(v) for v in value]


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _attention(a: Mapping[str, Any]) -> str:
    where = [i for i, kind in enumerate(a["encoder_block_types"]) if kind == "EfficientViTBlock"]
    return f"linear, heads of {a['attention_head_dim']}, in stages {_listed(where)}" if where else "none"
