"""What is logged of each latent: KL by dimension and by level, active units by level."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.distributions import SampledGaussian, kl_elements
from omnivae.types import Latent

#: A unit is active when the variance of its posterior mean over images exceeds this (Burda et al., IWAE, 2016).
ACTIVE_VARIANCE = 0.01


def kl_by_dimension(latent: Latent) -> Tensor | None:
    """Return the KL of each dimension in nats, the mean over the batch; a channel's positions are added up.

    Args:
        latent: one latent.

    Returns:
        ``[C]``; ``None`` where the KL does not split into dimensions.
    """
    elements = None if latent.prior is None else kl_elements(latent.posterior, latent.prior)
    return None if elements is None else elements.flatten(2).sum(2).mean(0) if elements.ndim > 2 else elements.mean(0)


def active_units(latent: Latent, *, joint: bool) -> Tensor | None:
    """Return how many units are active: dimensions of a vector, or channels (variance averaged over positions).

    Args:
        latent: one latent; below others, its means are those for the first sample of what is above.
        joint: whether every process has its share of the batch.

    Returns:
        A scalar; ``None`` without a mean, or for a single image.
    """
    mean = getattr(latent.posterior, "mean", None)
    if not isinstance(mean, Tensor):
        return None
    if isinstance(latent.posterior, SampledGaussian):
        mean = mean[0]
    if len(mean) < 2 and not joint:
        return None
    variance = _joint_variance(mean) if joint else mean.var(0)
    return (variance.reshape(mean.shape[1], -1).mean(1) > ACTIVE_VARIANCE).sum()


def _joint_variance(values: Tensor) -> Tensor:
    """Return the unbiased variance over the first axis of all processes' values, as many in each."""
    sums = torch.stack([values.double().sum(0), values.double().square().sum(0)])
    torch.distributed.all_reduce(sums)
    count = len(values) * torch.distributed.get_world_size()
    return ((sums[1] - sums[0].square() / count) / (count - 1)).clamp(min=0).to(values.dtype)
