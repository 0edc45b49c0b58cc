"""TransVAE as a researcher would first write it, with the weights of ours: the baseline of the measurements.

One operator after the other, activations in the layout that convolutions are given. The heads of the attention are
contiguous, so that torch's fused kernel is taken; without that the baseline would be slower still.
"""

from __future__ import annotations

import copy
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae.networks.attention import GridAttention, axial_rope
from omnivae.networks.layers import ChannelRMSNorm
from omnivae.networks.transvae import ConvBlock, Downsample, FeedForward, TransformerBlock, Upsample


def norm(self: ChannelRMSNorm, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
    return x * scale * self.weight.view(1, -1, 1, 1).to(x.dtype)


def head_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.to(x.dtype)


def conv_block(self: ConvBlock, x: Tensor) -> Tensor:
    h = self.conv1(F.silu(self.norm1(x)))
    return x + self.conv2(F.silu(self.norm2(h)))


def feed_forward(self: FeedForward, x: Tensor) -> Tensor:
    h = F.silu(self.expand(x))
    h = F.silu(self.spatial(h))
    return self.contract(h)


def attention(self: GridAttention, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = self.qkv(tokens).chunk(3, dim=-1)
    q, k, v = (t.reshape(b, h * w, -1, self.head_dim).transpose(1, 2) for t in (q, k, v))
    q, k = head_norm(q, self.q_norm.weight), head_norm(k, self.k_norm.weight)
    cos, sin = (table.to(q.dtype) for table in axial_rope((h, w), self.head_dim, device=x.device))

    def turn(t: Tensor) -> Tensor:
        a, b = t.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    out = F.scaled_dot_product_attention(turn(q), turn(k), v)
    out = self.projection(out.transpose(1, 2).reshape(b, h * w, c))
    return out.transpose(1, 2).reshape(b, c, h, w)


def transformer_block(self: TransformerBlock, x: Tensor) -> Tensor:
    x = x + self.attention(self.norm1(x))
    return x + self.ffn(self.norm2(x))


def downsample(self: Downsample, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y + F.pixel_unshuffle(x, 2).unflatten(1, (y.shape[1], -1)).mean(2)


def upsample(self: Upsample, x: Tensor) -> Tensor:
    y = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    return y + F.pixel_shuffle(x.repeat_interleave(y.shape[1] * 4 // x.shape[1], dim=1), 2)


FORWARD = {
    ChannelRMSNorm: norm,
    ConvBlock: conv_block,
    FeedForward: feed_forward,
    GridAttention: attention,
    TransformerBlock: transformer_block,
    Downsample: downsample,
    Upsample: upsample,
}


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a TransVAE that computes the same function the plain way."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in FORWARD:
            module.forward = MethodType(FORWARD[type(module)], module)
        if hasattr(module, "channels_last"):
            module.channels_last = False
    return model
