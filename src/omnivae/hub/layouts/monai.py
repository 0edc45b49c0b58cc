"""MONAI's autoencoders: ``AutoencoderKlMaisi`` and ``AutoencoderKL``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
    translate,
    without_randomness,
)

_OURS: Rules = [(r"^quant_conv_", "posterior.quant_conv_"), (r"^post_quant_conv\.", "decoder.post_quant_conv.")]
#: MAISI wraps each convolution once more than AutoencoderKL, and calls what follows an up-sampling otherwise.
_UNWRAPPED: Rules = [
    (r"^((?:en|de)coder\.blocks\.\d+)\.conv\.conv\.(weight|bias)$", r"\1.conv.\2"),
    (r"^(decoder\.blocks\.\d+)\.conv\.conv\.conv\.", r"\1.postconv.conv."),
    (r"^(encoder\.blocks\.\d+)\.conv\.conv\.conv\.", r"\1.conv.conv."),
    (r"\.(conv1|conv2|nin_shortcut)\.conv\.conv\.", r".\1.conv."),
]
#: Names of MONAI Generative, before its autoencoder moved into MONAI.
_OLD: Rules = [
    (r"^((?:en|de)coder\.blocks\.\d+)\.(to_[qkv])\.", r"\1.attn.\2."),
    (r"^((?:en|de)coder\.blocks\.\d+)\.proj_attn\.", r"\1.attn.out_proj."),
    (r"^(decoder\.blocks\.\d+)\.conv\.conv\.", r"\1.postconv.conv."),
]
_ATTENTION = r"(?:attn\.)?(?:to_[qkv]|qkv|out_proj|proj_attn)"
_QUANT = r"(?:quant_conv_mu|quant_conv_log_sigma|post_quant_conv)\.conv\.(?:weight|bias)"
_END = r"(?:weight|bias)"


def _grammar(conv: str, resample: str) -> str:
    parts = rf"{conv}|norm[12]|(?:conv[12]|nin_shortcut)\.{conv}|{resample}|norm|{_ATTENTION}"
    return rf"(?:en|de)coder\.blocks\.\d+\.(?:(?:{parts})\.)?{_END}|{_QUANT}"


def _kinds(shapes: Shapes, side: str) -> list[tuple[str, int]]:
    """Return kind and width of each block: "conv", "res", "attention", "resample" or "norm"."""
    found = []
    for i in indices(shapes, rf"{side}\.blocks\.(\d+)\."):
        block = f"{side}.blocks.{i}."
        names = {name.removeprefix(block) for name in shapes if name.startswith(block)}
        if "norm1.weight" in names:
            kind, width = "res", need(shapes, f"{block}norm2.weight")[0]
        elif any(re.match(_ATTENTION, name) for name in names):
            kind, width = "attention", need(shapes, f"{block}norm.weight")[0]
        elif names == {"weight", "bias"}:
            kind, width = "norm", shapes[f"{block}weight"][0]
        else:
            name = next(name for name in names if name.endswith("weight"))
            kind, width = "conv", shapes[block + name][0]
        found.append((kind, width))
    if len(found) < 5 or [k for k, _ in (found[0], found[-2], found[-1])] != ["conv", "norm", "conv"]:
        raise NotThisLayout(f"the blocks of the {side} do not begin with a convolution and end with a norm and another")
    return [("resample" if kind == "conv" else kind, width) for kind, width in found[1:-2]]


def _stages(kinds: Sequence[tuple[str, int]], side: str) -> tuple[list[int], list[int], list[bool], bool]:
    """Return widths, residual blocks, attention levels (in the order of the blocks) and whether there is a middle."""
    levels: list[list[tuple[str, int]]] = [[]]
    for kind, width in kinds:
        if kind == "resample":
            levels.append([])
        else:
            levels[-1].append((kind, width))
    words = [[kind for kind, _ in level] for level in levels]
    middle = False
    # A stage has attention after each residual block or after none, so what ends res, attention, res is the middle.
    if side == "encoder" and words[-1][-3:] == ["res", "attention", "res"]:
        middle, levels[-1] = True, levels[-1][:-3]
    elif side == "decoder" and words[0][:3] == ["res", "attention", "res"] and words[0][3:4] != ["attention"]:
        middle, levels[0] = True, levels[0][3:]
    widths, blocks, attention = [], [], []
    for level in levels:
        res = [width for kind, width in level if kind == "res"]
        if not res:
            raise NotThisLayout(f"a stage of the {side} has no residual block")
        widths.append(res[-1])
        blocks.append(len(res))
        attention.append(any(kind == "attention" for kind, _ in level))
    return widths, blocks, attention, middle


class _MonaiLayout(Layout):
    library = "monai"
    install = "pip install omnivae[medical]"

    def _arguments(self, shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
        first = next((n for n in shapes if n.startswith("encoder.blocks.0.") and n.endswith("weight")), "")
        last_block = max(indices(shapes, r"decoder\.blocks\.(\d+)\."))
        last = next(n for n in shapes if n.startswith(f"decoder.blocks.{last_block}.") and n.endswith("weight"))
        widths, blocks, attention, encoder_middle = _stages(_kinds(shapes, "encoder"), "encoder")
        back, blocks_back, attention_back, decoder_middle = _stages(_kinds(shapes, "decoder"), "decoder")
        for what, there, here in (
            ("widths", widths, back),
            ("residual blocks", blocks, blocks_back),
            ("attention levels", attention, attention_back),
        ):
            if there != here[::-1]:
                raise NotThisLayout(f"the decoder does not mirror the encoder: {what} {there} and {here}")
        return {
            "spatial_dims": len(shapes[first]) - 2,
            "in_channels": shapes[first][1],
            "out_channels": shapes[last][0],
            "latent_channels": need(shapes, "quant_conv_mu.conv.weight")[0],
            "channels": widths,
            "num_res_blocks": blocks,
            "attention_levels": attention,
            "norm_num_groups": groups_for(widths, stated),
            "norm_eps": float(stated.get("norm_eps", 1e-6)),
            "with_encoder_nonlocal_attn": encoder_middle,
            "with_decoder_nonlocal_attn": decoder_middle,
            "include_fc": any(re.search(r"\.(out_proj|proj_attn)\.", n) for n in shapes),
            "use_combined_linear": any(".qkv." in n for n in shapes),
        }


def _facts(a: Mapping[str, Any], upsampling: str) -> dict[str, str]:
    stride = 2 ** (len(a["channels"]) - 1)
    where = [str(w) for w, on in zip(a["channels"], a["attention_levels"], strict=True) if on]
    parts = [f"after each block at width {', '.join(where)}"] if where else []
    parts += [f"middle of the {s}" for s in ("encoder", "decoder") if a[f"with_{s}_nonlocal_attn"]]
    return {
        "axes": f"{a['spatial_dims']}-D, {a['in_channels']} channel(s) in, {a['out_channels']} out",
        "widths": ", ".join(map(str, a["channels"])),
        "residual blocks": ", ".join(map(str, a["num_res_blocks"])),
        "attention": "; ".join(parts) or "none",
        "compression": " x ".join([str(stride)] * a["spatial_dims"]) + f", {a['latent_channels']} latent channels",
        "up-sampling": upsampling,
    }


def _composed(a: Mapping[str, Any], *, upsample: str, eps: float | None = None, **wrong: Any) -> Config:
    """Return a model of :mod:`omnivae.networks.monai_kl` with the arguments of MONAI's class."""
    shared: Config = {
        "dim": a["spatial_dims"],
        "num_groups": a["norm_num_groups"],
        "eps": a["norm_eps"] if eps is None else eps,
        "include_fc": a["include_fc"],
        "use_combined_linear": a["use_combined_linear"],
        "final_silu": wrong.get("final_silu", False),
    }
    levels = list(a["attention_levels"])
    return {
        "component": "VAE",
        "encoder": {
            "component": "MonaiKLEncoder",
            "in_channels": a["in_channels"],
            "out_channels": a["latent_channels"],
            "channels": list(a["channels"]),
            "num_res_blocks": list(a["num_res_blocks"]),
            "attention_levels": levels,
            "with_nonlocal_attn": a["with_encoder_nonlocal_attn"],
            "padding": wrong.get("padding", "end"),
            **shared,
        },
        "posterior": {
            "component": "QuantConvPosterior",
            "in_channels": a["latent_channels"],
            "latent_dim": a["latent_channels"],
            "dim": a["spatial_dims"],
        },
        "decoder": {
            "component": "MonaiKLDecoder",
            "latent_dim": a["latent_channels"],
            "out_channels": a["out_channels"],
            "channels": list(a["channels"])[::-1],
            "num_res_blocks": list(a["num_res_blocks"])[::-1],
            "attention_levels": levels[::-1],
            "with_nonlocal_attn": a["with_decoder_nonlocal_attn"],
            "upsample": upsample,
            **shared,
        },
        "likelihood": LAPLACE,
        "prior": STANDARD_NORMAL,
        "value_range": [0.0, 1.0],
    }


def _recipe(a: Mapping[str, Any], transposed: bool) -> Config:
    """Return the section ``model`` of a configuration that builds it."""
    ours = {
        "spatial_dims": "dim",
        "latent_channels": "latent_dim",
        "norm_num_groups": "num_groups",
        "norm_eps": "eps",
    }
    return {
        "recipe": "monai_kl",
        **{ours.get(name, name): value for name, value in a.items()},
        "use_convtranspose": transposed,
    }


def _choices(a: Mapping[str, Any], names: Mapping[str, str], upsample: str, words: str) -> tuple[Choice, ...]:
    def other(label: str, **options: Any) -> Alternative:
        return Alternative(label, _composed(a, **({"upsample": upsample} | options)), names)

    kinds = {"nearest": "nearest", "linear": "linear (align_corners false)"}
    resampling = tuple(other(label, upsample=kind) for kind, label in kinds.items() if kind != upsample)
    if upsample == "transpose":
        resampling = ()  # its weights have a name of their own
    eps = {1e-6: 1e-5, 1e-5: 1e-6}.get(a["norm_eps"], 1e-6)
    groups = a["norm_num_groups"]
    regroup = tuple(
        Alternative(f"{n} groups", _composed(dict(a) | {"norm_num_groups": n}, upsample=upsample), names)
        for n in (groups // 2,)
        if n
    )
    return (
        Choice("up-sampling", words, "the class of this layout", resampling),
        Choice(
            "padding of stride 2",
            "far end of each axis",
            "the class of this layout",
            (other("both ends", padding="both"),),
        ),
        Choice(
            "activation before the last convolution",
            "none",
            "the class of this layout",
            (other("SiLU", final_silu=True),),
        ),
        Choice(
            "eps of the norms",
            f"{a['norm_eps']:g}",
            "default of the class, or as stated",
            (other(f"{eps:g}", eps=eps),),
            argument="norm_eps",
        ),
        Choice(
            "groups of the norms",
            str(groups),
            "32 where it divides every width, or as stated",
            regroup,
            argument="norm_num_groups",
        ),
    )


class MonaiKL(_MonaiLayout):
    """MONAI's AutoencoderKL, also under the names of MONAI Generative."""

    name = "MONAI AutoencoderKL"
    sentinel = r"encoder\.blocks\.0\.conv\.weight"
    related = r"encoder\.blocks\.0\.conv\.conv\.weight"
    grammar = _grammar("conv", r"conv\.conv|postconv\.conv|deconv")

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        arguments = self._arguments(shapes, stated)
        transposed = any(".deconv." in name for name in shapes)
        upsample = "transpose" if transposed else "nearest"
        words = "transposed convolution" if transposed else "nearest"
        wrapped = "encoder.blocks.0.conv.conv.weight" in shapes
        names = {name: translate(translate(name, _UNWRAPPED if wrapped else _OLD), _OURS) for name in shapes}
        return Architecture(
            layout=self.name,
            arguments=arguments | {"use_convtranspose": transposed},
            config=_composed(arguments, upsample=upsample),
            names=names,
            recipe=_recipe(arguments, transposed),
            facts=_facts(arguments, words),
            choices=_choices(arguments, names, upsample, words),
        )

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        import monai
        from monai.networks.nets import AutoencoderKL

        if "encoder.blocks.0.conv.conv.weight" in tensors:  # renamed on demand: what they are of decides
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            return Maisi().reference(Maisi().read(shapes, architecture.arguments), tensors)
        module: Any = without_randomness(lambda: AutoencoderKL(**architecture.arguments))
        module = original(module, {translate(k, _OLD): v for k, v in tensors.items()})
        return Reference(f"monai {monai.__version__} AutoencoderKL", module, _encode(module), module.decode)


class Maisi(_MonaiLayout):
    """MAISI's autoencoder, and its mask autoencoder, which differs only by an operator that its weights do not show."""

    name = "MONAI AutoencoderKlMaisi"
    sentinel = r"encoder\.blocks\.0\.conv\.conv\.weight"
    grammar = _grammar(r"conv\.conv", r"conv\.conv\.conv|postconv\.conv|conv")

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        a = self._arguments(shapes, stated)
        if a["spatial_dims"] != 3:
            raise NotThisLayout(f"its convolutions have {a['spatial_dims']} axes; AutoencoderKlMaisi is 3-D only")
        # The mask autoencoder has one channel for each structure, and doubles sizes by transposed convolutions.
        mask = a["in_channels"] == 8 and a["out_channels"] > 100
        transposed = bool(stated.get("use_convtranspose", mask))
        arguments = {("num_channels" if k == "channels" else k): v for k, v in a.items()}
        arguments |= {"use_convtranspose": transposed, "num_splits": 1, "dim_split": 0, "norm_float16": False}
        recipe = {
            ("latent_dim" if k == "latent_channels" else k): v for k, v in arguments.items() if k != "spatial_dims"
        }
        modality = stated.get("modality", None if mask or a["in_channels"] != 1 else "CT")
        recipe["modality"] = modality
        names = {name: translate(name, _OURS) for name in shapes}
        words = "transposed convolution" if transposed else "trilinear (align_corners false)"
        config = {"component": "MaisiVAE", **recipe}
        return Architecture(
            layout=self.name,
            arguments=arguments,
            config=config,
            recipe={"recipe": "maisi_vae", **recipe},
            names=names,
            facts=_facts(a, words),
            choices=self._undecided(a, config, names, words, modality),
        )

    def _undecided(
        self, a: dict[str, Any], config: Config, names: Mapping[str, str], words: str, modality: str | None
    ) -> tuple[Choice, ...]:
        plain = {name: translate(translate(name, _UNWRAPPED), _OURS) for name in names}
        choices: tuple[Choice, ...] = ()
        if config["use_convtranspose"]:
            flipped = "trilinear (align_corners false)"
        else:
            flipped, choices = "transposed convolution", _choices(a, plain, "linear", words)
        transposed = Alternative(flipped, config | {"use_convtranspose": not config["use_convtranspose"]}, names)
        others = choices[0].alternatives if choices else ()
        first = Choice("up-sampling", words, "the class, and the published configuration", (*others, transposed))
        window = {
            "CT": "CT: -1000 to 1000 HU on [0, 1]",
            "MR": "MR: percentiles 0 to 99.5 on [0, 1]",
            None: "not stated",
        }
        return (
            first,
            *choices[1:],
            Choice(
                "intensities", window[modality], "one channel: MAISI's CT model; --set modality=MR", argument="modality"
            ),
        )

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        import monai
        from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

        module: Any = without_randomness(lambda: AutoencoderKlMaisi(**architecture.arguments, save_mem=False))
        module = original(module, tensors)
        return Reference(f"monai {monai.__version__} AutoencoderKlMaisi", module, _encode(module), module.decode)


def _encode(module: Any) -> Any:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, sigma = module.encode(x)
        return mean, 2 * torch.log(sigma)

    return encode
