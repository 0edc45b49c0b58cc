"""A Gaussian prior whose mean and variance follow the condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from omnivae.distributions import LOGVAR_MAX, LOGVAR_MIN, at_least_float32
from omnivae.priors.base import Prior


class ConditionalGaussianPrior(Prior):
    """p(z|c) = N(mean(c), diag(exp(logvar(c)))) (Sohn et al., Learning Structured Output Representation, 2015, eq. 4).

    Mean and log-variance are one network of the condition; it starts at N(0, I) for every condition. In a spatial latent
    all positions share them. :meth:`VAE.sample`'s temperature multiplies the standard deviation.

    Args:
        cond_dim: size E of the condition.
        latent_dim: channels of z.
        hidden: widths of the hidden layers; none for a linear map.

    Raises:
        ValueError: for sizes below 1, a missing condition or one of another size.

    Example:
        >>> ConditionalGaussianPrior(10, 4)(torch.Size((2, 4)), cond=torch.zeros(2, 10)).mean
        tensor([[0., 0., 0., 0.],
                [0., 0., 0., 0.]], grad_fn=<ExpandBackward0>)
    """

    independent = True

    def __init__(self, cond_dim: int, latent_dim: int, hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        if min(cond_dim, latent_dim, *hidden, 1) < 1:
            raise ValueError(
                f"got cond_dim={cond_dim}, latent_dim={latent_dim}, hidden={tuple(hidden)}; expected positive sizes"
            )
        self.cond_dim = cond_dim
        self.latent_dim = latent_dim
        layers: list[nn.Module] = []
        for width, following in pairwise((cond_dim, *hidden)):
            layers += [nn.Linear(width, following), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear((cond_dim, *hidden)[-1], 2 * latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        if cond is None or cond.ndim != 2 or cond.shape != (latent_shape[0], self.cond_dim):
            got = None if cond is None else tuple(cond.shape)
            raise ValueError(
                f"got the condition {got}; this prior needs one of shape {(latent_shape[0], self.cond_dim)}: pass cond"
            )
        if latent_shape[1] != self.latent_dim:
            raise ValueError(f"got a latent of {latent_shape[1]} channels; this prior was built for {self.latent_dim}")
        # Float32 under autocast, as the posterior: the KL compares the two.
        with torch.autocast(device_type=cond.device.type, enabled=False):
            parameters = self.head(self.body(cond.to(self.head.weight.dtype)))
        mean, logvar = at_least_float32(parameters).unflatten(1, (-1, *[1] * (len(latent_shape) - 2))).chunk(2, dim=1)
        stddev = torch.exp(0.5 * logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))
        density = Normal(mean.expand(latent_shape), stddev.expand(latent_shape), validate_args=False)
        return Independent(density, len(latent_shape) - 1, validate_args=False)
