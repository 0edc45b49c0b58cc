"""Drawing z from a prior: with a temperature, from a generator, or code by code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution


def draw(
    model: Any, prior: Distribution, temperature: float, *, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """Return z drawn from a model's prior, ``[B, C, *S]``.

    Args:
        model: the VAE; its posterior turns codes into latents.
        prior: p(z), or p of the codes.
        temperature: see :meth:`VAE.sample`.
        top_k: codes to draw from at each step; for priors over codes.
        generator: source of randomness on the CPU; the global one by default.

    Raises:
        ValueError: for ``top_k`` with a prior that is not over codes.
    """
    if generator is None:
        return _draw(model, prior, temperature, top_k)
    # torch distributions take no generator: draw a seed from it and leave the global state untouched.
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        return _draw(model, prior, temperature, top_k)


def _draw(model: Any, prior: Any, temperature: float, top_k: int | None) -> Tensor:
    if getattr(model.prior, "num_codes", None):
        return model.posterior.codes(prior.sample_at(temperature, top_k))
    if top_k is not None:
        raise ValueError(
            f"got top_k={top_k}; this model's {type(model.prior).__name__} is no prior over codes: leave top_k out and use the "
            "temperature"
        )
    # A density that is not one bell says for itself what a temperature does to it.
    if hasattr(prior, "sample_at"):
        return prior.sample_at(temperature)
    return prior.mean + temperature * (prior.sample() - prior.mean)
