"""Importance-weighted bounds on log p(x): IWAE, MIWAE, CIWAE, and their doubly reparameterised gradient.

Burda et al., Importance Weighted Autoencoders, 2016 (https://arxiv.org/abs/1509.00519); Rainforth et al., Tighter
Variational Bounds are Not Necessarily Better, 2018 (https://arxiv.org/abs/1802.04537); Tucker et al., Doubly
Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019 (https://arxiv.org/abs/1810.04152).

Shapes: T samples for each image, in M groups of K = T / M.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian
from omnivae.losses.base import Loss, Weight
from omnivae.losses.elbo import log_likelihood
from omnivae.types import Batch, VAEOutput

Gradient = Literal["standard", "dreg"]


class IWAE(Loss):
    """The negative importance-weighted bound ``-log 1/K sum_k w_k`` in nats, ``w_k = p(x, z_k) / q(z_k|x)``.

    It stands in the place of ``nll`` and ``kl`` together (Burda et al., 2016, eq. 8). ``num_bounds`` M > 1 averages M bounds
    of K = ``num_samples`` / M samples each (MIWAE; Rainforth et al., 2018, section 4), and ``elbo_share`` β mixes it with the
    ELBO, ``β ELBO + (1 - β) IWAE`` (CIWAE; there too).

    The encoder's gradient is the plain one of the bound by default; its signal-to-noise ratio falls as K grows. "dreg"
    weights the path through each z by the square of its normalised weight and leaves out the score (Tucker et al.,
    2019): the same expectation, less noise, for one more backward pass through the decoder's activations. The gradient of
    decoder and prior, and the value, are the same for both.

    Args:
        weight: factor in the total.
        num_samples: posterior samples T for each image, >= 1; 1 is the ELBO, with the KL as one sample estimates it.
        num_bounds: bounds M that the samples are divided among; divides ``num_samples``.
        elbo_share: β in [0, 1].
        gradient: "standard" or "dreg".

    Raises:
        ValueError: for values out of range.

    Example:
        >>> IWAE(num_samples=64, num_bounds=8).num_samples  # MIWAE(8, 8)
        64
    """

    name = "iwae"
    needs = frozenset({"density"})
    replaces = frozenset({"nll", "kl", "tc"})
    instead = MappingProxyType(
        {
            "diagonal": "set losses.iwae.gradient to standard",
            "one latent": "set losses.iwae.gradient to standard",
            "together": "drop 'iwae' and mix it with the ELBO by losses.iwae.elbo_share where that is what you want",
        }
    )

    def __init__(
        self,
        weight: Weight = 1.0,
        num_samples: int = 5,
        num_bounds: int = 1,
        *,
        elbo_share: float = 0.0,
        gradient: Gradient = "standard",
    ) -> None:
        super().__init__(weight)
        if num_samples < 1:
            raise ValueError(f"got losses.iwae.num_samples={num_samples}; expected at least 1, such as 5 or 50")
        if num_bounds < 1 or num_samples % num_bounds:
            raise ValueError(
                f"got losses.iwae.num_bounds={num_bounds} for num_samples={num_samples}; expected a divisor of num_samples, such "
                f"as 1 or {num_samples}"
            )
        if not 0 <= elbo_share <= 1:
            raise ValueError(f"got losses.iwae.elbo_share={elbo_share}; expected a share in [0, 1], such as 0.5")
        if gradient not in ("standard", "dreg"):
            raise ValueError(f"got losses.iwae.gradient={gradient!r}; expected 'standard' or 'dreg'")
        self.num_samples, self.num_bounds, self.elbo_share = num_samples, num_bounds, elbo_share
        self.gradient: Gradient = gradient
        if gradient == "dreg":
            self.needs = self.needs | {"diagonal", "one latent"}

    @property
    def inside(self) -> str | None:
        """``"gradient=dreg"`` where that is asked for: it needs the decoder's gradient at z."""
        return "gradient=dreg" if self.gradient == "dreg" else None

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        log_p = log_likelihood(output, batch)
        if len(log_p) < self.num_samples:
            raise ValueError(
                f"got {len(log_p)} posterior samples for each image and iwae needs {self.num_samples}: call the model with "
                f"num_samples={self.num_samples}, or lower losses.iwae.num_samples"
            )
        if self.gradient == "dreg" and torch.is_grad_enabled():
            return -self._doubly_reparameterised(log_p, output)
        return -self._bound(log_p + log_ratio(output)).mean()

    def _bound(self, log_w: Tensor) -> Tensor:
        """Return the bound of every image, ``[B]``, from log-weights ``[T or more, B]``."""
        groups = self._groups(log_w)
        iwae = (groups.logsumexp(1) - math.log(groups.shape[1])).mean(0)
        return (1 - self.elbo_share) * iwae + self.elbo_share * log_w[: self.num_samples].mean(0)

    def _groups(self, log_w: Tensor) -> Tensor:
        # Another loss may have asked for more samples: a bound of T is one of T.
        return log_w[: self.num_samples].unflatten(0, (self.num_bounds, -1))

    def _doubly_reparameterised(self, log_p: Tensor, output: VAEOutput) -> Tensor:
        """Return the mean bound, with a surrogate's gradient.

        The surrogate is linear in the log-weights. Its gradient at z is then corrected from the normalised weights to the
        squared ones; that takes the gradient at z, which the graph through decoder and z gives.
        """
        if len(output.latents) != 1:
            raise ValueError(
                f"losses.iwae.gradient=dreg is defined for one latent, this model has {len(output.latents)}: set it to standard"
            )
        latent = output.latents[0]
        z, q = latent.z, latent.posterior
        assert isinstance(q, DiagonalGaussian)
        assert latent.prior is not None
        # log q as a function of z alone: the score of the encoder's parameters has expectation zero after weighting.
        log_q = DiagonalGaussian(q.mean.detach(), q.logvar.detach()).log_prob(z)
        log_rest = latent.prior.log_prob(z) - log_q
        log_w = log_p + log_rest
        normalised = self._groups(log_w.detach()).softmax(1)
        of_model = self._mixed(normalised)
        surrogate = (of_model * log_w[: self.num_samples]).sum(0).mean()
        if z.requires_grad:
            difference = (of_model - self._mixed(normalised.square())) / log_w.shape[1]
            surrogate = surrogate - (self._gradient_at(z, log_p, log_rest, difference) * z).sum()
        value = self._bound(log_w.detach()).mean()
        return value + surrogate - surrogate.detach()

    def _mixed(self, weights: Tensor) -> Tensor:
        share = self.elbo_share
        return (1 - share) / self.num_bounds * weights.flatten(0, 1) + share / self.num_samples

    def _gradient_at(self, z: Tensor, log_p: Tensor, log_rest: Tensor, weights: Tensor) -> Tensor:
        n = self.num_samples
        (through,) = torch.autograd.grad((weights * log_p[:n]).sum(), z, retain_graph=True, allow_unused=True)
        if through is None:
            raise ValueError(
                "losses.iwae.gradient=dreg needs the gradient of the decoder at z, and there is none (a compiled model hides it): "
                "set it to standard, or training.compile to false"
            )
        (beside,) = torch.autograd.grad((weights * log_rest[:n]).sum(), z, retain_graph=True)
        return through + beside


def log_ratio(output: VAEOutput) -> Tensor:
    """Return log p(z) - log q(z|x) of every sample in nats, summed over the latents.

    Args:
        output: the model's output.

    Returns:
        ``[K, B]``.

    Raises:
        ValueError: when a posterior or prior has no density, or z is the mode and no sample.
    """
    total = torch.zeros((), device=output.latents[0].z.device)
    for latent in output.latents:
        if latent.prior is None:
            raise ValueError(
                "the posterior has no density, so there is no importance weight: use nll with the posterior's penalties, or a "
                "gaussian posterior"
            )
        if latent.log_q is None:
            raise ValueError("z is the posterior's mode and no sample of it: call the model with sample=True")
        total = total + latent.prior.log_prob(latent.z) - latent.log_q
    return total
