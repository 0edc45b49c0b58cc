"""One walk down the levels of a hierarchical model: which z is taken at each, and from which distributions.

Shapes: K samples, B images, C channels and size S of a level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from omnivae.distributions import DiagonalGaussian, SampledGaussian
from omnivae.types import Latent

#: From a level's number, its prior's parameters and its posterior's (``None`` without an image) to its z.
Choose = Callable[[int, Tensor, Tensor | None], Tensor]


class Walk:
    """Chooses z at each level on the way down, and remembers from what.

    The noise of a level is drawn once: a decoder that is run again, in another precision, meets the same z.

    Args:
        model: a hierarchical VAE, whose ``posterior`` relates a level's parameters to its prior.
        batch: number of images B.
        num_samples: samples K, or ``None`` for the posterior's mode.
        keep: levels from the top that follow the posterior; all by default. The others follow the prior.
        temperature: multiplies the standard deviation of the prior.
        generator: source of the prior's noise.
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        num_samples: int | None,
        *,
        keep: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.head = model.posterior
        self.batch, self.num_samples = batch, num_samples
        self.keep = model.num_levels if keep is None else keep
        self.temperature, self.generator = temperature, generator
        self.levels: dict[int, tuple[DiagonalGaussian | None, Independent, Tensor, Tensor | None]] = {}
        self._noise: dict[int, Tensor] = {}

    def __call__(self, level: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
        """Return z of a level, ``[K * B, C, *S]``.

        Args:
            level: its number.
            prior: parameters of its prior, ``[K * B, 2C, *S]``.
            posterior: parameters of its posterior, where an image is known.
        """
        mean, logvar = self.head.split(prior)
        k = self.num_samples or 1
        if posterior is None or level >= self.keep:
            z = mean + self.temperature * torch.exp(0.5 * logvar) * self._eps(level, mean)
            self.levels[level] = (None, gaussian(mean, logvar), z.unflatten(0, (k, -1)), None)
            return z
        q_mean, q_logvar = self._rows(level, *self.head(posterior, mean, logvar))
        several = k > 1 and level > 0
        q = (SampledGaussian if several else DiagonalGaussian)(q_mean, q_logvar)
        p = gaussian(*self._rows(level, mean, logvar), batch_ndim=2 if several else 1)
        if self.num_samples is None:
            self.levels[level] = (q, p, q.mean.unsqueeze(0), None)
            return q.mean
        eps = self._eps(level, mean).unflatten(0, (k, -1))
        z = q.mean + q.stddev * eps
        log_q = Normal(0.0, 1.0).log_prob(eps) - 0.5 * q.logvar
        self.levels[level] = (q, p, z, log_q.flatten(2).sum(2))
        return z.flatten(0, 1)

    def latents(self) -> tuple[Latent, ...]:
        """Return the levels that were walked, the top one first."""
        found = []
        for level in sorted(self.levels):
            q, p, z, log_q = self.levels[level]
            assert q is not None, "only a walk along the posterior has latents"
            found.append(Latent(q, p, z, log_q))
        return tuple(found)

    def z(self) -> list[Tensor]:
        """Return z of each level, ``[K, B, C_l, *S_l]``."""
        return [self.levels[level][2] for level in sorted(self.levels)]

    def _rows(self, level: int, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """Give parameters an axis of samples where they depend on the samples above."""
        if (self.num_samples or 1) == 1:
            return mean, logvar
        if level == 0:
            return mean[: self.batch], logvar[: self.batch]
        return mean.unflatten(0, (-1, self.batch)), logvar.unflatten(0, (-1, self.batch))

    def _eps(self, level: int, like: Tensor) -> Tensor:
        if level not in self._noise:
            if self.generator is None:
                self._noise[level] = torch.randn_like(like)
            else:
                drawn = torch.randn(like.shape, generator=self.generator, dtype=like.dtype)
                self._noise[level] = drawn.to(like.device)
        return self._noise[level]


def gaussian(mean: Tensor, logvar: Tensor, batch_ndim: int = 1) -> Independent:
    """Return N(mean, exp(logvar)).

    Args:
        mean: ``[B, C, *S]``, or ``[K, B, C, *S]`` with ``batch_ndim=2``.
        logvar: the same shape.
        batch_ndim: number of leading axes that are not part of the event.
    """
    density = Normal(mean, torch.exp(0.5 * logvar), validate_args=False)
    return Independent(density, mean.ndim - batch_ndim, validate_args=False)


def coarsen(z: Tensor, scale: int, axes: int) -> Tensor:
    """Move each block of positions into channels: ``[..., C, *(S * scale)]`` to ``[..., C * scale**axes, *S]``.

    Args:
        z: with any leading axes.
        scale: edge of a block.
        axes: number of spatial axes.
    """
    if scale == 1:
        return z
    lead, (channels, *size) = z.shape[: z.ndim - axes - 1], z.shape[z.ndim - axes - 1 :]
    split = z.reshape(-1, channels, *[n for s in size for n in (s // scale, scale)])
    order = [0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)]
    return split.permute(order).reshape(*lead, channels * scale**axes, *[s // scale for s in size])


def refine(z: Tensor, scale: int, axes: int) -> Tensor:
    """Undo :func:`coarsen`."""
    if scale == 1:
        return z
    lead, (packed, *size) = z.shape[: z.ndim - axes - 1], z.shape[z.ndim - axes - 1 :]
    channels = packed // scale**axes
    split = z.reshape(-1, channels, *[scale] * axes, *size)
    order = [0, 1, *(axis for i in range(axes) for axis in (2 + axes + i, 2 + i))]
    return split.permute(order).reshape(*lead, channels, *[s * scale for s in size])
