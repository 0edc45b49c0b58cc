"""Likelihoods p(x|z): decoder parameters in, a torch distribution over images out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Laplace, Normal

from omnivae.component import Component
from omnivae.distributions import (
    LOG_SCALE_MAX,
    LOG_SCALE_MIN,
    CategoricalLevels,
    DiscretizedLogistic,
    at_least_float32,
)

Scale = float | Literal["learned", "per_pixel"]


class Likelihood(nn.Module, Component):
    """Base of the likelihoods: a module from decoder parameters to p(x|z).

    Attributes:
        discrete: whether it gives probabilities of levels (nats of an image) instead of a density.
        unit_range: whether it is defined on [0, 1] only.
    """

    abstract = True

    discrete: bool = False
    unit_range: bool = False

    def num_parameters(self, channels: int) -> int:
        """Return how many channels the decoder must produce for ``channels`` image channels."""
        return channels

    def forward(self, params: Tensor, batch_ndim: int = 1) -> Distribution:
        """Return p(x|z).

        Args:
            params: decoder output, ``[B, P, *S]``, or ``[K, B, P, *S]`` with ``batch_ndim=2``.
            batch_ndim: number of leading axes that are not part of the image.

        Returns:
            Distribution of batch shape ``[B]`` or ``[K, B]`` and event shape ``[C, *S]``.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")


class _LocationScale(Likelihood):
    """A density with a location and a scale: fixed, one learned scalar, or one for every pixel."""

    abstract = True

    def __init__(self, scale: Scale = 1.0) -> None:
        super().__init__()
        if isinstance(scale, str) and scale not in ("learned", "per_pixel"):
            raise ValueError(f"got scale={scale!r}; expected a positive number, 'learned' or 'per_pixel'")
        if not isinstance(scale, str) and not 0 < scale < math.inf:
            raise ValueError(f"got scale={scale}; expected a positive number, 'learned' or 'per_pixel'")
        self.scale = scale
        if scale == "learned":
            # exp(-1) is near the error of an untrained network on [-1, 1] images.
            self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def num_parameters(self, channels: int) -> int:
        return 2 * channels if self.scale == "per_pixel" else channels

    def _split(self, params: Tensor, batch_ndim: int) -> tuple[Tensor, Tensor]:
        params = at_least_float32(params)
        if self.scale == "per_pixel":
            loc, log_scale = params.chunk(2, dim=batch_ndim)
            return loc, log_scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX).exp()
        if self.scale == "learned":
            return params, at_least_float32(self.log_scale).clamp(LOG_SCALE_MIN, LOG_SCALE_MAX).exp().expand_as(params)
        return params, torch.full_like(params, float(self.scale))


class GaussianLikelihood(_LocationScale):
    """Gaussian pixels (Kingma & Welling 2013; learned scale: Rybkin et al., sigma-VAE, 2021).

    Args:
        scale: standard deviation in units of the value range; ``"learned"`` for one trained scalar, ``"per_pixel"``
            for one from the decoder for each pixel. With 1.0 the NLL is half the squared error plus a constant.

    Example:
        >>> GaussianLikelihood(1.0)(torch.zeros(2, 3, 4, 4)).log_prob(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2])
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        super().__init__(scale)

    def forward(self, params: Tensor, batch_ndim: int = 1) -> Distribution:
        loc, scale = self._split(params, batch_ndim)
        return Independent(Normal(loc, scale, validate_args=False), loc.ndim - batch_ndim, validate_args=False)


class LaplaceLikelihood(_LocationScale):
    """Laplace pixels: with scale 1 the NLL is the absolute error plus log 2 for each element.

    Args:
        scale: scale in units of the value range; ``"learned"`` for one trained scalar, ``"per_pixel"`` for one from the
            decoder for each pixel.
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        super().__init__(scale)

    def forward(self, params: Tensor, batch_ndim: int = 1) -> Distribution:
        loc, scale = self._split(params, batch_ndim)
        return Independent(Laplace(loc, scale, validate_args=False), loc.ndim - batch_ndim, validate_args=False)


class BernoulliLikelihood(Likelihood):
    """Bernoulli pixels: sigmoid of the decoder's logits, on [0, 1].

    Grey values between 0 and 1 give the usual cross-entropy, which is a log-likelihood only on binary images: binarise
    the data (``data.binarize``) before quoting nats.
    """

    discrete = True
    unit_range = True

    def forward(self, params: Tensor, batch_ndim: int = 1) -> Distribution:
        logits = at_least_float32(params)
        return Independent(Bernoulli(logits=logits, validate_args=False), logits.ndim - batch_ndim, validate_args=False)


class CategoricalLikelihood(Likelihood):
    """Softmax over the levels of each pixel.

    Args:
        num_levels: number of levels, 256 for 8-bit images.
        value_range: value of the first and last level.
    """

    discrete = True

    def __init__(self, num_levels: int = 256, value_range: Sequence[float] = (-1.0, 1.0)) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"got num_levels={num_levels}; expected at least 2")
        self.num_levels = num_levels
        self.value_range = (float(value_range[0]), float(value_range[1]))

    def num_parameters(self, channels: int) -> int:
        return channels * self.num_levels

    def forward(self, params: Tensor, batch_ndim: int = 1) -> Distribution:
        split = params.unflatten(batch_ndim, (-1, self.num_levels)).movedim(batch_ndim + 1, -1)
        dist = CategoricalLevels(split, value_range=self.value_range)
        return Independent(dist, len(dist.batch_shape) - batch_ndim, validate_args=False)


class DiscretizedLogisticLikelihood(_LocationScale):
    """Logistic density integrated over the 8-bit bins (Salimans et al., PixelCNN++, 2017): nats of the stored image.

    Args:
        scale: scale of the logistic in units of the value range; ``"learned"`` or ``"per_pixel"``.
        num_levels: number of levels, 256 for 8-bit images.
        value_range: value of the first and last level.
    """

    discrete = True

    def __init__(
        self, scale: Scale = "learned", num_levels: int = 256, value_range: Sequence[float] = (-1.0, 1.0)
    ) -> None:
        super().__init__(scale)
        if num_levels < 2:
            raise ValueError(f"got num_levels={num_levels}; expected at least 2")
        self.num_levels = num_levels
        self.value_range = (float(value_range[0]), float(value_range[1]))

    def forward(self, params: Tensor, batch_ndim: int = 1) -> Distribution:
        loc, scale = self._split(params, batch_ndim)
        dist = DiscretizedLogistic(loc, scale, value_range=self.value_range, num_levels=self.num_levels)
        return Independent(dist, loc.ndim - batch_ndim, validate_args=False)
