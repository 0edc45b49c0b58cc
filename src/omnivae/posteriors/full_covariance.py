"""Full-covariance Gaussian posterior of a vector latent, by its Cholesky factor."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from omnivae.distributions import LOGVAR_MAX, LOGVAR_MIN, at_least_float32
from omnivae.networks.layers import convolution
from omnivae.posteriors.gaussian import PosteriorHead


class FullCovarianceGaussian:
    """Posterior q(z|x) = N(mean, L L^T) for one batch (Kingma & Welling, An Introduction to VAEs, 2019, section 2.5.1).

    Args:
        mean: ``[B, D]``.
        scale_tril: L, lower triangular with a positive diagonal, ``[B, D, D]``.
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> q = FullCovarianceGaussian(torch.ones(2, 3), torch.eye(3).expand(2, 3, 3))
        >>> q.kl()
        tensor([1.5000, 1.5000])
    """

    def __init__(self, mean: Tensor, scale_tril: Tensor, *, input_size: tuple[int, ...] | None = None) -> None:
        if mean.ndim != 2 or scale_tril.shape != (*mean.shape, mean.shape[-1]):
            raise ValueError(
                f"got mean {tuple(mean.shape)} and scale_tril {tuple(scale_tril.shape)}; expected [B, D] and [B, D, D]"
            )
        self.mean = at_least_float32(mean)
        self.scale_tril = at_least_float32(scale_tril)
        self.input_size = input_size

    @property
    def shape(self) -> torch.Size:
        """Shape of one sample a batch element, ``[B, D]``."""
        return self.mean.shape

    @property
    def logvar(self) -> Tensor:
        """Log-variance of each dimension by itself, ``[B, D]``; it says nothing of the correlations."""
        return self.scale_tril.square().sum(-1).log()

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of each dimension by itself, ``[B, D]``."""
        return self.scale_tril.square().sum(-1).sqrt()

    @property
    def covariance(self) -> Tensor:
        """L L^T, ``[B, D, D]``."""
        with torch.autocast(device_type=self.mean.device.type, enabled=False):
            return self.scale_tril @ self.scale_tril.mT

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none for a Gaussian."""
        return {}

    def mode(self) -> Tensor:
        """Return the mean, ``[B, D]``."""
        return self.mean

    def sample(self) -> Tensor:
        """Draw one sample without gradient, ``[B, D]``."""
        with torch.no_grad():
            return self.rsample()[0][0]

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw k samples z = mean + L eps, eps ~ N(0, I).

        Args:
            k: number of samples, >= 1.

        Returns:
            z ``[K, B, D]`` and log q(z|x) in nats ``[K, B]``.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        eps = torch.randn((k, *self.shape), dtype=self.mean.dtype, device=self.mean.device)
        with torch.autocast(device_type=eps.device.type, enabled=False):
            z = self.mean + (self.scale_tril @ eps.unsqueeze(-1)).squeeze(-1)
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return z, -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1) - log_det

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats.

        Args:
            z: ``[B, D]`` or ``[K, B, D]``.

        Returns:
            ``[B]`` or ``[K, B]``.
        """
        with torch.autocast(device_type=z.device.type, enabled=False):
            return self.distribution().log_prob(at_least_float32(z))

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) in nats, ``[B]``."""
        return self._kl(torch.zeros_like(self.mean), torch.ones_like(self.mean))

    def closed_form_kl(self, p: Distribution) -> Tensor | None:
        """Return KL(q || p) in nats, ``[B]``, for a factorised or a full normal p; ``None`` for any other."""
        if isinstance(p, Independent) and isinstance(p.base_dist, Normal) and p.reinterpreted_batch_ndims == 1:
            return self._kl(p.base_dist.loc, p.base_dist.scale)
        return kl_divergence(self.distribution(), p) if isinstance(p, MultivariateNormal) else None

    def _kl(self, loc: Tensor, scale: Tensor) -> Tensor:
        # 1/2 sum_d ((sum_e L_de^2 + (m_d - mu_d)^2) / s_d^2 - 1) + sum_d log s_d - log L_dd
        second = self.scale_tril.square().sum(-1) + (self.mean - loc).square()
        log_ratio = scale.log() - self.scale_tril.diagonal(dim1=-2, dim2=-1).log()
        return (0.5 * (second / scale.square() - 1) + log_ratio).sum(-1)

    def distribution(self) -> MultivariateNormal:
        """Return q(z|x) as a torch distribution, batch shape ``[B]``, event shape ``[D]``."""
        return MultivariateNormal(self.mean, scale_tril=self.scale_tril, validate_args=False)

    def __repr__(self) -> str:
        return f"FullCovarianceGaussian(shape={tuple(self.shape)}, dtype={self.mean.dtype})"


class FullCovarianceGaussianPosterior(PosteriorHead):
    """Projects features to the mean and the Cholesky factor of a Gaussian; the diagonal is exp(logvar / 2).

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: size D of the vector z; the head has D (D + 3) / 2 outputs.
        dim: 0: a spatial latent would need a matrix over all its elements.

    Raises:
        ValueError: for a spatial latent or ``latent_dim`` below 1.

    Example:
        >>> FullCovarianceGaussianPosterior(8, 4)(torch.zeros(2, 8)).covariance.shape
        torch.Size([2, 4, 4])
    """

    provides = frozenset({"density"})

    def __init__(self, in_channels: int, latent_dim: int, dim: int = 0) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"got latent_dim={latent_dim}; expected at least 1")
        if dim != 0:
            raise ValueError(
                "a full covariance needs a vector latent: build the model with latent='vector', or use GaussianPosterior"
            )
        self.latent_dim = latent_dim
        self.projection = convolution(0, in_channels, latent_dim * (latent_dim + 3) // 2, 1)

    def forward(self, features: Tensor) -> FullCovarianceGaussian:
        """Return q(z|x) for features ``[B, C]``."""
        d = self.latent_dim
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight: Tensor = self.projection.weight  # type: ignore[assignment]
            parameters = at_least_float32(self.projection(features.to(weight.dtype)))
        mean, logvar, below = parameters.split([d, d, d * (d - 1) // 2], dim=1)
        diagonal = torch.exp(0.5 * logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))
        rows, columns = torch.tril_indices(d, d, -1, device=features.device)
        batch = torch.arange(len(mean), device=mean.device).unsqueeze(1)
        scale_tril = torch.diag_embed(diagonal).index_put((batch, rows, columns), below)
        return FullCovarianceGaussian(mean, scale_tril)
