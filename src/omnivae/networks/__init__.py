"""Networks: tensors in, tensors out; no probability."""

from omnivae.networks.beta_vae_25d import VaeDecoder, VaeEncoder
from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.networks.deep import DeepDecoder, DeepEncoder
from omnivae.networks.dense import DenseAfter, DenseBefore
from omnivae.networks.diffusers_cogvideox import CogVideoXDecoder, CogVideoXEncoder
from omnivae.networks.diffusers_dc import DCDecoder, DCEncoder
from omnivae.networks.kl import KLDecoder, KLEncoder
from omnivae.networks.ladder import LadderDecoder, LadderEncoder
from omnivae.networks.maisi import MaisiDecoder, MaisiEncoder
from omnivae.networks.mlp import MLPDecoder, MLPEncoder
from omnivae.networks.monai_kl import MonaiKLDecoder, MonaiKLEncoder
from omnivae.networks.swin import SwinDecoder, SwinEncoder
from omnivae.networks.transvae import TransVAEDecoder, TransVAEEncoder
from omnivae.networks.video import LiftedNetwork
from omnivae.networks.wavelet import WaveletEncoder

__all__ = [
    "CogVideoXDecoder",
    "CogVideoXEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DCDecoder",
    "DCEncoder",
    "DeepDecoder",
    "DeepEncoder",
    "DenseAfter",
    "DenseBefore",
    "KLDecoder",
    "KLEncoder",
    "LadderDecoder",
    "LadderEncoder",
    "LiftedNetwork",
    "MLPDecoder",
    "MLPEncoder",
    "MaisiDecoder",
    "MaisiEncoder",
    "MonaiKLDecoder",
    "MonaiKLEncoder",
    "SwinDecoder",
    "SwinEncoder",
    "TransVAEDecoder",
    "TransVAEEncoder",
    "VaeDecoder",
    "VaeEncoder",
    "WaveletEncoder",
]
