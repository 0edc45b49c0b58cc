"""Diagonal Gaussian posterior head (Kingma & Welling, Auto-Encoding Variational Bayes, 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnivae.component import Component
from omnivae.distributions import DiagonalGaussian
from omnivae.networks.layers import convolution


class PosteriorHead(nn.Module, Component):
    """Base of the posterior heads: a module from encoder features to q(z|x).

    Attributes:
        latent_dim: channels of z.
        provides: what its posteriors have: "density", "diagonal", "indices".
    """

    abstract = True

    latent_dim: int
    provides: frozenset[str] = frozenset()


class GaussianPosterior(PosteriorHead):
    """Projects features to the mean and log-variance of a diagonal Gaussian.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z.
        dim: number of spatial axes of the features; 0 for a vector latent.
        kernel_size: odd kernel of the projection; 1 where ``dim`` is 0.

    Example:
        >>> GaussianPosterior(8, 4, dim=2)(torch.zeros(1, 8, 3, 3)).shape
        torch.Size([1, 4, 3, 3])
    """

    provides = frozenset({"density", "diagonal"})

    def __init__(self, in_channels: int, latent_dim: int, dim: int = 2, kernel_size: int = 1) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1")
        self.latent_dim = latent_dim
        self.projection = convolution(dim, in_channels, 2 * latent_dim, kernel_size)

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Return q(z|x) for features ``[B, C, *S]``."""
        # Float32 from here on: under autocast a bf16 log-variance would quantise the KL.
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = self.projection.weight  # type: ignore[assignment]
            mean, logvar = self.projection(features.to(weight.dtype)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)


class QuantConvPosterior(PosteriorHead):
    """Mean and log-variance from two 1x1 convolutions, under the names of MONAI's autoencoders.

    MONAI's standard deviation is ``exp(logvar / 2)`` with the log-variance clamped to [-30, 20], as every posterior's is
    here.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z.
        dim: number of spatial axes of the features, 1 to 3.

    Example:
        >>> QuantConvPosterior(4, 4)(torch.zeros(1, 4, 2, 3, 3)).shape
        torch.Size([1, 4, 2, 3, 3])
    """

    provides = frozenset({"density", "diagonal"})

    def __init__(self, in_channels: int = 4, latent_dim: int = 4, dim: int = 3) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1")
        self.latent_dim = latent_dim
        self.quant_conv_mu = nn.ModuleDict({"conv": convolution(dim, in_channels, latent_dim, 1)})
        self.quant_conv_log_sigma = nn.ModuleDict({"conv": convolution(dim, in_channels, latent_dim, 1)})

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Return q(z|x) for features ``[B, C, *S]``."""
        mean, logvar = self.quant_conv_mu["conv"], self.quant_conv_log_sigma["conv"]
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = mean.weight  # type: ignore[assignment]
            features = features.to(weight.dtype)
            return DiagonalGaussian(mean(features), logvar(features))


class SplitPosterior(PosteriorHead):
    """Splits features into mean and log-variance; for encoders that end in both. It has no parameters.

    Args:
        latent_dim: channels of z, half of the features'.

    Example:
        >>> SplitPosterior(3)(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """

    provides = frozenset({"density", "diagonal"})

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1")
        self.latent_dim = latent_dim

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """Return q(z|x) for features ``[B, 2 * latent_dim, *S]``."""
        if features.shape[1] != 2 * self.latent_dim:
            raise ValueError(
                f"got {features.shape[1]} feature channels; expected mean and log-variance of {self.latent_dim} each"
            )
        mean, logvar = features.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)
