"""Losses: a model's output and a batch to one unweighted scalar, and the schedules of their weights."""

from omnivae.losses.adaptive import AdaptiveLoss, pixel_parameters, reconstruction_gradient
from omnivae.losses.adversarial import GAN
from omnivae.losses.alignment import VF
from omnivae.losses.base import Loss, Refusal, loss_classes
from omnivae.losses.bounds import IWAE
from omnivae.losses.disentanglement import DIP, TC, Decomposition, decompose
from omnivae.losses.divergences import MMD, mmd
from omnivae.losses.elbo import KL, NLL
from omnivae.losses.equivariance import Equivariance
from omnivae.losses.features import DFC
from omnivae.losses.latent_adversarial import AAE, Factor, permute_dimensions
from omnivae.losses.penalty import CodeEntropy, Commitment, LatentNorm, Penalty
from omnivae.losses.perceptual import LPIPS
from omnivae.losses.reconstruction import L1, MSE, MSSSIM
from omnivae.losses.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicalSchedule,
    LinearSchedule,
    Schedule,
    value_at,
)
from omnivae.losses.semi_supervised import M2
from omnivae.losses.vae_gan import VAEGAN

__all__ = [
    "AAE",
    "DFC",
    "DIP",
    "GAN",
    "IWAE",
    "KL",
    "L1",
    "LPIPS",
    "M2",
    "MMD",
    "MSE",
    "MSSSIM",
    "NLL",
    "TC",
    "VAEGAN",
    "VF",
    "AdaptiveLoss",
    "CodeEntropy",
    "Commitment",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicalSchedule",
    "Decomposition",
    "Equivariance",
    "Factor",
    "LatentNorm",
    "LinearSchedule",
    "Loss",
    "Penalty",
    "Refusal",
    "Schedule",
    "decompose",
    "loss_classes",
    "mmd",
    "permute_dimensions",
    "pixel_parameters",
    "reconstruction_gradient",
    "value_at",
]
