"""Models: the wiring of networks, posterior, prior and likelihood."""

from omnivae.models.hierarchical import HierarchicalVAE
from omnivae.models.semi_supervised import SemiSupervisedVAE
from omnivae.models.stacked import StackedVAE
from omnivae.models.text import TextVAE
from omnivae.models.tiled import Tiled
from omnivae.models.vae import VAE

__all__ = ["VAE", "HierarchicalVAE", "SemiSupervisedVAE", "StackedVAE", "TextVAE", "Tiled"]
