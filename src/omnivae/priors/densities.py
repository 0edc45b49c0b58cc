"""Densities that priors return and torch does not have: a mixture with shared components, one density at each position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from omnivae.distributions import LOGVAR_MAX, LOGVAR_MIN, at_least_float32


class MixtureOfGaussians(Distribution):
    """p(z) = sum_m w_m N(z; mean_m, diag(exp(logvar_m))), the same components for every element of the batch.

    Args:
        logits: unnormalised log-weights, ``[M]``.
        mean: ``[M, *event]``.
        logvar: ``[M, *event]``; clamped as a posterior's.
        batch_shape: shape of the batch.

    Example:
        >>> p = MixtureOfGaussians(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1), torch.Size((3,)))
        >>> p.sample().shape, p.log_prob(torch.zeros(5, 3, 1)).shape
        (torch.Size([3, 1]), torch.Size([5, 3]))
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, logits: Tensor, mean: Tensor, logvar: Tensor, batch_shape: torch.Size) -> None:
        self.log_weights = torch.log_softmax(at_least_float32(logits), 0)
        self.component_mean = at_least_float32(mean)
        self.component_logvar = at_least_float32(logvar).clamp(LOGVAR_MIN, LOGVAR_MAX)
        super().__init__(torch.Size(batch_shape), self.component_mean.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of the whole mixture, ``[*batch_shape, *event]``."""
        return self._weighted(self.component_mean).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Variance of each element of the event, ``[*batch_shape, *event]``."""
        second = self._weighted(self.component_mean.square() + self.component_logvar.exp())
        return (second - self._weighted(self.component_mean).square()).expand(self._extended_shape())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats.

        Args:
            value: ``[..., *batch_shape, *event]``.

        Returns:
            ``[..., *batch_shape]``.
        """
        ndim = len(self.event_shape)
        difference = at_least_float32(value).unsqueeze(-1 - ndim) - self.component_mean
        terms = difference.square() * (-self.component_logvar).exp() + self.component_logvar + math.log(2 * math.pi)
        log_component = -0.5 * terms.flatten(-ndim).sum(-1)
        return torch.logsumexp(self.log_weights + log_component, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component for each element of the batch, then z from it."""
        return self.sample_at(1.0, sample_shape)

    def sample_at(self, temperature: float, sample_shape: Any = ()) -> Tensor:
        """Draw z with every component's standard deviation multiplied by ``temperature``; the weights stay.

        Args:
            temperature: 0 draws centres of components.
            sample_shape: leading axes.

        Returns:
            ``[*sample_shape, *batch_shape, *event]``, without gradient.
        """
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            index = torch.multinomial(self.log_weights.exp(), max(shape.numel(), 1), replacement=True).reshape(shape)
            mean, logvar = self.component_mean[index], self.component_logvar[index]
            return mean + temperature * torch.exp(0.5 * logvar) * torch.randn_like(mean)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureOfGaussians:
        """Return the same mixture with another batch shape."""
        return MixtureOfGaussians(self.log_weights, self.component_mean, self.component_logvar, torch.Size(batch_shape))

    def _weighted(self, values: Tensor) -> Tensor:
        # Not a matrix product: autocast would run that in half precision.
        weights = self.log_weights.exp().reshape(-1, *[1] * (values.ndim - 1))
        return (weights * values).sum(0)


class EachPosition(Distribution):
    """A density over channels, drawn independently at each position of a spatial latent.

    Args:
        base: batch shape ``[B, *S]``, event shape ``[C]``; has ``sample_at``.

    Example:
        >>> base = MixtureOfGaussians(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3), torch.Size((4, 5, 6)))
        >>> EachPosition(base).sample().shape
        torch.Size([4, 3, 5, 6])
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, base: Distribution) -> None:
        self.base = base
        batch, *size = base.batch_shape
        self.axis = -1 - len(size)
        super().__init__(torch.Size((batch,)), torch.Size((*base.event_shape, *size)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, ``[B, C, *S]``."""
        return self.base.mean.movedim(-1, self.axis)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``[B, C, *S]``."""
        return self.base.variance.movedim(-1, self.axis)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats, summed over the positions.

        Args:
            value: ``[..., B, C, *S]``.

        Returns:
            ``[..., B]``.
        """
        log_prob = self.base.log_prob(value.movedim(self.axis, -1))
        return log_prob.flatten(self.axis + 1).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z, ``[*sample_shape, B, C, *S]``."""
        return self.sample_at(1.0, sample_shape)

    def sample_at(self, temperature: float, sample_shape: Any = ()) -> Tensor:
        """Draw z at a temperature, ``[*sample_shape, B, C, *S]``; the base says what that means."""
        return self.base.sample_at(temperature, sample_shape).movedim(-1, self.axis)  # type: ignore[attr-defined]
