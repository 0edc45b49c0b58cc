"""A posterior without noise: the plain autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.distributions import at_least_float32
from omnivae.networks.layers import convolution
from omnivae.posteriors.gaussian import PosteriorHead


class PointMass:
    """All of q(z|x) on one point, for one batch; it has no density (Hinton & Salakhutdinov, Reducing Dimensionality, 2006).

    Args:
        z: ``[B, C, *S]``.
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> PointMass(torch.zeros(2, 3)).rsample(5)[0].shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, z: Tensor, *, input_size: tuple[int, ...] | None = None) -> None:
        self.mean = at_least_float32(z)
        self.input_size = input_size

    @property
    def shape(self) -> torch.Size:
        """Shape of z, ``[B, C, *S]``."""
        return self.mean.shape

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Terms that a :class:`Penalty` loss weights: "norm", ||z||^2 of each sample, ``[B]``."""
        return {"norm": self.mean.square().flatten(1).sum(1)}

    def mode(self) -> Tensor:
        """Return the point, ``[B, C, *S]``."""
        return self.mean

    def sample(self) -> Tensor:
        """Return the point without gradient, ``[B, C, *S]``."""
        return self.mean.detach()

    def rsample(self, k: int = 1) -> tuple[Tensor, None]:
        """Return the point k times.

        Args:
            k: number of copies, >= 1.

        Returns:
            z ``[K, B, C, *S]`` and ``None``: there is no density.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        return self.mean.unsqueeze(0).expand(k, *self.mean.shape), None

    def __repr__(self) -> str:
        return f"PointMass(shape={tuple(self.shape)})"


class PointMassPosterior(PosteriorHead):
    """Projects features to the latent of a plain autoencoder; losses that need a density refuse it.

    Penalty "norm": ||z||^2, summed over the event, which keeps the latent bounded (Ghosh et al., From Variational to
    Deterministic Autoencoders, 2020, eq. 6).

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z.
        dim: number of spatial axes of the features; 0 for a vector latent.

    Example:
        >>> PointMassPosterior(8, 4)(torch.zeros(2, 8, 3, 3)).shape
        torch.Size([2, 4, 3, 3])
    """

    provides = frozenset({"norm"})

    def __init__(self, in_channels: int, latent_dim: int, dim: int = 2) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1")
        self.latent_dim = latent_dim
        self.projection = convolution(dim, in_channels, latent_dim, 1)

    def forward(self, features: Tensor) -> PointMass:
        """Return the point for features ``[B, C, *S]``."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = self.projection.weight  # type: ignore[assignment]
            return PointMass(self.projection(features.to(weight.dtype)))
