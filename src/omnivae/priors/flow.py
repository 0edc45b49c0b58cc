"""A normalising flow as prior of a vector latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from omnivae.distributions import at_least_float32
from omnivae.networks.flows import Flow, FlowName
from omnivae.priors.base import Prior
from omnivae.priors.mixture import refuse_cond


class FlowDensity(Distribution):
    """Density of z = f(eps; context), eps ~ N(0, I).

    Args:
        flow: f, over D dimensions.
        batch_shape: shape of the batch.
        context: what f is conditioned on, ``[*batch_shape, E]``; ``None`` where it is not.

    Example:
        >>> p = FlowDensity(Flow("realnvp", 3), torch.Size((2,)))
        >>> p.sample().shape, p.log_prob(torch.zeros(5, 2, 3)).shape
        (torch.Size([2, 3]), torch.Size([5, 2]))
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, flow: Flow, batch_shape: torch.Size, context: Tensor | None = None) -> None:
        self.flow = flow
        self.context = None if context is None else at_least_float32(context)
        super().__init__(torch.Size(batch_shape), torch.Size((flow.features,)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats.

        Args:
            value: ``[..., *batch_shape, D]``.

        Returns:
            ``[..., *batch_shape]``.
        """
        eps, log_det = self.flow.inverse(at_least_float32(value), self.context)
        return -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1) + log_det

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z, ``[*sample_shape, *batch_shape, D]``."""
        return self.sample_at(1.0, sample_shape)

    def sample_at(self, temperature: float, sample_shape: Any = ()) -> Tensor:
        """Draw z from eps ~ N(0, temperature^2 I).

        Args:
            temperature: factor of the base's standard deviation; 0 draws the image of its mean.
            sample_shape: leading axes.

        Returns:
            ``[*sample_shape, *batch_shape, D]``, without gradient.
        """
        like = next(self.flow.parameters())
        with torch.no_grad():
            eps = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=like.dtype, device=like.device)
            return self.flow(temperature * eps, self.context)[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDensity:
        """Return the same density with another batch shape."""
        batch_shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch_shape, self.context.shape[-1])
        return FlowDensity(self.flow, batch_shape, context)


class FlowPrior(Prior):
    """p(z) of z = f(eps), eps ~ N(0, I), with a learned flow f (Chen et al., Variational Lossy Autoencoder, 2017, section 3.2).

    A masked autoregressive flow by default, whose density takes one pass; a sample takes D. It starts as the identity: training
    begins with the standard normal prior. :meth:`VAE.sample`'s temperature multiplies the standard deviation of eps.

    Args:
        latent_dim: size D of the vector z.
        flow: "realnvp", "glow", "nsf", "maf", "iaf" or "planar", see :class:`~omnivae.networks.flows.Flow`.
        num_flows: number of layers.
        hidden: widths of the hidden layers of every network in the flow.
        cond_dim: size E of the condition that the flow sees; 0 for none.

    Raises:
        ValueError: for an unknown flow, sizes out of range, a spatial latent, or a condition that is missing or of another size.
        ImportError: when zuko is not installed and the flow needs it.

    Example:
        >>> FlowPrior(3)(torch.Size((2, 3))).log_prob(torch.zeros(2, 3))
        tensor([-2.7568, -2.7568], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        latent_dim: int,
        flow: FlowName = "maf",
        num_flows: int = 4,
        *,
        hidden: Sequence[int] = (64, 64),
        cond_dim: int = 0,
    ) -> None:
        super().__init__()
        self.flow = Flow(flow, latent_dim, num_layers=num_flows, context=cond_dim, hidden=hidden)
        self.takes_cond = cond_dim > 0
        self.cond_dim = cond_dim or None

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        if self.flow.context == 0:
            refuse_cond(self, cond)
        elif cond is None or cond.shape != (latent_shape[0], self.flow.context):
            got = None if cond is None else tuple(cond.shape)
            raise ValueError(
                f"got the condition {got}; this prior needs one of shape {(latent_shape[0], self.flow.context)}: pass cond"
            )
        if tuple(latent_shape[1:]) != (self.flow.features,):
            raise ValueError(
                f"got latents of shape {tuple(latent_shape[1:])}; this flow prior is over vectors of {self.flow.features}: use a "
                "vector latent of that size, or MixturePrior or StandardNormal for a spatial one"
            )
        return FlowDensity(self.flow, latent_shape[:1], cond)
