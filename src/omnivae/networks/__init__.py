"""Networks: tensors in, tensors out; no probability."""

from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.networks.kl import KLDecoder, KLEncoder
from omnivae.networks.swin import SwinDecoder, SwinEncoder
from omnivae.networks.transvae import TransVAEDecoder, TransVAEEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "KLDecoder",
    "KLEncoder",
    "SwinDecoder",
    "SwinEncoder",
    "TransVAEDecoder",
    "TransVAEEncoder",
]
