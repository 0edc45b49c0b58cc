"""Training: one LightningModule, its callbacks, and ``fit``."""

from omnivae.training.callbacks import CHECKPOINTS
from omnivae.training.config import TrainingConfig
from omnivae.training.fit import FitResult, fit
from omnivae.training.flight import replay
from omnivae.training.module import VAEModule, check

__all__ = ["CHECKPOINTS", "FitResult", "TrainingConfig", "VAEModule", "check", "fit", "replay"]
