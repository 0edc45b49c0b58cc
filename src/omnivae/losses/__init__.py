"""Losses: a model's output and a batch to one unweighted scalar, and the schedules of their weights."""

from omnivae.losses.adaptive import AdaptiveLoss, pixel_parameters, reconstruction_gradient
from omnivae.losses.adversarial import GAN
from omnivae.losses.alignment import VF
from omnivae.losses.base import Loss, loss_classes
from omnivae.losses.elbo import KL, NLL
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

__all__ = [
    "GAN",
    "KL",
    "L1",
    "LPIPS",
    "MSE",
    "MSSSIM",
    "NLL",
    "VF",
    "AdaptiveLoss",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicalSchedule",
    "LinearSchedule",
    "Loss",
    "Schedule",
    "loss_classes",
    "pixel_parameters",
    "reconstruction_gradient",
    "value_at",
]
