"""Uniform priors of latents that are no real vectors: points of a sphere, and one-hot categories."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints

from omnivae.priors.base import Prior


class _Uniform(Distribution):
    """A constant density: ``log_level`` nats everywhere on the support."""

    arg_constraints = {}
    support = constraints.real

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size, log_level: float, like: Tensor) -> None:
        self.log_level = log_level
        self.like = like
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the constant for every point of the support, ``[..., *batch_shape]``."""
        return value.new_full(value.shape[: value.ndim - len(self.event_shape)], self.log_level)

    def sample_at(self, temperature: float, sample_shape: Any = ()) -> Tensor:
        """Draw z; the only temperature of a uniform density is 1.

        Args:
            temperature: 1.
            sample_shape: leading axes.

        Returns:
            ``[*sample_shape, *batch_shape, *event_shape]``.

        Raises:
            ValueError: for another temperature.
        """
        if temperature != 1:
            raise ValueError(
                f"got temperature={temperature}; the prior of this model is uniform and has none: leave it at 1"
            )
        return self.sample(torch.Size(sample_shape))


class SphereDensity(_Uniform):
    """Uniform density on the unit sphere in D dimensions, with respect to its area.

    Args:
        batch_shape: shape of the batch.
        dimensions: D.
        like: tensor of the samples' type and device.

    Example:
        >>> p = SphereDensity(torch.Size((2,)), 3, torch.zeros(()))
        >>> round(float(p.log_prob(p.sample())[0].exp() * 4 * math.pi), 5)
        1.0
    """

    def __init__(self, batch_shape: torch.Size, dimensions: int, like: Tensor) -> None:
        #: Logarithm of the area, 2 pi^(D/2) / Gamma(D/2).
        self.log_area = math.log(2) + dimensions / 2 * math.log(math.pi) - math.lgamma(dimensions / 2)
        super().__init__(batch_shape, torch.Size((dimensions,)), -self.log_area, like)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw points of the sphere, ``[*sample_shape, *batch_shape, D]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return F.normalize(torch.randn(shape, dtype=self.like.dtype, device=self.like.device), dim=-1)


class CategoriesDensity(_Uniform):
    """Independent uniform categories, one-hot: G groups of C categories along the channels, at each position.

    Args:
        latent_shape: ``[B, G * C, *S]``.
        num_categories: C.
        like: tensor of the samples' type and device.

    Example:
        >>> p = CategoriesDensity(torch.Size((2, 6)), 3, torch.zeros(()))
        >>> p.sample().sum(1), round(float(p.log_prob(p.sample())[0].exp()), 4)
        (tensor([2., 2.]), 0.1111)
    """

    def __init__(self, latent_shape: torch.Size, num_categories: int, like: Tensor) -> None:
        self.num_categories = num_categories
        count = latent_shape[1:].numel() // num_categories
        super().__init__(latent_shape[:1], latent_shape[1:], -count * math.log(num_categories), like)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot categories, ``[*sample_shape, B, G * C, *S]``."""
        leading = torch.Size(sample_shape) + self.batch_shape
        channels, *size = self.event_shape
        index = torch.randint(
            self.num_categories, (*leading, channels // self.num_categories, *size), device=self.like.device
        )
        one_hot = F.one_hot(index, self.num_categories).movedim(-1, len(leading) + 1)
        return one_hot.flatten(len(leading), len(leading) + 1).to(self.like.dtype)


class UniformSphere(Prior):
    """p(z) uniform on the unit sphere (Davidson et al., Hyperspherical Variational Auto-Encoders, 2018).

    Example:
        >>> UniformSphere()(torch.Size((2, 3))).sample().norm(dim=1).allclose(torch.ones(2))
        True
    """

    support = "sphere"

    def __init__(self) -> None:
        super().__init__()
        # Only tells where and in which precision to create the density; never saved.
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        if len(latent_shape) != 2:
            raise ValueError(f"got latents of shape {tuple(latent_shape[1:])}; a sphere is one of a vector latent")
        return SphereDensity(latent_shape[:1], latent_shape[1], _precise(self._like))  # type: ignore[arg-type]


class UniformCategories(Prior):
    """p(z) uniform over the categories of every group, whatever the condition.

    Args:
        num_categories: C >= 2, as in the posterior.

    Raises:
        ValueError: for less than two categories, or a latent that they do not divide.

    Example:
        >>> UniformCategories(5)(torch.Size((2, 10))).sample().shape
        torch.Size([2, 10])
    """

    support = "one-hot"

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"got num_categories={num_categories}; expected at least 2")
        self.num_categories = num_categories
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        if latent_shape[1] % self.num_categories:
            raise ValueError(
                f"got a latent of {latent_shape[1]} channels; expected whole groups of num_categories={self.num_categories}"
            )
        return CategoriesDensity(latent_shape, self.num_categories, _precise(self._like))  # type: ignore[arg-type]


def _precise(like: Tensor) -> Tensor:
    return like if like.dtype == torch.float64 else like.float()
