"""A linear-Gaussian VAE, whose log p(x) is known, and small datasets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from omnivae.component import Component
from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import GaussianLikelihood
from omnivae.models import VAE
from omnivae.posteriors.gaussian import PosteriorHead
from omnivae.priors import StandardNormal

PIXELS, LATENTS, NOISE = 4, 2, 0.5


class LinearEncoderForTests(nn.Module, Component):
    """Images to a flat vector: the posterior head does the rest."""

    in_channels, out_channels, stride, dim = 1, PIXELS, 1, 2

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return x.flatten(1)


class LinearDecoderForTests(nn.Module, Component):
    """z to an image by a matrix with orthogonal columns, so that the exact posterior is diagonal."""

    in_channels, out_channels, stride, dim = LATENTS, 1, 1, 2

    def __init__(self) -> None:
        super().__init__()
        w = torch.tensor([[0.6, 0.0], [0.3, 0.0], [0.0, 0.9], [0.0, -0.2]])
        self.weight = nn.Parameter(w)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        return (z @ self.weight.T.to(z.dtype)).reshape(-1, 1, 2, 2)


class LinearPosteriorForTests(PosteriorHead):
    """mean = A f, a constant log-variance."""

    provides = frozenset({"density", "diagonal"})

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.matrix = nn.Parameter(torch.zeros(latent_dim, PIXELS))
        self.logvar = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, features: Tensor) -> DiagonalGaussian:
        mean = features @ self.matrix.T
        return DiagonalGaussian(mean, self.logvar.expand_as(mean))


class ListDataset:
    """Items in a list."""

    def __init__(self, images: list[Tensor] | Tensor, keys: list[str] | None = None) -> None:
        self.images = images
        self.keys = keys or [f"image/{i:03d}" for i in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"x": self.images[index], "key": self.keys[index]}


@pytest.fixture
def exact_model() -> VAE:
    """q(z|x) equals p(z|x): precision I + W'W / s², mean Σ W' x / s²."""
    decoder, posterior = LinearDecoderForTests(), LinearPosteriorForTests()
    w = decoder.weight.data
    variance = 1 / (1 + (w.T @ w).diagonal() / NOISE**2)
    posterior.matrix.data = variance[:, None] * w.T / NOISE**2
    posterior.logvar.data = variance.log()
    likelihood, prior = GaussianLikelihood(NOISE), StandardNormal()
    return VAE(
        LinearEncoderForTests(), posterior, decoder, likelihood, prior, value_range=(-4, 4), image_size=(2, 2)
    ).eval()


@pytest.fixture
def loose_model(exact_model: VAE) -> VAE:
    """The same model with a posterior that is shifted and too wide."""
    exact_model.posterior.matrix.data *= 0.7
    exact_model.posterior.logvar.data += 0.8
    return exact_model


@pytest.fixture
def images() -> Tensor:
    """Draws from the model's own p(x)."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(24, LATENTS, generator=g)
    w = LinearDecoderForTests().weight.data
    x = z @ w.T + NOISE * torch.randn(24, PIXELS, generator=g)
    return x.reshape(-1, 1, 2, 2).clamp(-4, 4)


def log_evidence(x: Tensor) -> Tensor:
    """log N(x; 0, W W' + s² I) in float64."""
    w = LinearDecoderForTests().weight.data.double()
    covariance = w @ w.T + NOISE**2 * torch.eye(PIXELS, dtype=torch.float64)
    flat = x.double().flatten(1)
    maha = (flat @ torch.linalg.inv(covariance) * flat).sum(1)
    return -0.5 * (maha + torch.logdet(covariance) + PIXELS * math.log(2 * math.pi))
