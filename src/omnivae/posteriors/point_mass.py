"""A posterior without noise: the plain autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.distributions import at_least_float32
from omnivae.posteriors.point import Point, PointHead


class PointMass(Point):
    """All of q(z|x) on one point, for one batch; it has no density (Hinton & Salakhutdinov, Reducing Dimensionality, 2006).

    Args:
        z: ``[B, C, *S]``.
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> PointMass(torch.zeros(2, 3)).rsample(5)[0].shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, z: Tensor, *, input_size: tuple[int, ...] | None = None) -> None:
        super().__init__(at_least_float32(z), input_size=input_size)
        self.mean = self._z

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Terms that a :class:`Penalty` loss weights: "norm", ||z||^2 of each sample, ``[B]``."""
        return {"norm": self.mean.square().flatten(1).sum(1)}

    def __repr__(self) -> str:
        return f"PointMass(shape={tuple(self.shape)})"


class PointMassPosterior(PointHead):
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

    def forward(self, features: Tensor) -> PointMass:
        """Return the point for features ``[B, C, *S]``."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            return PointMass(self.project(features))
