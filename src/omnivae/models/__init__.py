"""Models: the wiring of networks, posterior, prior and likelihood."""

from omnivae.models.vae import VAE

__all__ = ["VAE"]
