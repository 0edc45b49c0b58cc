"""Categorical posterior with the Gumbel-softmax relaxation.

Jang et al., Categorical Reparameterization with Gumbel-Softmax, 2017 (https://arxiv.org/abs/1611.01144); Maddison et al., The
Concrete Distribution, 2017 (https://arxiv.org/abs/1611.00712).

Shapes: G groups of C categories lie one after the other along the channels, ``[B, G * C, *S]``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from omnivae.distributions import at_least_float32
from omnivae.networks.layers import convolution
from omnivae.posteriors.gaussian import PosteriorHead


class CategoricalCodes:
    """Posterior of independent categories, one-hot, for one batch; relaxed at a temperature or exact.

    Densities are relative to C^G times the uniform density of the same temperature. For one-hot samples that is the counting
    measure, and ``log_q`` is the logarithm of a probability. For relaxed ones ``log_q - log p`` is the ratio of two Concrete
    densities (Maddison et al., 2017, eq. 9), so that importance weights make a bound of the relaxed model.

    Args:
        logits: ``[B, G * C, *S]``.
        num_categories: C >= 2.
        temperature: of the relaxation, > 0.
        relaxed: draw points of the simplex; ``False`` draws one-hot vectors whose gradient is that of the relaxed ones
            (straight-through).
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> q = CategoricalCodes(torch.zeros(2, 6), 3, temperature=0.5, relaxed=False)
        >>> z, log_q = q.rsample(4)
        >>> z.shape, z.sum(-1)[0], q.categories.shape, round(float(log_q[0, 0].exp()), 4)
        (torch.Size([4, 2, 6]), tensor([2., 2.]), torch.Size([2, 2]), 0.1111)
    """

    def __init__(
        self,
        logits: Tensor,
        num_categories: int,
        *,
        temperature: Tensor | float = 1.0,
        relaxed: bool = True,
        input_size: tuple[int, ...] | None = None,
    ) -> None:
        if num_categories < 2 or logits.shape[1] % num_categories:
            raise ValueError(
                f"got logits {tuple(logits.shape)} for num_categories={num_categories}; expected [B, G * C, *S] with C >= 2"
            )
        self.num_categories = num_categories
        self.temperature = temperature
        self.relaxed = relaxed
        self.input_size = input_size
        self.cond: Tensor | None = None
        #: Log-probabilities of the categories, ``[B, G, C, *S]``.
        self.log_probs = F.log_softmax(self._grouped(at_least_float32(logits), 1), 2)

    @property
    def shape(self) -> torch.Size:
        """Shape of one sample a batch element, ``[B, G * C, *S]``."""
        return self.mean.shape

    @property
    def mean(self) -> Tensor:
        """Probabilities of the categories, the mean of the one-hot vectors, ``[B, G * C, *S]``."""
        return self.log_probs.exp().flatten(1, 2)

    @property
    def logvar(self) -> Tensor:
        """Log-variance of each element of the one-hot vectors, log p (1 - p), ``[B, G * C, *S]``."""
        return (self.mean * (1 - self.mean)).clamp(min=torch.finfo(self.log_probs.dtype).tiny).log()

    @property
    def categories(self) -> Tensor:
        """The most probable categories, ``[B, *S, G]``."""
        return self.log_probs.argmax(2).movedim(1, -1)

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none."""
        return {}

    def mode(self) -> Tensor:
        """Return the most probable categories, one-hot, ``[B, G * C, *S]``."""
        return self._one_hot(self.log_probs.argmax(2, keepdim=True), 2).flatten(1, 2)

    def sample(self) -> Tensor:
        """Draw one sample without gradient, ``[B, G * C, *S]``."""
        with torch.no_grad():
            return self.rsample()[0][0]

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw k samples: ``softmax((log_probs + Gumbel noise) / temperature)``, or the one-hot vectors of its largest elements.

        Args:
            k: number of samples, >= 1.

        Returns:
            z ``[K, B, G * C, *S]`` and log q(z|x) in nats ``[K, B]``.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        # Gumbel noise: minus the logarithm of exponential noise.
        noise = -self.log_probs.new_empty((k, *self.log_probs.shape)).exponential_().log()
        log_z = F.log_softmax((self.log_probs + noise) / self.temperature, 3)
        z = log_z.exp()
        if self.relaxed:
            return z.flatten(2, 3), self._log_density(log_z)
        # The difference is zero to the last bit: the value is one-hot, the gradient that of the relaxed sample.
        z = self._one_hot(log_z.argmax(3, keepdim=True), 3) + (z - z.detach())
        return z.flatten(2, 3), (z * self.log_probs).flatten(2).sum(2)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats.

        Args:
            z: one-hot where the posterior is, of the simplex where it is relaxed; ``[B, G * C, *S]`` or ``[K, B, G * C, *S]``.

        Returns:
            ``[B]`` or ``[K, B]``.
        """
        leading = z.ndim - self.log_probs.ndim + 2
        z = self._grouped(at_least_float32(z), leading)
        if not self.relaxed:
            return (z * self.log_probs).flatten(leading).sum(leading)
        return self._log_density(z.clamp(min=torch.finfo(z.dtype).tiny).log())

    def kl(self) -> Tensor:
        """Return KL(q || uniform) of the categories in nats, ``sum p log(C p)``, ``[B]``."""
        elements = self.log_probs.exp() * (self.log_probs + math.log(self.num_categories))
        return elements.flatten(1).sum(1)

    def closed_form_kl(self, p: Distribution) -> Tensor | None:
        """Return KL(q || p) of the categories in nats, ``[B]``, for uniform ones; ``None`` for any other p.

        It is that of the one-hot vectors, also where samples are relaxed (Jang et al., 2017): the objective is then no
        bound; an evaluation, which draws one-hot vectors, computes one.
        """
        return self.kl() if getattr(p, "num_categories", None) == self.num_categories else None

    def _log_density(self, log_z: Tensor) -> Tensor:
        # Maddison et al., 2017, eq. 9, over the same with uniform probabilities: the powers of z cancel.
        axis = log_z.ndim - self.log_probs.ndim + 2
        c, scaled = self.num_categories, self.temperature * log_z
        each = (self.log_probs + math.log(c)).sum(2) - c * (
            torch.logsumexp(self.log_probs - scaled, axis) - torch.logsumexp(-math.log(c) - scaled, axis)
        )
        return (each - math.log(c)).flatten(axis - 1).sum(axis - 1)

    def _grouped(self, x: Tensor, axis: int) -> Tensor:
        return x.unflatten(axis, (-1, self.num_categories))

    def _one_hot(self, index: Tensor, axis: int) -> Tensor:
        shape = list(index.shape)
        shape[axis] = self.num_categories
        return torch.zeros(shape, dtype=self.log_probs.dtype, device=index.device).scatter_(axis, index, 1.0)

    def __repr__(self) -> str:
        return (
            f"CategoricalCodes(shape={tuple(self.shape)}, num_categories={self.num_categories}, relaxed={self.relaxed})"
        )


class CategoricalPosterior(PosteriorHead):
    """Projects features to the logits of G groups of C categories; samples are relaxed in training and one-hot in evaluation.

    The temperature follows ``max(final_temperature, temperature exp(-rate step))`` (Jang et al., 2017, section 4.2); the trainer
    sets the training step with :meth:`set_step`, and it is saved with the weights. In evaluation mode samples are exact: an
    evaluated ELBO is a bound for the discrete model.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: G * C, channels of z.
        dim: number of spatial axes of the features; 0 for a vector latent.
        num_categories: C >= 2, a divisor of ``latent_dim``.
        temperature: at the first step, > 0.
        final_temperature: the lowest, > 0.
        rate: of the decay by step, >= 0; 0 keeps the temperature.
        straight_through: one-hot samples in training too, with the relaxed ones' gradient (biased, as that of the relaxed
            objective is for the discrete one).

    Raises:
        ValueError: for sizes or temperatures out of range.

    Example:
        >>> CategoricalPosterior(8, 20, 0, num_categories=10)(torch.zeros(2, 8)).categories.shape
        torch.Size([2, 2])
    """

    provides = frozenset({"density"})
    support = "one-hot"

    step: Tensor

    def __init__(
        self,
        in_channels: int,
        latent_dim: int,
        dim: int = 2,
        *,
        num_categories: int = 10,
        temperature: float = 1.0,
        final_temperature: float = 0.5,
        rate: float = 1e-5,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        if num_categories < 2 or latent_dim < 1 or latent_dim % num_categories:
            raise ValueError(
                f"got latent_dim={latent_dim} and num_categories={num_categories}; expected whole groups of at least 2 categories, "
                "such as 200 and 10"
            )
        if not 0 < final_temperature <= temperature < math.inf or not 0 <= rate < math.inf:
            raise ValueError(
                f"got temperature={temperature}, final_temperature={final_temperature}, rate={rate}; expected "
                "0 < final_temperature <= temperature and rate >= 0"
            )
        self.latent_dim = latent_dim
        self.num_categories = num_categories
        self.initial_temperature, self.final_temperature, self.rate = temperature, final_temperature, rate
        self.straight_through = straight_through
        self.projection = convolution(dim, in_channels, latent_dim, 1)
        # A whole number: what averages weights copies it, and half precision leaves it alone.
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def temperature(self) -> Tensor:
        """The temperature at the present training step, a scalar."""
        value = self.initial_temperature * torch.exp(-self.rate * self.step.float())
        return value.clamp(min=self.final_temperature)

    def set_step(self, step: int) -> None:
        """Set the temperature of a training step.

        Args:
            step: optimiser steps made so far.
        """
        self.step.fill_(step)

    def forward(self, features: Tensor) -> CategoricalCodes:
        """Return q(z|x) for features ``[B, C, *S]``."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = self.projection.weight  # type: ignore[assignment]
            logits = self.projection(features.to(weight.dtype))
        return CategoricalCodes(
            logits,
            self.num_categories,
            temperature=self.temperature,
            relaxed=self.training and not self.straight_through,
        )
