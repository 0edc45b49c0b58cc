"""MIT's own files of the deep compression autoencoder, as its repository efficientvit names them (``dc-ae-f32c32-in-1.0``, ...)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from omnivae.hub.layouts.base import Architecture, NotThisLayout, Reference, Rules, Shapes, translate
from omnivae.hub.layouts.deep_compression import DeepCompression

#: efficientvit's names -> diffusers'. Blocks are nested in ``main`` (of a residual block) and ``op_list`` (of a sequence).
_TO_DIFFUSERS: Rules = [
    (r"(?<=\.)(?:main|op_list)\.", ""),
    (r"^encoder\.stages\.", "encoder.down_blocks."),
    (r"^decoder\.stages\.", "decoder.up_blocks."),
    (r"^encoder\.project_out\.0\.conv\.", "encoder.conv_out."),
    (r"^decoder\.project_in\.conv\.", "decoder.conv_in."),
    (r"^decoder\.project_out\.0\.", "decoder.norm_out."),
    (r"^encoder\.project_in\.(?:conv\.)+", "encoder.conv_in."),
    (r"^decoder\.project_out\.2\.(?:conv\.)+", "decoder.conv_out."),
    (r"\.context_module\.", ".attn."),
    (r"\.local_module\.", ".conv_out."),
    (r"\.aggreg\.(\d+)\.0\.", r".to_qkv_multiscale.\1.proj_in."),
    (r"\.aggreg\.(\d+)\.1\.", r".to_qkv_multiscale.\1.proj_out."),
    (r"\.proj\.conv\.", ".to_out."),
    (r"\.proj\.norm\.", ".norm_out."),
    (r"\.(inverted|depth|point)_conv\.conv\.", r".conv_\1."),
    (r"\.point_conv\.norm\.", ".norm."),
    (r"\.conv2\.norm\.", ".norm."),
    (r"\.(conv[12]?)\.conv\.", r".\1."),
]
_QKV = ".attn.qkv.conv.weight"


class EfficientViT(DeepCompression):
    """efficientvit's DCAE; the function is that of diffusers' AutoencoderDC, the names are others."""

    name = "efficientvit DCAE"
    sentinel = r"encoder\.project_out\.main\.op_list\.0\.conv\.weight"
    grammar = (
        r"(?:en|de)coder\.(?:project_(?:in|out)(?:\.main)?(?:\.op_list\.\d+)?(?:\.conv)*"
        r"|stages\.\d+\.op_list\.\d+\.(?:main\.conv[12]?(?:\.conv|\.norm)?"
        r"|context_module\.main\.(?:qkv\.conv|aggreg\.\d+\.[01]|proj\.(?:conv|norm))"
        r"|local_module\.main\.\w+_conv\.(?:conv|norm)))\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
    )

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        renamed: dict[str, tuple[int, ...]] = {}
        for theirs, name in _renamed(shapes).items():
            shape = shapes[theirs]
            if name.endswith(_QKV):
                if shape[0] % 3:
                    raise NotThisLayout(
                        f"{theirs} has {shape[0]} outputs; expected queries, keys and values of one width"
                    )
                renamed |= dict.fromkeys(_parts(name), (shape[0] // 3, *shape[1:]))
            else:
                renamed[name] = shape
        found = super().read(renamed, stated)
        ours = found.names
        names, splits = {}, {}
        for theirs, name in _renamed(shapes).items():
            if name.endswith(_QKV):
                splits[theirs] = tuple(ours[part] for part in _parts(name))
            else:
                names[theirs] = ours[name]
        choices = tuple(
            replace(choice, alternatives=tuple(replace(other, names=names) for other in choice.alternatives))
            for choice in found.choices
        )
        return replace(found, names=names, splits=splits, choices=choices)

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

        # diffusers' own conversion is a second opinion about the names; it knows one further scale of attention.
        theirs = convert_autoencoder_dc_checkpoint_to_diffusers(dict(tensors))
        theirs = {translate(name, _TO_DIFFUSERS): tensor for name, tensor in theirs.items()}
        return replace(
            super().reference(architecture, theirs), names=_renamed({k: tuple(t.shape) for k, t in tensors.items()})
        )


def _renamed(shapes: Shapes) -> dict[str, str]:
    """Return efficientvit's names -> diffusers', with queries, keys and values still in one."""
    names = {name: translate(name, _TO_DIFFUSERS) for name in shapes}
    # Without blocks in the first stage the image is resampled on its way in and out, by a module around the convolution.
    for half, end in (("encoder", "conv_in"), ("decoder", "conv_out")):
        if not any(name.startswith(f"{half}.stages.0.") for name in shapes):
            names = {k: re.sub(rf"^{half}\.{end}\.", f"{half}.{end}.conv.", v) for k, v in names.items()}
    return names


def _parts(name: str) -> list[str]:
    """Return diffusers' names of queries, keys and values; heads lie in the order in which both libraries read them."""
    return [name.replace(".qkv.conv.", f".to_{part}.") for part in "qkv"]
