"""Small originals of each layout with random weights, norms and biases too: at their defaults a swap would go unseen."""

import torch
from torch import nn


def filled(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / fan**0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    return module.eval()


def maisi(**changes):
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    arguments = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "num_channels": (32, 32),
        "num_res_blocks": (1, 1),
        "attention_levels": (False, False),
        "num_splits": 1,
    }
    return filled(AutoencoderKlMaisi(**(arguments | changes)))


def monai_kl(dim=2, **changes):
    from monai.networks.nets import AutoencoderKL

    arguments = {
        "channels": (32, 64),
        "num_res_blocks": (1, 2),
        "attention_levels": (False, True),
        "latent_channels": 3,
    }
    return filled(AutoencoderKL(dim, **(arguments | changes)))


def diffusers_kl(down=("DownEncoderBlock2D",) * 2, up=("UpDecoderBlock2D",) * 2, **changes):
    import diffusers

    return filled(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=down,
            up_block_types=up,
            layers_per_block=1,
            latent_channels=4,
            **changes,
        )
    )


def cogvideox(**changes):
    import diffusers

    arguments = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        "block_out_channels": (8, 8, 16, 16),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return filled(diffusers.AutoencoderKLCogVideoX(**(arguments | changes)))


def deep_compression(**changes):
    import diffusers

    arguments = {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8, 16),
        "decoder_block_out_channels": (8, 8, 16),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 2, 1),
        "encoder_qkv_multiscales": ((), (), (5,)),
        "decoder_qkv_multiscales": ((), (), (3, 5)),
    }
    return filled(diffusers.AutoencoderDC(**(arguments | changes)))


#: Options of the deep compression autoencoder that published files have.
HALVED_FIRST = {
    "encoder_layers_per_block": (0, 1, 1),
    "decoder_layers_per_block": (0, 2, 1),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
    "decoder_act_fns": ("relu", "relu", "silu"),
}


def efficientvit(module):
    """Return the weights of diffusers' deep compression autoencoder under the names of MIT's own files.

    Their modules: a sequence is an ``op_list``, a residual block has a ``main``, and a convolution with a norm has both inside.
    """
    tensors = dict(module.state_dict())
    result = {}
    for name in list(tensors):
        if name.endswith(("to_k.weight", "to_v.weight")):
            continue
        path = name.split(".")
        half, part, last = path[0], path[1], path[-1]
        if part == "conv_in":
            project = "project_in" if half == "encoder" else "project_in.main"
            inner = "conv.conv" if path[2] == "conv" and module.config.downsample_block_type != "conv" else "conv"
            new = f"{half}.{project}.{inner}.{last}"
        elif part == "conv_out":
            inner = "conv.conv" if path[2] == "conv" else "conv"
            new = f"encoder.project_out.main.op_list.0.conv.{last}"
            new = new if half == "encoder" else f"decoder.project_out.op_list.2.{inner}.{last}"
        elif part == "norm_out":
            new = f"decoder.project_out.op_list.0.{last}"
        else:
            stage, block, inside = path[2], path[3], ".".join(path[4:-1])
            attention = any(f"{half}.{part}.{stage}.{block}.{q}" in tensors for q in ("attn.to_q.weight",))
            where = f"{half}.stages.{stage}.op_list.{block}"
            if inside == "attn.to_q":
                qkv = [tensors[name.replace("to_q", f"to_{q}")] for q in "qkv"]
                result[f"{where}.context_module.main.qkv.conv.weight"] = torch.cat(qkv)[:, :, None, None]
                continue
            if inside == "attn.to_out":
                result[f"{where}.context_module.main.proj.conv.weight"] = tensors[name][:, :, None, None]
                continue
            resampled = (
                "main.conv" if half == "encoder" and module.config.downsample_block_type == "conv" else "main.conv.conv"
            )
            scale = inside.removeprefix("attn.to_qkv_multiscale.").split(".")[0]
            new = {
                "conv": resampled,
                "conv1": "main.conv1.conv",
                "conv2": "main.conv2.conv",
                "norm": "main.conv2.norm",
                "attn.norm_out": "context_module.main.proj.norm",
                f"attn.to_qkv_multiscale.{scale}.proj_in": f"context_module.main.aggreg.{scale}.0",
                f"attn.to_qkv_multiscale.{scale}.proj_out": f"context_module.main.aggreg.{scale}.1",
                "conv_out.conv_inverted": "local_module.main.inverted_conv.conv",
                "conv_out.conv_depth": "local_module.main.depth_conv.conv",
                "conv_out.conv_point": "local_module.main.point_conv.conv",
                "conv_out.norm": "local_module.main.point_conv.norm",
            }[inside]
            assert attention == new.startswith(("context", "local"))
            new = f"{where}.{new}.{last}"
        result[new] = tensors[name]
    return result


def monai_var(**changes):
    from monai.networks.nets import VarAutoEncoder

    arguments = {"spatial_dims": 2, "in_shape": (1, 16, 16), "out_channels": 1, "latent_size": 6}
    return filled(VarAutoEncoder(**(arguments | {"channels": (4, 8), "strides": (2, 2)} | changes)))


class LatentDiffusionStage(nn.Module):
    """One stage as latent diffusion nests it."""

    def __init__(self, blocks, attn=(), **resample):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attn)
        for name, conv in resample.items():
            setattr(self, name, nn.ModuleDict({"conv": conv}))


def latent_diffusion(dim=2, channels=(32, 64), latent=3, image=1, blocks=1, levels=(False, False)):
    """Return random weights under latent diffusion's names (CompVis' layout, in 3-D MedVAE's)."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dim]

    def res(a, b):
        parts = {
            "norm1": nn.GroupNorm(32, a),
            "conv1": conv(a, b, 3),
            "norm2": nn.GroupNorm(32, b),
            "conv2": conv(b, b, 3),
        }
        return nn.ModuleDict(parts | ({"nin_shortcut": conv(a, b, 1)} if a != b else {}))

    def attention(c):
        return nn.ModuleDict({"norm": nn.GroupNorm(32, c)} | {n: conv(c, c, 1) for n in ("q", "k", "v", "proj_out")})

    def middle(c):
        return nn.ModuleDict({"block_1": res(c, c), "attn_1": attention(c), "block_2": res(c, c)})

    down, up, last = [], [], len(channels) - 1
    for i, c in enumerate(channels):
        before = channels[max(i - 1, 0)]
        more = {"downsample": conv(c, c, 3)} if i < last else {}
        attn = [attention(c) for _ in range(levels[i] * (blocks + 1))]
        down.append(LatentDiffusionStage([res(before if j == 0 else c, c) for j in range(blocks)], attn[1:], **more))
        above = channels[min(i + 1, last)]
        more = {"upsample": conv(c, c, 3)} if i > 0 else {}
        up.append(LatentDiffusionStage([res(above if j == 0 else c, c) for j in range(blocks + 1)], attn, **more))
    ends = [("conv_in", conv(image, channels[0], 3)), ("norm_out", nn.GroupNorm(32, channels[-1]))]
    encoder = nn.ModuleDict({"down": nn.ModuleList(down), "mid": middle(channels[-1]), **dict(ends)})
    encoder["conv_out"] = conv(channels[-1], 2 * latent, 3)
    ends = [("conv_in", conv(latent, channels[-1], 3)), ("norm_out", nn.GroupNorm(32, channels[0]))]
    decoder = nn.ModuleDict({"up": nn.ModuleList(up), "mid": middle(channels[-1]), **dict(ends)})
    decoder["conv_out"] = conv(channels[0], image, 3)
    parts = {"encoder": encoder, "decoder": decoder, "quant_conv": conv(2 * latent, 2 * latent, 1)}
    return filled(nn.ModuleDict(parts | {"post_quant_conv": conv(latent, latent, 1)})).state_dict()
