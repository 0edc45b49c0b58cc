"""Exact streaming moments of the aggregate posterior, channel by channel (Chan, Golub & LeVeque, 1979)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from torch import Tensor

#: Values that are turned into float64 at once.
_BLOCK = 2**20


class ChannelMoments:
    """Mean and variance of each latent channel over images and positions, merged block by block in float64.

    A sample of the aggregate posterior has the variance Var(mean) + E[exp(logvar)] (law of total variance), so it is known
    without drawing one. Every value counts once: a larger image weighs more than a smaller one.

    Args:
        channels: number of latent channels.

    Example:
        >>> import torch
        >>> moments = ChannelMoments(2)
        >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.zeros(2, 2))
        >>> moments.mean.tolist(), moments.std_of_means.tolist(), (moments.std**2).round(6).tolist()
        ([1.0, 1.0], [1.0, 0.0], [2.0, 1.0])
    """

    def __init__(self, channels: int) -> None:
        self.num_images = 0
        self.num_values = 0
        self.mean = np.zeros(channels)
        self._squares = np.zeros(channels)  # sum of squared deviations of the means
        self._variance = np.zeros(channels)  # average of exp(logvar)

    def update(self, mean: Tensor, logvar: Tensor) -> None:
        """Take in a block of posteriors of one shape.

        Args:
            mean: ``[B, C, *S]``.
            logvar: ``[B, C, *S]``.
        """
        if len(mean) == 0:
            return
        if mean.shape != logvar.shape or mean.ndim < 2 or mean.shape[1] != len(self.mean):
            raise ValueError(
                f"got mean {tuple(mean.shape)} and logvar {tuple(logvar.shape)}; expected [B, {len(self.mean)}, *S] for both"
            )
        # In float64 a block takes twice the memory: small ones keep that small.
        images = max(1, _BLOCK // mean[0].numel())
        for start in range(0, len(mean), images):
            self.merge(_moments_of(mean[start : start + images], logvar[start : start + images]))

    def merge(self, other: ChannelMoments) -> None:
        """Take in the moments of other values.

        Args:
            other: moments of as many channels.
        """
        total = self.num_values + other.num_values
        if other.num_values == 0:
            return
        share = other.num_values / total
        delta = other.mean - self.mean
        self.mean = self.mean + delta * share
        self._squares = self._squares + other._squares + delta**2 * (self.num_values * share)
        self._variance = self._variance + (other._variance - self._variance) * share
        self.num_images += other.num_images
        self.num_values = total

    @property
    def std_of_means(self) -> np.ndarray:
        """Standard deviation of the posterior means, ``[C]``."""
        return np.sqrt(self._squares / max(1, self.num_values))

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of samples, ``[C]``."""
        return np.sqrt(self._squares / max(1, self.num_values) + self._variance)

    @property
    def scale_factor(self) -> float:
        """One over the standard deviation of all samples, channels together.

        The single number of Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models (2022), appendix G
        (0.18215 for their f8 autoencoder).
        """
        variance = float((self.std**2).mean() + self.mean.var())
        if variance <= 0:
            raise ValueError("every latent value is the same number: there is no scale to bring to one")
        return variance**-0.5

    def summary(self) -> dict[str, Any]:
        """Return the figures to whiten latents with, ready for JSON: per channel and as one factor.

        Returns:
            ``num_images``, ``num_values`` of a channel, ``mean``, ``std`` (of samples), ``std_of_means`` and
            ``scale_factor``.

        Raises:
            ValueError: when no image was seen.
        """
        if not self.num_images:
            raise ValueError("no latents to measure: give at least one image")
        return {
            "num_images": self.num_images,
            "num_values": self.num_values,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "std_of_means": self.std_of_means.tolist(),
            "scale_factor": self.scale_factor,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the state, ready for JSON; float64 survives exactly."""
        return {
            "num_images": self.num_images,
            "num_values": self.num_values,
            "mean": self.mean.tolist(),
            "squares": self._squares.tolist(),
            "variance": self._variance.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the moments that :meth:`to_dict` described.

        Args:
            values: the description.
        """
        moments = cls(len(values["mean"]))
        moments.num_images, moments.num_values = int(values["num_images"]), int(values["num_values"])
        moments.mean = np.array(values["mean"], dtype=np.float64)
        moments._squares = np.array(values["squares"], dtype=np.float64)
        moments._variance = np.array(values["variance"], dtype=np.float64)
        return moments


def _moments_of(mean: Tensor, logvar: Tensor) -> ChannelMoments:
    values = mean.double().cpu().transpose(0, 1).flatten(1)
    block = ChannelMoments(len(values))
    block.num_images, block.num_values = len(mean), values.shape[1]
    centre = values.mean(1)
    block.mean = centre.numpy()
    block._squares = (values - centre[:, None]).square().sum(1).numpy()
    block._variance = logvar.double().cpu().exp().transpose(0, 1).flatten(1).mean(1).numpy()
    return block
