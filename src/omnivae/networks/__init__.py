"""Networks: tensors in, tensors out; no probability."""

from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.networks.dense import DenseAfter, DenseBefore
from omnivae.networks.kl import KLDecoder, KLEncoder
from omnivae.networks.mlp import MLPDecoder, MLPEncoder
from omnivae.networks.swin import SwinDecoder, SwinEncoder
from omnivae.networks.transvae import TransVAEDecoder, TransVAEEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "DenseAfter",
    "DenseBefore",
    "KLDecoder",
    "KLEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "SwinDecoder",
    "SwinEncoder",
    "TransVAEDecoder",
    "TransVAEEncoder",
]
