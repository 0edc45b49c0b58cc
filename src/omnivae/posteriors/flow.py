"""Normalising-flow posterior of a vector latent (Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian, at_least_float32
from omnivae.networks.flows import Flow, FlowName
from omnivae.networks.layers import convolution
from omnivae.posteriors.gaussian import PosteriorHead


class TransformedGaussian:
    """Posterior of z = f(eps; context) for one batch, eps ~ N(mean, diag(exp(logvar))).

    ``log q(z|x) = log q(eps|x) - log |det dz/deps|`` (Rezende & Mohamed, 2015, eq. 13).

    Args:
        base: the density of eps, of shape ``[B, D]``.
        flow: f.
        context: what f is conditioned on, ``[B, E]``; ``None`` where it is not.
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> base = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> z, log_q = TransformedGaussian(base, Flow("planar", 3)).rsample(5)
        >>> z.shape, log_q.shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        base: DiagonalGaussian,
        flow: Flow,
        context: Tensor | None = None,
        *,
        input_size: tuple[int, ...] | None = None,
    ) -> None:
        self.base = base
        self.flow = flow
        self.context = context
        self.input_size = input_size
        self.cond: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of one sample a batch element, ``[B, D]``."""
        return self.base.shape

    @cached_property
    def mean(self) -> Tensor:
        """Image of the base's mean, ``[B, D]``: the code of an image. The expectation of z has no closed form."""
        return self.flow(self.base.mean, self.context)[0]

    @cached_property
    def logvar(self) -> Tensor:
        """Log-variance of the flow linearised at the base's mean, ``[B, D]``, without gradient; exact where it is affine."""
        # As many passes as there are dimensions: computed only where somebody asks.
        # Tensors of inference mode cannot be differentiated: copies can.
        with torch.inference_mode(False), torch.enable_grad():
            eps = self.base.mean.detach().clone().requires_grad_()
            z, _ = self.flow(eps, None if self.context is None else self.context.detach().clone())
            rows = [torch.autograd.grad(z[:, d].sum(), eps, retain_graph=True)[0] for d in range(z.shape[1])]
        return (torch.stack(rows, 1) * self.base.stddev.detach().unsqueeze(1)).square().sum(2).log()

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of the linearised flow, ``[B, D]``."""
        return torch.exp(0.5 * self.logvar)

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none for a flow."""
        return {}

    def mode(self) -> Tensor:
        """Return the image of the base's mean, ``[B, D]``; the density's highest point has no closed form."""
        return self.mean

    def sample(self) -> Tensor:
        """Draw one sample without gradient, ``[B, D]``."""
        with torch.no_grad():
            return self.rsample()[0][0]

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw k samples.

        Args:
            k: number of samples, >= 1.

        Returns:
            z ``[K, B, D]`` and log q(z|x) in nats ``[K, B]``.

        Raises:
            ValueError: when k < 1.
        """
        eps, log_base = self.base.rsample(k)
        z, log_det = self.flow(eps, self.context)
        return z, log_base - log_det

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats, by the inverse of the flow.

        Args:
            z: ``[B, D]`` or ``[K, B, D]``.

        Returns:
            ``[B]`` or ``[K, B]``.
        """
        eps, log_det = self.flow.inverse(at_least_float32(z), self.context)
        return self.base.log_prob(eps) + log_det

    def __repr__(self) -> str:
        return f"TransformedGaussian(shape={tuple(self.shape)}, dtype={self.base.mean.dtype})"


class FlowPosterior(PosteriorHead):
    """Projects features to a diagonal Gaussian and a context, and sends the Gaussian through a flow that sees the context.

    The flow starts as the identity ("iaf" near it): training begins with the Gaussian posterior. Its KL to any prior is the
    average over the samples that are drawn anyway.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: size D of the vector z.
        dim: 0: a flow over all positions of a spatial latent would fit one size of image only.
        flow: "realnvp", "glow", "nsf", "maf", "iaf" or "planar", see :class:`~omnivae.networks.flows.Flow`; "maf" draws a
            sample in D sequential passes, "iaf" evaluates a given z in as many.
        num_flows: number of layers.
        context_dim: size of the context, which makes the flow one of its own for each image; 0: all images share it.
        hidden: widths of the hidden layers of every network in the flow.

    Raises:
        ValueError: for a spatial latent, an unknown flow, or sizes out of range.
        ImportError: when zuko is not installed and the flow needs it.

    Example:
        >>> FlowPosterior(8, 4, flow="iaf")(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """

    provides = frozenset({"density"})

    def __init__(
        self,
        in_channels: int,
        latent_dim: int,
        dim: int = 0,
        *,
        flow: FlowName = "realnvp",
        num_flows: int = 4,
        context_dim: int = 32,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if dim != 0:
            raise ValueError(
                "a flow posterior needs a vector latent: build the model with latent='vector', or use GaussianPosterior"
            )
        self.latent_dim = latent_dim
        self.flow = Flow(flow, latent_dim, num_layers=num_flows, context=context_dim, hidden=hidden)
        self.projection = convolution(0, in_channels, 2 * latent_dim + context_dim, 1)

    def forward(self, features: Tensor) -> TransformedGaussian:
        """Return q(z|x) for features ``[B, C]``."""
        d = self.latent_dim
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = self.projection.weight  # type: ignore[assignment]
            parameters = at_least_float32(self.projection(features.to(weight.dtype)))
        mean, logvar, context = parameters.split([d, d, parameters.shape[1] - 2 * d], dim=1)
        return TransformedGaussian(DiagonalGaussian(mean, logvar), self.flow, context if self.flow.context else None)
