"""Von Mises-Fisher posterior: directions on the unit sphere (Davidson et al., Hyperspherical Variational Auto-Encoders, 2018).

Everything about Bessel functions and the samples' angles is float64: the normaliser is a difference of large numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta, Distribution

from omnivae.distributions import at_least_float32
from omnivae.networks.layers import convolution
from omnivae.posteriors.gaussian import PosteriorHead

#: Bounds of every concentration: from nearly uniform to an angle of about 1e-2.
KAPPA_MIN, KAPPA_MAX = 1e-3, 1e4


class VonMisesFisher:
    """Posterior q(z|x) ∝ exp(kappa mean · z) on the unit sphere in D dimensions, for one batch.

    Densities are with respect to the sphere's area.

    Args:
        direction: unit vectors, ``[B, D]``, D >= 2.
        kappa: concentration, ``[B]``, within [KAPPA_MIN, KAPPA_MAX].
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> q = VonMisesFisher(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([5.0]))
        >>> z, log_q = q.rsample(4)
        >>> z.shape, log_q.shape, torch.allclose(z.norm(dim=-1), torch.ones(4, 1))
        (torch.Size([4, 1, 3]), torch.Size([4, 1]), True)
    """

    def __init__(self, direction: Tensor, kappa: Tensor, *, input_size: tuple[int, ...] | None = None) -> None:
        if direction.ndim != 2 or direction.shape[1] < 2 or kappa.shape != direction.shape[:1]:
            raise ValueError(
                f"got direction {tuple(direction.shape)} and kappa {tuple(kappa.shape)}; expected [B, D] with D >= 2, and [B]"
            )
        self.direction = at_least_float32(direction)
        self.kappa = at_least_float32(kappa)
        self.input_size = input_size
        self.cond: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of one sample a batch element, ``[B, D]``."""
        return self.direction.shape

    @property
    def mean(self) -> Tensor:
        """Expectation of z, ``[B, D]``: the direction, shortened by ``I_{D/2}(kappa) / I_{D/2-1}(kappa)``; inside the sphere."""
        return self.direction * self._resultant().unsqueeze(1).to(self.direction.dtype)

    @property
    def logvar(self) -> Tensor:
        """Log-variance of each coordinate of z, ``[B, D]``; it says nothing of how they depend on each other."""
        length, d = self._resultant(), self.shape[1]
        kappa, squared = self.kappa.double(), self.direction.double().square()
        # Var[w] along the direction, (1 - E[w^2]) / (D - 1) in each direction across.
        across = length / kappa
        along = 1 - (d - 1) * across - length.square()
        variance = across.unsqueeze(1) + (along - across).unsqueeze(1) * squared
        return variance.clamp(min=torch.finfo(torch.float64).tiny).log().to(self.direction.dtype)

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none."""
        return {}

    def mode(self) -> Tensor:
        """Return the direction, ``[B, D]``, on the sphere."""
        return self.direction

    def sample(self) -> Tensor:
        """Draw one sample without gradient, ``[B, D]``."""
        with torch.no_grad():
            return self.rsample()[0][0]

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw k samples: the angle to the direction by rejection (Wood, Simulation of the von Mises Fisher distribution, 1994).

        The angle's gradient is implicit in its distribution function (Figurnov et al., Implicit Reparameterization
        Gradients, 2018), which is exact where the paper adds a score term for the rejections. The gradient at the direction
        is that of the smallest rotation, which the density turns with.

        Args:
            k: number of samples, >= 1.

        Returns:
            z ``[K, B, D]`` and log q(z|x) in nats ``[K, B]``.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        mean, kappa, d = self.direction.double(), self.kappa.double(), self.shape[1]
        angle = _Angle.apply(kappa.expand(k, -1), d)
        with torch.no_grad():
            noise = torch.randn((k, *self.shape), dtype=torch.float64, device=mean.device)
            tangent = F.normalize(noise - (noise * mean).sum(-1, keepdim=True) * mean, dim=-1)
        # Zero now; its gradient turns the tangent with the direction.
        turn = (tangent * mean).sum(-1, keepdim=True) * mean.detach()
        z = angle.cos().unsqueeze(-1) * mean + angle.sin().unsqueeze(-1) * (tangent - (turn - turn.detach()))
        log_q = kappa * angle.cos() + log_normaliser(kappa, d)
        return z.to(self.direction.dtype), log_q.to(self.direction.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats, with respect to the sphere's area.

        Args:
            z: unit vectors, ``[B, D]`` or ``[K, B, D]``.

        Returns:
            ``[B]`` or ``[K, B]``.
        """
        kappa = self.kappa.double()
        cosine = (z.double() * self.direction.double()).sum(-1)
        return (kappa * cosine + log_normaliser(kappa, self.shape[1])).to(self.direction.dtype)

    def closed_form_kl(self, p: Distribution) -> Tensor | None:
        """Return KL(q || p) in nats, ``[B]``, for the uniform density on the sphere; ``None`` for any other.

        ``kappa E[w] + log C(kappa) + log area`` (Davidson et al., 2018, eq. 14).
        """
        log_area = getattr(p, "log_area", None)
        if log_area is None:
            return None
        kappa = self.kappa.double()
        return (kappa * self._resultant() + log_normaliser(kappa, self.shape[1]) + log_area).to(self.direction.dtype)

    def _resultant(self) -> Tensor:
        return bessel_ratio(self.kappa.double(), self.shape[1])

    def __repr__(self) -> str:
        return f"VonMisesFisher(shape={tuple(self.shape)}, dtype={self.direction.dtype})"


class VonMisesFisherPosterior(PosteriorHead):
    """Projects features to a direction and a concentration, ``1 + softplus``, as the paper does.

    Its prior is :class:`~omnivae.priors.UniformSphere`, to which the KL is in closed form.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: D, the numbers of a unit vector: the sphere has D - 1 dimensions.
        dim: 0: the sphere is one of a vector latent.

    Raises:
        ValueError: for a spatial latent or ``latent_dim`` below 2.

    Example:
        >>> VonMisesFisherPosterior(8, 4)(torch.ones(2, 8)).mode().norm(dim=1)
        tensor([1., 1.], grad_fn=<LinalgVectorNormBackward0>)
    """

    provides = frozenset({"density"})
    support = "sphere"

    def __init__(self, in_channels: int, latent_dim: int, dim: int = 0) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(f"got latent_dim={latent_dim}; a sphere needs at least 2 (a circle)")
        if dim != 0:
            raise ValueError(
                "a von Mises-Fisher posterior needs a vector latent: build the model with latent='vector', or use GaussianPosterior"
            )
        self.latent_dim = latent_dim
        self.projection = convolution(0, in_channels, latent_dim + 1, 1)

    def forward(self, features: Tensor) -> VonMisesFisher:
        """Return q(z|x) for features ``[B, C]``."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = self.projection.weight  # type: ignore[assignment]
            parameters = at_least_float32(self.projection(features.to(weight.dtype)))
        direction, raw = parameters.split([self.latent_dim, 1], dim=1)
        kappa = (1 + F.softplus(raw.squeeze(1))).clamp(KAPPA_MIN, KAPPA_MAX)
        return VonMisesFisher(F.normalize(direction, dim=1), kappa)


# -- the normaliser


def log_normaliser(kappa: Tensor, d: int) -> Tensor:
    """Return log C with ``q(z) = C exp(kappa mean · z)`` on the unit sphere in d dimensions.

    ``C = kappa^(d/2-1) / ((2 pi)^(d/2) I_{d/2-1}(kappa))`` (Mardia & Jupp, Directional Statistics, 2000, eq. 9.3.4).

    Args:
        kappa: > 0, float64.
        d: >= 2.

    Returns:
        The same shape; its gradient is the negative :func:`bessel_ratio`.

    Example:
        >>> round(float(log_normaliser(torch.tensor(1e-6, dtype=torch.float64), 3).exp() * 4 * math.pi), 9)
        1.0
    """
    return _LogNormaliser.apply(kappa, d)


def bessel_ratio(kappa: Tensor, d: int) -> Tensor:
    """Return ``A(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa)``, the length of the mean (Mardia & Jupp, 2000, eq. 9.3.9).

    Args:
        kappa: > 0, float64.
        d: >= 2.

    Returns:
        The same shape, in (0, 1); its gradient is ``1 - A^2 - (d - 1) / kappa A``.

    Example:
        >>> round(float(bessel_ratio(torch.tensor(2.0, dtype=torch.float64), 3)), 6)  # coth(2) - 1/2
        0.537315
    """
    return _BesselRatio.apply(kappa, d)


class _BesselRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, d: int) -> Tensor:
        ratio, _ = _bessel(kappa, d)
        ctx.save_for_backward(kappa, ratio)
        ctx.d = d
        return ratio

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        kappa, ratio = ctx.saved_tensors
        # The difference below is that of 1 / (d / kappa + r) with r the next ratio: no cancellation at small kappa.
        following, _ = _bessel(kappa, ctx.d + 2)
        return gradients[0] * (ratio / kappa - ratio * (ratio - following)), None


class _LogNormaliser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, d: int) -> Tensor:
        ratio, log_bessel = _bessel(kappa, d)
        ctx.save_for_backward(ratio)
        return (d / 2 - 1) * kappa.log() - d / 2 * math.log(2 * math.pi) - log_bessel

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return -gradients[0] * ratio, None


#: From this order on Debye's expansion has an error below 1e-13; lower orders follow by recurrence.
_DEBYE_ORDER, _DEBYE_TERMS = 40, 9


def _bessel(kappa: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Return ``I_{d/2} / I_{d/2-1}`` and ``log I_{d/2-1}`` at kappa, float64, without overflow."""
    order = d / 2 - 1
    steps = max(0, math.ceil(_DEBYE_ORDER - order))
    top = order + steps
    log_bessel = _debye(kappa, top)
    ratio = torch.exp(_debye(kappa, top + 1) - log_bessel)
    # I_{n-1} = 2 n / kappa I_n + I_{n+1}: errors of the ratio shrink on the way down.
    for i in range(steps):
        ratio = 1 / (2 * (top - i) / kappa + ratio)
        log_bessel = log_bessel - ratio.log()
    return ratio, log_bessel


def _debye(kappa: Tensor, order: float) -> Tensor:
    """Return log I_order(kappa), uniformly in kappa (Abramowitz & Stegun, 9.7.7)."""
    t = kappa / order
    root = torch.sqrt(1 + t.square())
    p = 1 / root
    series = torch.zeros_like(kappa)
    for k, coefficients in enumerate(_debye_polynomials()):
        u = torch.zeros_like(kappa)
        for c in reversed(coefficients):
            u = u * p + c
        series = series + u / order**k
    eta = root + torch.log(t / (1 + root))
    return order * eta - 0.5 * math.log(2 * math.pi * order) - 0.5 * root.log() + series.log()


@lru_cache(maxsize=1)
def _debye_polynomials() -> tuple[tuple[float, ...], ...]:
    """Return the coefficients of u_k(p), lowest power first: u_{k+1} = p^2 (1 - p^2) u_k' / 2 + int_0^p (1 - 5 t^2) u_k / 8."""
    from fractions import Fraction

    u = [Fraction(1)]
    found = [u]
    for _ in range(_DEBYE_TERMS):
        following = [Fraction(0)] * (len(u) + 3)
        for n, c in enumerate(u):
            following[n + 1] += Fraction(n, 2) * c + c / (8 * (n + 1))
            following[n + 3] -= Fraction(n, 2) * c + 5 * c / (8 * (n + 3))
        u = following
        found.append(u)
    return tuple(tuple(float(c) for c in polynomial) for polynomial in found)


# -- the angle


class _Angle(torch.autograd.Function):
    """Angles between samples and the direction, ``p(angle) ∝ exp(kappa cos angle) sin(angle)^(d-2)``, with d angle / d kappa."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, d: int) -> Tensor:
        angle = _draw_angle(kappa, d)
        ctx.save_for_backward(kappa, angle)
        ctx.d = d
        return angle

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        kappa, angle = ctx.saved_tensors
        return gradients[0] * _angle_gradient(angle, kappa, ctx.d), None


def _draw_angle(kappa: Tensor, d: int) -> Tensor:
    # Wood's envelope, in y = 1 - cos(angle) throughout: 1 - y would lose the digits of small angles.
    n = d - 1
    b = n / (2 * kappa + torch.sqrt(4 * kappa.square() + n**2))
    # x0 = (1 - b) / (1 + b); c = kappa x0 + n log(1 - x0^2), and 1 - x0^2 = 4 b / (1 + b)^2.
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + n * (math.log(4) + b.log() - 2 * torch.log1p(b))
    half = torch.tensor(n / 2, dtype=kappa.dtype, device=kappa.device)
    envelope = Beta(half, half, validate_args=False)
    y = torch.zeros_like(kappa)
    waiting = torch.ones_like(kappa, dtype=torch.bool)
    while bool(waiting.any()):
        index = waiting.nonzero(as_tuple=True)
        bb, kk, xx, cc = b[index], kappa[index], x0[index], c[index]
        e = envelope.sample(bb.shape)
        bottom = 1 - (1 - bb) * e
        proposal = 2 * bb * e / bottom
        # 1 - x0 w, from w = 1 - y and 1 - x0 = 2 b / (1 + b).
        log_ratio = kk * (1 - proposal) + n * torch.log(2 * bb / (1 + bb) + xx * proposal) - cc
        accepted = log_ratio >= torch.rand_like(bb).log()
        y[index] = torch.where(accepted, proposal, y[index])
        waiting[index] = ~accepted
    return 2 * torch.asin(torch.sqrt(y / 2).clamp(max=1))


#: Nodes of the quadrature below, and how many widths of the density it spans: the rest is below float64's last bit.
_NODES, _WIDTHS = 64, 13.0


def _angle_gradient(angle: Tensor, kappa: Tensor, d: int) -> Tensor:
    """Return d angle / d kappa at fixed distribution function F: ``-dF/dkappa / p`` by Gauss-Legendre quadrature.

    ``dF/dkappa = int_0^angle (cos t - A) p(t) dt``; the same with the other sign from angle to pi. The side away from the bulk is
    taken: there is nothing that cancels.
    """
    ratio = bessel_ratio(kappa, d)
    # The bulk lies where cos t = A; its width follows from the curvature of log p there.
    middle = torch.acos(ratio.clamp(max=1))
    curvature = kappa * ratio + (d - 2) / middle.sin().square().clamp(min=1e-300)
    span = _WIDTHS / curvature.sqrt()
    left = angle < middle
    start = torch.where(left, (angle - span).clamp(min=0), angle)
    stop = torch.where(left, angle, (angle + span).clamp(max=math.pi))
    from numpy.polynomial.legendre import leggauss  # a tenth of a second to import

    nodes, weights = (torch.as_tensor(v, dtype=kappa.dtype, device=kappa.device) for v in leggauss(_NODES))
    t = start.unsqueeze(-1) + (stop - start).unsqueeze(-1) * (0.5 + 0.5 * nodes)
    # cos t - cos angle and sin t / sin angle without cancellation.
    a = angle.unsqueeze(-1)
    log_ratio = -2 * kappa.unsqueeze(-1) * torch.sin((t + a) / 2) * torch.sin((t - a) / 2)
    if d > 2:
        log_ratio = log_ratio + (d - 2) * (torch.sin(t).log() - torch.sin(a).log())
    integral = ((torch.cos(t) - ratio.unsqueeze(-1)) * log_ratio.exp() * weights).sum(-1) * 0.5 * (stop - start)
    return torch.where(left, -integral, integral)
