"""What posteriors without noise share: all their mass is on one point, which has no density."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.networks.layers import convolution
from omnivae.posteriors.gaussian import PosteriorHead


class Point:
    """q(z|x) with all its mass on one point, for one batch.

    Args:
        z: ``[B, C, *S]``.
        input_size: spatial size of the encoded image before padding.
    """

    def __init__(self, z: Tensor, *, input_size: tuple[int, ...] | None = None) -> None:
        self._z = z
        self.input_size = input_size
        self.cond: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of z, ``[B, C, *S]``."""
        return self._z.shape

    def mode(self) -> Tensor:
        """Return the point, ``[B, C, *S]``."""
        return self._z

    def sample(self) -> Tensor:
        """Return the point without gradient, ``[B, C, *S]``."""
        return self._z.detach()

    def rsample(self, k: int = 1) -> tuple[Tensor, None]:
        """Return the point k times: nothing is random.

        Args:
            k: number of copies, >= 1.

        Returns:
            z ``[K, B, C, *S]`` and ``None``: there is no density.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        return self._z.unsqueeze(0).expand(k, *self._z.shape), None


class PointHead(PosteriorHead):
    """Base of the heads without noise: projects the features in float32.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z.
        dim: number of spatial axes of the features; 0 for a vector latent.
    """

    abstract = True

    def __init__(self, in_channels: int, latent_dim: int, dim: int = 2) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1")
        self.latent_dim = latent_dim
        self.projection = convolution(dim, in_channels, latent_dim, 1)

    def project(self, features: Tensor) -> Tensor:
        """Return the projection of features ``[B, C, *S]``; called with autocast switched off."""
        weight: Tensor = self.projection.weight  # type: ignore[assignment]
        return self.projection(features.to(weight.dtype))
