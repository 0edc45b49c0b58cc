"""Maximum mean discrepancy between the aggregate posterior and the prior: InfoVAE and the Wasserstein autoencoder.

Zhao et al., InfoVAE: Information Maximizing Variational Autoencoders, 2017 (https://arxiv.org/abs/1706.02262); Tolstikhin
et al., Wasserstein Auto-Encoders, 2018 (https://arxiv.org/abs/1711.01558).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from omnivae.distributions import at_least_float32
from omnivae.losses.base import Loss, Weight
from omnivae.types import Batch, Latent, VAEOutput

Kernel = Literal["imq", "rbf"]


class MMD(Loss):
    """Squared MMD between the codes of a batch and as many samples of the prior.

    Wasserstein autoencoder: ``mse`` and this, weight λ (Tolstikhin et al., 2018, algorithm 2). InfoVAE: ``nll``, ``kl`` with
    weight 1 - α, and this with weight α + λ - 1 (Zhao et al., 2017). It is one number for the batch of
    all processes. A spatial latent counts as the vector of all its elements.

    Args:
        weight: factor in the total; λ = 10 is Tolstikhin's for MNIST.
        kernel: "imq", ``c / (c + r^2)``, whose tails see codes that are far off; "rbf", ``exp(-r^2 / c)``.
        scales: kernels added up; ``c = scale * bandwidth``.
        bandwidth: in squared units of z; by default ``2 d`` for d latent elements, the mean squared distance of two samples
            of a standard normal prior.
        unbiased: the U-statistic, which leaves pairs of a point with itself out and may be negative; ``False`` is the
            V-statistic, which is never negative and biased upwards.

    Raises:
        ValueError: for values out of range.
    """

    name = "mmd"
    of_batch = True
    needs = frozenset({"prior", "one latent"})

    def __init__(
        self,
        weight: Weight = 10.0,
        kernel: Kernel = "imq",
        scales: Sequence[float] = (1.0,),
        *,
        bandwidth: float | None = None,
        unbiased: bool = True,
    ) -> None:
        super().__init__(weight)
        if kernel not in ("imq", "rbf"):
            raise ValueError(f"got losses.mmd.kernel={kernel!r}; expected 'imq' or 'rbf'")
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(
                f"got losses.mmd.scales={list(scales)}; expected positive numbers, such as [0.5, 1.0, 2.0]"
            )
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise ValueError(f"got losses.mmd.bandwidth={bandwidth}; expected a positive number")
        self.kernel: Kernel = kernel
        self.scales = tuple(float(scale) for scale in scales)
        self.bandwidth, self.unbiased = bandwidth, unbiased

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        total = torch.zeros((), device=output.latents[0].z.device)
        for latent in output.latents:
            codes = self.whole(latent.z[0].flatten(1))
            samples = self.whole(prior_samples(self.name, latent).flatten(1))
            widths = [scale * (self.bandwidth or 2 * codes.shape[1]) for scale in self.scales]
            total = total + mmd(codes, samples, widths, kernel=self.kernel, unbiased=self.unbiased)
        return total


def mmd(x: Tensor, y: Tensor, widths: Sequence[float], *, kernel: Kernel = "imq", unbiased: bool = True) -> Tensor:
    """Estimate the squared maximum mean discrepancy (Gretton et al., A Kernel Two-Sample Test, 2012, eqs. 3 and 5).

    Args:
        x: one sample, ``[B, D]``.
        y: the other, ``[B, D]``.
        widths: c of each kernel; the kernels are added up.
        kernel: "imq", ``c / (c + r^2)``, or "rbf", ``exp(-r^2 / c)``.
        unbiased: leave the pairs of a point with itself out.

    Returns:
        A scalar.

    Raises:
        ValueError: for less than two points.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> float(mmd(x, x, [1.0], unbiased=False))
        0.0
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("mmd needs at least two images in a batch: set training.batch_size higher")
    x, y = at_least_float32(x), at_least_float32(y)
    return (
        _mean(x, x, widths, kernel, unbiased)
        + _mean(y, y, widths, kernel, unbiased)
        - 2 * _mean(x, y, widths, kernel, False)
    )


def _mean(x: Tensor, y: Tensor, widths: Sequence[float], kernel: Kernel, without_diagonal: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    values = torch.stack([c / (c + squared) if kernel == "imq" else torch.exp(-squared / c) for c in widths]).sum(0)
    if without_diagonal:
        return (values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1))
    return values.mean()


def prior_samples(name: str, latent: Latent) -> Tensor:
    """Return a sample of the prior for each image of the batch.

    Args:
        name: the loss that asks, for the message.
        latent: the latent.

    Returns:
        ``[B, C, *S]``, without gradient.

    Raises:
        ValueError: when the latent has no prior.
    """
    if latent.prior is None:
        raise ValueError(
            f"the loss {name!r} compares codes with samples of the prior, and this posterior has none: drop {name!r}, or use a "
            "gaussian posterior"
        )
    return latent.prior.sample()
