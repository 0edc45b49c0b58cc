"""Losses: a model's output and a batch to one unweighted scalar, and the schedules of their weights."""

from omnivae.losses.base import Loss, loss_classes
from omnivae.losses.elbo import KL, NLL
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
    "KL",
    "L1",
    "MSE",
    "MSSSIM",
    "NLL",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicalSchedule",
    "LinearSchedule",
    "Loss",
    "Schedule",
    "loss_classes",
    "value_at",
]
