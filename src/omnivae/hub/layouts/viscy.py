"""VisCy's ``BetaVae25D`` and ``BetaVaeMonai``, and MONAI's ``VarAutoEncoder``, which the latter wraps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from unittest import mock

from torch import Tensor, nn

from omnivae.hub.layouts.base import (
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
    value_range,
    without_randomness,
)

#: Blocks of each stage, kind of block or first width -> timm's name.
_RESNETS: dict[tuple[tuple[int, ...], str], str] = {
    ((2, 2, 2, 2), "basic"): "resnet18",
    ((3, 4, 6, 3), "basic"): "resnet34",
    ((3, 4, 6, 3), "bottleneck"): "resnet50",
    ((3, 4, 23, 3), "bottleneck"): "resnet101",
    ((3, 8, 36, 3), "bottleneck"): "resnet152",
}
_CONVNEXTS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 6, 2), 40): "convnext_atto",
    ((2, 2, 6, 2), 48): "convnext_femto",
    ((2, 2, 6, 2), 64): "convnext_pico",
    ((2, 2, 8, 2), 80): "convnext_nano",
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
}
#: Standard deviations up to which z-scores are kept: bright nuclei reach 9.
_DEVIATIONS = 10.0


class ViscyBetaVae25D(Layout):
    """VisCy's BetaVae25D: a timm backbone over a stem that folds depth into channels."""

    name = "VisCy BetaVae25D"
    sentinel = r"encoder\.stem\.conv\.weight"
    grammar = (
        r"encoder\.(?:stem\.conv|fc|fc_mu|fc_logvar|encoder\..+)\.\w+|decoder\.(?:latent_reshape|latent_proj|head\.conv\..+"
        r"|decoder_stages\.\d+\..+)\.?\w+"
    )
    library = "viscy"
    install = "pip install viscy"

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        backbone, first, last, reduction = _backbone(shapes, stated)
        stem = need(shapes, "encoder.stem.conv.weight")
        kernel = list(stem[2:])
        stride = _ints(stated.get("stem_stride", kernel))
        slices = first // stem[0]
        least = kernel[0] + (slices - 1) * stride[0]
        depth = int(stated.get("in_stack_depth", least))
        latent = need(shapes, "encoder.fc_mu.weight")[0]
        positions = need(shapes, "encoder.fc.weight")[1] // last
        side = math.isqrt(positions)
        if "input_spatial_size" not in stated and side * side != positions:
            raise NotThisLayout(
                f"its last map has {positions} positions, which is no square: state the input's size, as in "
                "--set '{input_spatial_size: [256, 128]}'"
            )
        size = _ints(stated.get("input_spatial_size", [side * reduction * s for s in stride[1:]]))
        stages = indices(shapes, r"decoder\.decoder_stages\.(\d+)\.")
        start = "decoder.decoder_stages.0."
        deconv = f"{start}conv.1.weight" in shapes
        head = need(shapes, "decoder.head.conv.0.conv.weight")
        wide = need(shapes, f"decoder.decoder_stages.{stages[-1]}.conv.{'1' if deconv else '0.residual'}.weight")[0]
        arguments: dict[str, Any] = {
            "backbone": backbone,
            "in_channels": stem[1],
            "in_stack_depth": depth,
            "out_stack_depth": wide // (4 * head[1]) - 2,
            "latent_dim": latent,
            "input_spatial_size": size,
            "stem_kernel_size": kernel,
            "stem_stride": stride,
            "decoder_stages": len(stages),
            "head_expansion_ratio": head[1] // stem[1],
            "head_pool": bool(stated.get("head_pool", False)),
            "upsample_mode": "deconv" if deconv else "pixelshuffle",
            "conv_blocks": 1 if deconv else len(indices(shapes, rf"{start}conv\.(\d+)\.")),
            "norm_name": "batch"
            if any(n.startswith(start) and n.endswith("running_mean") for n in shapes)
            else "instance",
            "upsample_pre_conv": "default"
            if not deconv and any(n.startswith(f"{start}upsample.") for n in shapes)
            else None,
        }
        names = {name: name for name in shapes}
        # Ours, not VisCy's: what the decoder returns is resampled to the size of the input.
        ours = {"compatible": True} | ({"match_input": True} if stated.get("match_input", False) else {})
        config: Config = {"component": "BetaVae25D", **arguments, **ours, "value_range": _range(stated)}
        most = least + stride[0] - 1
        return Architecture(
            layout=self.name,
            arguments=arguments,
            config=config,
            names=names,
            recipe={"recipe": "beta_vae_25d", **{k: v for k, v in config.items() if k != "component"}},
            facts={
                "axes": f"3-D, {stem[1]} channel(s), {depth} slices of {size[0]} x {size[1]}",
                "backbone": backbone,
                "stem": f"kernel {_times(kernel)}, {slices} x {stem[0]} channels",
                "decoder": f"{len(stages)} stages ({arguments['upsample_mode']}), {arguments['out_stack_depth']} slices out",
                "latent": f"a vector of {latent}",
            },
            choices=(
                Choice(
                    "stride of the stem",
                    _times(stride),
                    "equal to its kernel, or as stated: stem_stride",
                    argument="stem_stride",
                ),
                Choice(
                    "slices of the input",
                    str(depth),
                    f"{least} to {most} give these weights (VisCy's stem ignores the rest), or as stated: in_stack_depth",
                    argument="in_stack_depth",
                ),
                Choice(
                    "size of the input",
                    _times(size),
                    "a square, or as stated: input_spatial_size",
                    argument="input_spatial_size",
                ),
                Choice(
                    "pooling in the head",
                    "yes" if arguments["head_pool"] else "no",
                    "VisCy's default, or as stated: head_pool",
                    (
                        Alternative(
                            "no" if arguments["head_pool"] else "yes",
                            config | {"head_pool": not arguments["head_pool"]},
                            names,
                        ),
                    ),
                    argument="head_pool",
                ),
                _intensities(stated),
            ),
            statistics=_contract(stated),
        )

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        build = _original_class()
        with _nothing_downloaded():
            module: Any = without_randomness(lambda: build(**architecture.arguments))
        module = original(module, tensors)

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            found = module.encoder(x)
            return found.mean, found.log_covariance

        a = architecture.arguments
        decode = _matched(module.decoder, architecture, (a["in_stack_depth"], *a["input_spatial_size"]))
        return Reference(f"{_package_of(build)} BetaVae25D", module, encode, decode)


class MonaiVarAutoEncoder(Layout):
    """MONAI's VarAutoEncoder: strided convolutions to one vector and back."""

    name = "MONAI VarAutoEncoder"
    sentinel = r"encode\.encode_0\.conv\.(?:unit0\.conv\.)?weight"
    grammar = (
        r"encode\.encode_\d+\.[\w.]+|decode\.decode_\d+\.[\w.]+|intermediate\.[\w.]+"
        r"|(?:mu|logvar|decodeL)\.(?:weight|bias)"
    )
    library = "monai"
    install = "pip install omnivae[medical]"
    sigmoid = True
    z_scores = False

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        inside = {name.removeprefix("model."): shape for name, shape in shapes.items()}
        arguments = self._arguments(inside, stated)
        names = {name: f"model.{name.removeprefix('model.')}" for name in shapes}
        ours: Config = {"match_input": True} if stated.get("match_input", False) else {}
        z_scores = self.z_scores and not arguments["use_sigmoid"]
        if z_scores or stated.get("value_range") is not None:
            ours = {**ours, "value_range": _range(stated)}
        config: Config = {"component": "BetaVaeMonai", **arguments, **ours}
        flipped = not arguments["use_sigmoid"]
        words = ("sigmoid", "none") if arguments["use_sigmoid"] else ("none", "sigmoid")
        latent, size = arguments["latent_size"], arguments["in_shape"][1:]
        return Architecture(
            layout=self.name,
            arguments=arguments,
            config=config,
            names=names,
            recipe={"recipe": "beta_vae_monai", **arguments, **ours},
            facts={
                "axes": f"{arguments['spatial_dims']}-D, {arguments['in_shape'][0]} channel(s) of {_times(size)}",
                "widths": ", ".join(map(str, arguments["channels"])),
                "strides": ", ".join(map(str, arguments["strides"])),
                "residual units": str(arguments["num_res_units"]),
                "latent": f"a vector of {latent}",
            },
            choices=(
                Choice(
                    "strides",
                    ", ".join(map(str, arguments["strides"])),
                    "2 at each level, or as stated: strides",
                    argument="strides",
                ),
                Choice("size of the input", _times(size), "equal sides, or as stated: in_shape", argument="in_shape"),
                Choice(
                    "end of the decoder",
                    words[0],
                    "default of the class, or as stated: use_sigmoid",
                    (Alternative(words[1], config | {"use_sigmoid": flipped}, names),),
                    argument="use_sigmoid",
                ),
                Choice(
                    "latent in evaluation", "the mean", "MONAI takes the mean plus one standard deviation by default"
                ),
                *([_intensities(stated)] if z_scores else []),
            ),
            statistics=_contract(stated) if z_scores and arguments["spatial_dims"] == 3 else {},
        )

    def _arguments(self, shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
        if any(name.startswith("intermediate.") for name in shapes):
            raise NotThisLayout("it has layers between encoder and decoder, whose dilations the weights do not show")
        levels = indices(shapes, r"encode\.encode_(\d+)\.")
        units = len(indices(shapes, r"encode\.encode_0\.conv\.unit(\d+)\."))
        kernels = [need(shapes, f"encode.encode_{i}.conv.{'unit0.conv.' if units else ''}weight") for i in levels]
        channels = [shape[0] for shape in kernels]
        dim, last = len(kernels[0]) - 2, len(levels) - 1
        latent, cells = need(shapes, "mu.weight")
        up = need(shapes, f"decode.decode_{last}.conv.conv.weight")
        strides = _ints(stated.get("strides", [2] * len(levels)))
        side = round((cells / channels[-1]) ** (1 / dim))
        if "in_shape" not in stated and side**dim * channels[-1] != cells:
            raise NotThisLayout(
                f"its last map has {cells // channels[-1]} positions, which are no {dim}-D cube: state the input's shape, as in "
                "--set '{in_shape: [1, 64, 32]}'"
            )
        in_shape = _ints(stated.get("in_shape", [kernels[0][1], *[side * math.prod(strides)] * dim]))
        norm = "batch" if any(name.endswith("running_mean") for name in shapes) else "instance"
        return {
            "spatial_dims": dim,
            "in_shape": in_shape,
            "out_channels": up[1],
            "latent_size": latent,
            "channels": channels,
            "strides": strides,
            "kernel_size": kernels[0][2],
            "up_kernel_size": up[2],
            "num_res_units": units,
            "use_sigmoid": bool(stated.get("use_sigmoid", self.sigmoid)),
            "norm": str(stated.get("norm", norm)),
        }

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        import monai
        from monai.networks.nets import VarAutoEncoder

        arguments = dict(architecture.arguments)
        module: Any = without_randomness(lambda: VarAutoEncoder(**arguments))
        module = original(module, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
        named = any(name.startswith("model.") for name in tensors)
        return Reference(
            f"monai {monai.__version__} VarAutoEncoder",
            nn.ModuleDict({"model": module}) if named else module,
            module.encode_forward,
            _matched(
                lambda z: module.decode_forward(z, arguments["use_sigmoid"]), architecture, arguments["in_shape"][1:]
            ),
        )


class ViscyBetaVaeMonai(MonaiVarAutoEncoder):
    """VisCy's BetaVaeMonai: MONAI's VarAutoEncoder as ``model``, without the sigmoid."""

    name = "VisCy BetaVaeMonai"
    sentinel = r"model\.encode\.encode_0\.conv\.(?:unit0\.conv\.)?weight"
    grammar = rf"model\.(?:{MonaiVarAutoEncoder.grammar})"
    sigmoid = False
    z_scores = True


def _range(stated: Mapping[str, Any]) -> list[float]:
    """Return the lowest and highest intensity: as stated, or all but the rarest z-scores."""
    return [-_DEVIATIONS, _DEVIATIONS] if stated.get("value_range") is None else value_range(stated)


def _intensities(stated: Mapping[str, Any]) -> Choice:
    low, high = _range(stated)
    if stated.get("value_range") is None:
        what, why = f"z-scores, cut off at {high:g}", "usual for VisCy; or a range as stated: value_range"
    else:
        what, why = f"{low:g} to {high:g}", "as stated: value_range"
    return Choice("intensities", what, why, argument="value_range")


def _contract(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the intensity contract of models of z-scores: a range of ten deviations is the z-score itself."""
    if stated.get("value_range") is not None:
        return {}
    return {"intensity": {"unit": "arbitrary", "zscore": _DEVIATIONS, "range": _range(stated), "clip": True}}


def _backbone(shapes: Shapes, stated: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """Return timm's name of the backbone, its first and last width, and how much it reduces the stem's map."""
    inside = {n.removeprefix("encoder.encoder."): s for n, s in shapes.items() if n.startswith("encoder.encoder.")}
    if "layer1.0.conv1.weight" in inside:
        depths = tuple(len(indices(inside, rf"layer{i}\.(\d+)\.")) for i in range(1, 5))
        kind = "bottleneck" if "layer1.0.conv3.weight" in inside else "basic"
        name = _RESNETS.get((depths, kind))
        final = inside[f"layer4.0.conv{3 if kind == 'bottleneck' else 2}.weight"][0]
        first, reduction, words = inside["bn1.weight"][0], 16, f"resnet with {depths} {kind} blocks"
    elif "stages_0.blocks.0.conv_dw.weight" in inside:
        depths = tuple(len(indices(inside, rf"stages_{i}\.blocks\.(\d+)\.")) for i in range(4))
        first = inside["stages_0.blocks.0.conv_dw.weight"][0]
        final = inside["stages_3.blocks.0.conv_dw.weight"][0]
        name = None if any(".grn." in n for n in inside) else _CONVNEXTS.get((depths, first))
        reduction, words = 8, f"convnext with {depths} blocks from width {first}"
    else:
        raise NotThisLayout("its backbone is neither a resnet nor a convnext of timm")
    name = stated.get("backbone", name)
    if name is None:
        raise NotThisLayout(f"its backbone is a {words}: state timm's name of it, as in --set '{{backbone: ...}}'")
    return str(name), first, final, reduction


def _matched(
    decode: Callable[[Tensor], Tensor], architecture: Architecture, size: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """Return an original's decoder, followed by the resampling that ``match_input`` puts behind ours."""
    if not architecture.config.get("match_input", False):
        return decode
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return lambda z: nn.functional.interpolate(decode(z), size=tuple(size), mode=mode, align_corners=False)


def _original_class() -> Any:
    """Return VisCy's class: of its repository's package of models, or of the release on the package index (0.4)."""
    try:
        from viscy_models.vae import BetaVae25D
    except ImportError:
        from viscy.representation.vae import BetaVae25D
    return BetaVae25D


def _package_of(build: Any) -> str:
    """Return name and version of the package that a class is from; its name alone where it was not installed as one."""
    package = str(build.__module__).split(".")[0]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


@contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """Keep timm from fetching weights: the released class asks for ImageNet's and has no argument that says otherwise."""
    import timm

    create = timm.create_model
    with mock.patch.object(timm, "create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})):
        yield


def _ints(values: Sequence[Any]) -> list[int]:
    return [int(v) for v in values]


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
