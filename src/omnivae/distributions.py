"""Densities: the diagonal Gaussian posterior, discretised and categorical pixels, and the one KL function.

Everything here is computed in float32 (float64 stays float64), also under autocast, and returned in nats summed over
the event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions import kl_divergence as torch_kl_divergence

#: Bounds of every posterior log-variance: standard deviations from 3e-7 to 2.2e4. Applied once, in DiagonalGaussian.
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0
#: Bounds of every likelihood's log-scale: scales from 9e-4 to 1.1e3.
LOG_SCALE_MIN, LOG_SCALE_MAX = -7.0, 7.0


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged where it is float64.

    Args:
        x: any floating tensor.

    Returns:
        The same values in at least single precision.
    """
    return x if x.dtype == torch.float64 else x.float()


class DiagonalGaussian:
    """Posterior q(z|x) = N(mean, diag(exp(logvar))) for one batch (Kingma & Welling, Auto-Encoding Variational Bayes, 2013).

    Args:
        mean: ``[B, C, *S]``.
        logvar: ``[B, C, *S]``; clamped here, once, to [LOGVAR_MIN, LOGVAR_MAX].
        input_size: spatial size of the encoded image before padding; ``decode`` crops to it.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> z, log_q = q.rsample(5)
        >>> z.shape, log_q.shape, q.kl()
        (torch.Size([5, 2, 3]), torch.Size([5, 2]), tensor([0., 0.]))
    """

    def __init__(self, mean: Tensor, logvar: Tensor, *, input_size: tuple[int, ...] | None = None) -> None:
        if mean.shape != logvar.shape:
            raise ValueError(f"got mean {tuple(mean.shape)} and logvar {tuple(logvar.shape)}; expected equal shapes")
        self.mean = at_least_float32(mean)
        self.logvar = at_least_float32(logvar).clamp(LOGVAR_MIN, LOGVAR_MAX)
        self.input_size = input_size
        self.cond: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of one sample a batch element, ``[B, C, *S]``."""
        return self.mean.shape

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, ``[B, C, *S]``."""
        return torch.exp(0.5 * self.logvar)

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none for a Gaussian."""
        return {}

    def mode(self) -> Tensor:
        """Return the mean, ``[B, C, *S]``."""
        return self.mean

    def sample(self) -> Tensor:
        """Draw one sample without gradient, ``[B, C, *S]``."""
        with torch.no_grad():
            return self.rsample()[0][0]

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw k samples z = mean + stddev * eps, eps ~ N(0, I).

        Args:
            k: number of samples, >= 1.

        Returns:
            z ``[K, B, C, *S]`` and log q(z|x) in nats ``[K, B]``.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        eps = torch.randn((k, *self.shape), dtype=self.mean.dtype, device=self.mean.device)
        z = self.mean + self.stddev * eps
        # log q from eps, not from (z - mean) / stddev: exact where stddev underflows next to a large mean.
        log_q = -0.5 * (eps.square() + self.logvar + math.log(2 * math.pi))
        return z, log_q.flatten(2).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats.

        Args:
            z: ``[B, C, *S]`` or ``[K, B, C, *S]``.

        Returns:
            ``[B]`` or ``[K, B]``.
        """
        return self.distribution().log_prob(at_least_float32(z))

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) in nats, summed over every axis but the batch, ``[B]``.

        -1/2 sum(1 + logvar - mean^2 - exp(logvar)): Kingma & Welling 2013, appendix B.
        """
        return self.kl_elements().flatten(1).sum(1)

    def kl_elements(self) -> Tensor:
        """Return KL(q || N(0, I)) of each latent element in nats, ``[B, C, *S]``."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)

    def distribution(self) -> Independent:
        """Return q(z|x) as a torch distribution, batch shape ``[B]``, event shape ``[C, *S]``."""
        density = Normal(self.mean, self.stddev, validate_args=False)
        return Independent(density, self.mean.ndim - 1, validate_args=False)

    def __repr__(self) -> str:
        return f"DiagonalGaussian(shape={tuple(self.shape)}, dtype={self.mean.dtype})"


class SampledGaussian(DiagonalGaussian):
    """q(z|x, w) = N(mean, diag(exp(logvar))) of a latent below another, for K samples of that one, w.

    Args:
        mean: ``[K, B, C, *S]``.
        logvar: ``[K, B, C, *S]``.
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> q = SampledGaussian(torch.zeros(5, 2, 3), torch.zeros(5, 2, 3))
        >>> q.log_prob(torch.zeros(5, 2, 3)).shape, q.kl().shape, q.kl_elements().shape
        (torch.Size([5, 2]), torch.Size([5, 2]), torch.Size([5, 2, 3]))
    """

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw one z for each of the K samples above it.

        Args:
            k: 1; there is one for each.

        Returns:
            z ``[K, B, C, *S]`` and log q ``[K, B]``.

        Raises:
            ValueError: when k is another number.
        """
        if k != 1:
            raise ValueError(f"got k={k}; this latent has one sample for each of the {len(self.mean)} above it")
        z = self.distribution().rsample()
        return z, self.distribution().log_prob(z)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) in nats for each sample above, ``[K, B]``."""
        return self.kl_elements().flatten(2).sum(2)

    def distribution(self) -> Independent:
        """Return q as a torch distribution, batch shape ``[K, B]``, event shape ``[C, *S]``."""
        density = Normal(self.mean, self.stddev, validate_args=False)
        return Independent(density, self.mean.ndim - 2, validate_args=False)


def kl_divergence(q: Any, p: Distribution, *, z: Tensor | None = None, log_q: Tensor | None = None) -> Tensor:
    """Return KL(q || p) in nats: in closed form where torch has one, else the Monte Carlo mean of log q(z) - log p(z).

    Args:
        q: a posterior, or a torch distribution with batch shape ``[B]``.
        p: a torch distribution over the same event.
        z: samples from q, ``[K, B, C, *S]``; drawn here (8 of them) when a Monte Carlo estimate is needed and none is given.
        log_q: their log-densities, ``[K, B]``.

    Returns:
        ``[B]``.

    Example:
        >>> q = DiagonalGaussian(torch.ones(1, 4), torch.zeros(1, 4))
        >>> kl_divergence(q, Independent(Normal(torch.zeros(4), torch.ones(4)), 1))
        tensor([2.])
    """
    closed = closed_form_kl(q, p)
    if closed is not None:
        return closed
    if z is None:
        if isinstance(q, Distribution):
            z = q.rsample(torch.Size((8,)))
            log_q = q.log_prob(z)
        else:
            z, log_q = q.rsample(8)
    elif log_q is None:
        log_q = q.log_prob(z)
    assert log_q is not None, "a posterior without a density has no KL divergence"
    return (log_q - p.log_prob(z)).mean(0)


def closed_form_kl(q: Any, p: Distribution) -> Tensor | None:
    """Return KL(q || p) in nats where torch has a closed form, else ``None``.

    Args:
        q: a posterior, or a torch distribution with batch shape ``[B]``.
        p: a torch distribution over the same event.

    Returns:
        ``[B]`` or ``None``.
    """
    if hasattr(q, "closed_form_kl"):
        return q.closed_form_kl(p)
    density = q.distribution() if hasattr(q, "distribution") else q
    try:
        return torch_kl_divergence(density, p)
    except NotImplementedError:
        return None


def kl_elements(q: Any, p: Distribution) -> Tensor | None:
    """Return KL(q || p) of each latent element where both factorise, else ``None``.

    Args:
        q: a posterior.
        p: a torch distribution over the same event.

    Returns:
        ``[B, C, *S]`` in nats, the mean over the samples above where the posterior is a :class:`SampledGaussian`, or ``None``
        where the divergence does not split into elements.
    """
    if not (isinstance(q, DiagonalGaussian) and isinstance(p, Independent) and isinstance(p.base_dist, Normal)):
        return None
    elements = torch_kl_divergence(Normal(q.mean, q.stddev, validate_args=False), p.base_dist).expand(q.shape)
    return elements.mean(0) if isinstance(q, SampledGaussian) else elements


class DiscretizedLogistic(Distribution):
    """Logistic density integrated over the bins of an evenly quantised range (Salimans et al., PixelCNN++, 2017, eq. 2).

    The first and last bin take the tails, so the probabilities of the levels sum to one.

    Args:
        loc: centre, any shape.
        scale: scale of the logistic, broadcastable with ``loc``.
        value_range: lowest and highest level.
        num_levels: number of levels, 256 for 8-bit images.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor, *, value_range: tuple[float, float], num_levels: int = 256) -> None:
        self.loc, self.scale = torch.broadcast_tensors(at_least_float32(loc), at_least_float32(scale))
        self.low, self.high = value_range
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Centre of the underlying logistic, clamped to the value range."""
        return self.loc.clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the level nearest to ``value``, in nats.

        Args:
            value: levels in the value range.

        Returns:
            Same shape as ``value`` broadcast with ``loc``.
        """
        half_bin = 0.5 * (self.high - self.low) / (self.num_levels - 1)
        value = _to_levels(value, self.low, self.high, self.num_levels) * self._step() + self.low
        upper = (value + half_bin - self.loc) / self.scale
        lower = (value - half_bin - self.loc) / self.scale
        # log(sigmoid(u) - sigmoid(l)) = logsigmoid(u) + logsigmoid(-l) + log(1 - exp(-(u - l))): no cancellation.
        width = (2 * half_bin / self.scale).expand_as(upper)
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        first = value <= self.low + half_bin
        last = value >= self.high - half_bin
        return torch.where(first, F.logsigmoid(upper), torch.where(last, F.logsigmoid(-lower), inside))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels, ``[*sample_shape, *loc.shape]``.

        Args:
            sample_shape: leading axes.

        Returns:
            Values on the quantisation grid.
        """
        shape = torch.Size(sample_shape) + self.loc.shape
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(1e-6, 1 - 1e-6)
        x = (self.loc + self.scale * torch.logit(u)).clamp(self.low, self.high)
        return _to_levels(x, self.low, self.high, self.num_levels) * self._step() + self.low

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return a copy of batch shape ``batch_shape``."""
        return DiscretizedLogistic(
            self.loc.expand(batch_shape),
            self.scale.expand(batch_shape),
            value_range=(self.low, self.high),
            num_levels=self.num_levels,
        )

    def _step(self) -> float:
        return (self.high - self.low) / (self.num_levels - 1)


class CategoricalLevels(Distribution):
    """Categorical over the levels of an evenly quantised value range.

    Args:
        logits: unnormalised log-probabilities, levels last, ``[..., num_levels]``.
        value_range: value of the first and of the last level.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real

    def __init__(self, logits: Tensor, *, value_range: tuple[float, float]) -> None:
        self.logits = F.log_softmax(at_least_float32(logits), -1)
        self.low, self.high = value_range
        self.num_levels = logits.shape[-1]
        super().__init__(self.logits.shape[:-1], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        levels = torch.linspace(
            self.low, self.high, self.num_levels, dtype=self.logits.dtype, device=self.logits.device
        )
        # Not a matrix product: autocast would run that in half precision.
        return (self.logits.exp() * levels).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the level nearest to ``value``, in nats.

        Args:
            value: levels in the value range.

        Returns:
            Same shape as ``value`` broadcast with the batch shape.
        """
        index = _to_levels(value, self.low, self.high, self.num_levels).long()
        index, logits = torch.broadcast_tensors(index.unsqueeze(-1), self.logits)
        return logits.gather(-1, index[..., :1]).squeeze(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels, ``[*sample_shape, *batch_shape]``.

        Args:
            sample_shape: leading axes.

        Returns:
            Values on the quantisation grid.
        """
        index = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
        return index.to(self.logits.dtype) * ((self.high - self.low) / (self.num_levels - 1)) + self.low

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalLevels:
        """Return a copy of batch shape ``batch_shape``."""
        return CategoricalLevels(self.logits.expand(*batch_shape, self.num_levels), value_range=(self.low, self.high))


def _to_levels(x: Tensor, low: float, high: float, num_levels: int) -> Tensor:
    return ((at_least_float32(x) - low) / (high - low) * (num_levels - 1)).round().clamp(0, num_levels - 1)


def whiten(
    z: Tensor, statistics: Mapping[str, Any], *, axis: int, kind: Literal["channel", "scale"] = "channel"
) -> Tensor:
    """Return whitened latents, (z - mean) / std of each channel, or z * scale_factor.

    Args:
        z: raw latents; float64 stays float64, everything else becomes float32.
        statistics: ``mean`` and ``std`` of each channel, and ``scale_factor``.
        axis: of the channels.
        kind: "channel", or "scale" for the one factor.

    Returns:
        The same shape.

    Raises:
        ValueError: for an unknown kind, another number of channels, or a channel without spread.

    Example:
        >>> whiten(torch.tensor([[1.0, 2.0]]), {"mean": [1.0, 0.0], "std": [2.0, 4.0]}, axis=1)
        tensor([[0.0000, 0.5000]])
    """
    shift, scale = _affine(z, statistics, axis, kind)
    return (at_least_float32(z) - shift) / scale


def unwhiten(
    z: Tensor, statistics: Mapping[str, Any], *, axis: int, kind: Literal["channel", "scale"] = "channel"
) -> Tensor:
    """Return raw latents from whitened ones: the inverse of :func:`whiten`.

    Args:
        z: whitened latents.
        statistics: as for :func:`whiten`.
        axis: of the channels.
        kind: as for :func:`whiten`.

    Returns:
        The same shape.
    """
    shift, scale = _affine(z, statistics, axis, kind)
    return at_least_float32(z) * scale + shift


def _affine(z: Tensor, statistics: Mapping[str, Any], axis: int, kind: str) -> tuple[Tensor, Tensor]:
    if kind not in ("channel", "scale"):
        raise ValueError(f"got kind={kind!r}; expected 'channel' (mean and std of each) or 'scale' (one factor)")
    axis %= z.ndim
    channels = len(statistics["mean"])
    if z.shape[axis] != channels:
        raise ValueError(f"got latents of shape {tuple(z.shape)}; the statistics are of {channels} channels")
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    if kind == "scale":
        return torch.zeros((), dtype=dtype, device=z.device), torch.tensor(
            1 / statistics["scale_factor"], dtype=dtype, device=z.device
        )
    flat = [i for i, std in enumerate(statistics["std"]) if not std > 0]
    if flat:
        raise ValueError(f"latent channel {flat[0]} has no spread and cannot be whitened; use kind='scale'")
    shape = (channels, *[1] * (z.ndim - axis - 1))
    shift, scale = (
        torch.tensor(statistics[name], dtype=dtype, device=z.device).reshape(shape) for name in ("mean", "std")
    )
    return shift, scale
