"""The two terms of the ELBO: negative log-likelihood and KL divergence."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Independent

from omnivae.distributions import kl_divergence, kl_elements
from omnivae.losses.base import Loss, Weight, as_schedule, event_size, target_of
from omnivae.losses.schedules import value_at
from omnivae.types import Batch, VAEOutput


class NLL(Loss):
    """Negative log-likelihood ``-E_q[log p(x|z)]`` in nats.

    Args:
        weight: factor in the total.
        per_element: divide by the number of pixel values.
        num_samples: posterior samples that the expectation is averaged over.
    """

    name = "nll"

    def __init__(self, weight: Weight = 1.0, per_element: bool = False, num_samples: int = 1) -> None:
        super().__init__(weight, per_element)
        if num_samples < 1:
            raise ValueError(f"got num_samples={num_samples}; expected at least 1")
        self.num_samples = num_samples

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        return self.reduce(-log_likelihood(output, batch), event_size(target_of(batch, output)))


def log_likelihood(output: VAEOutput, batch: Batch) -> Tensor:
    """Return log p(x|z) of every sample in nats, summed over the pixels that count.

    Args:
        output: the model's output.
        batch: the batch; pixels where its mask is 0 are left out.

    Returns:
        ``[K, B]``.

    Raises:
        ValueError: for a mask with a likelihood that does not split into pixels.
    """
    x = target_of(batch, output)
    mask = batch.get("mask")
    if mask is None:
        return output.likelihood.log_prob(x)
    if isinstance(output.likelihood, Independent):
        return (output.likelihood.base_dist.log_prob(x) * mask).flatten(2).sum(2)
    raise ValueError(
        f"got a mask with {type(output.likelihood).__name__}, which does not split into pixels; drop the mask"
    )


class KL(Loss):
    """KL divergence of the posterior from the prior in nats, summed over every latent.

    With ``free_bits`` λ each latent element d contributes ``max(λ, mean over the batch of KL_d)`` (Kingma et al., Improved
    Variational Inference with Inverse Autoregressive Flow, 2016, eq. 15): below λ it costs nothing to use more. With
    ``capacity`` C the term is ``|KL - C|`` (Burgess et al., Understanding disentangling in β-VAE, 2018).

    Args:
        weight: β, a number or a schedule.
        per_element: divide by the number of latent elements.
        free_bits: λ in nats, >= 0; 0 switches it off.
        free_bits_over: what has λ nats free: each latent "element", each "channel" (its positions together, as in the paper's
            experiments), or each "level" (a whole latent of a hierarchical model).
        capacity: C in nats, a number or a schedule; ``None`` switches it off.
    """

    name = "kl"
    needs = frozenset({"density", "prior"})
    instead = MappingProxyType(
        {
            "kl of each element": "set losses.kl.free_bits to 0",
        }
    )

    def __init__(
        self,
        weight: Weight = 1.0,
        per_element: bool = False,
        free_bits: float = 0.0,
        capacity: Weight | None = None,
        *,
        free_bits_over: Literal["element", "channel", "level"] = "element",
    ) -> None:
        super().__init__(weight, per_element)
        if not 0 <= free_bits < math.inf:
            raise ValueError(f"got free_bits={free_bits}; expected nats for each latent element, >= 0")
        if free_bits_over not in ("element", "channel", "level"):
            raise ValueError(f"got free_bits_over={free_bits_over!r}; expected 'element', 'channel' or 'level'")
        if free_bits and capacity is not None:
            raise ValueError("got both free_bits and capacity; expected at most one of them")
        self.free_bits, self.free_bits_over = free_bits, free_bits_over
        if free_bits:
            self.needs = self.needs | {"kl of each element"}
        self.capacity = None if capacity is None else as_schedule("capacity", capacity)

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        total = torch.zeros((), device=batch["x"].device)
        for latent in output.latents:
            if latent.prior is None:
                raise ValueError(
                    "the posterior has no density, so it has no KL: drop the 'kl' loss, or use a gaussian posterior"
                )
            if self.free_bits:
                elements = kl_elements(latent.posterior, latent.prior)
                if elements is None:
                    raise ValueError("free_bits needs a factorised gaussian posterior and prior; set free_bits to 0")
                axes = {"element": elements.ndim, "channel": 2, "level": 1}[self.free_bits_over]
                groups = elements.mean(0).unsqueeze(-1).flatten(axes - 1).sum(-1)
                kl = groups.clamp(min=self.free_bits).sum()
            else:
                # The mode is no sample: a Monte Carlo estimate there would be wrong, so none is passed on.
                z = None if latent.log_q is None else latent.z
                kl = kl_divergence(latent.posterior, latent.prior, z=z, log_q=latent.log_q).mean()
            total = total + (kl / event_size(latent.z[0]) if self.per_element else kl)
        if self.capacity is not None:
            total = (total - value_at(self.capacity, step=self.step, epoch=self.epoch)).abs()
        return total
