"""A world of two latents, one number each, in which everything is linear and Gaussian and therefore known in closed form.

``z0 ~ N(0, 1)``, ``z1 ~ N(A z0 + A0, S1^2)``, ``x ~ N(B1 z1 + B0 z0 + B, S^2 I)`` with three pixels.
"""

import math

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from omnivae.likelihoods import GaussianLikelihood
from omnivae.models import HierarchicalVAE
from omnivae.posteriors import LevelPosterior

A, A0, S1, S = 0.8, -0.3, 0.7, 0.6
B0 = torch.tensor([0.5, -0.9, 0.2], dtype=torch.float64)
B1 = torch.tensor([1.1, 0.4, -0.7], dtype=torch.float64)
B = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
X = torch.tensor([[0.9, -0.4, 1.3], [-1.5, 0.2, 0.1]], dtype=torch.float64)[..., None]

PRIOR = MultivariateNormal(
    torch.tensor([0.0, A0]).double(), torch.tensor([[1.0, A], [A, A**2 + S1**2]], dtype=torch.float64)
)
_LOADINGS = torch.stack([B0, B1], 1)
EVIDENCE = MultivariateNormal(
    _LOADINGS @ PRIOR.mean + B, _LOADINGS @ PRIOR.covariance_matrix @ _LOADINGS.T + S**2 * torch.eye(3).double()
)


def true_posterior(x):
    """p(z0, z1 | x) by conditioning the joint Gaussian, for images ``[B, 3, 1]``."""
    precision = PRIOR.precision_matrix + _LOADINGS.T @ _LOADINGS / S**2
    covariance = precision.inverse()
    pull = (x[..., 0] - B) @ _LOADINGS / S**2 + PRIOR.precision_matrix @ PRIOR.mean
    return MultivariateNormal(pull @ covariance, covariance)


class Up(nn.Module):
    """The image itself is the feature of both levels."""

    dim, in_channels, stride = 1, 3, 1

    def forward(self, x):
        return x[..., 0], x[..., 0]


class Down(nn.Module):
    """Linear maps; the posterior is the true one, but for a ``shift`` of the means and a factor ``widen`` of the spreads."""

    level_channels, level_scales = (1, 1), (1, 1)

    def __init__(self, shift=0.0, widen=1.0):
        super().__init__()
        self.shift, self.widen = shift, 2 * math.log(widen)

    def forward(self, batch, grid, features, choose):
        q0 = q1 = None
        if features is not None:
            q = true_posterior(features[0][..., None])
            cov = q.covariance_matrix[0]
            q0 = torch.stack([q.mean[:, 0] + self.shift, cov[0, 0].log().expand(batch) + self.widen], 1)
        z0 = choose(0, torch.zeros(batch, 2).double(), q0)
        if features is not None:
            mean = q.mean[:, 1] + cov[1, 0] / cov[0, 0] * (z0[:, 0] - q.mean[:, 0])
            spread = (cov[1, 1] - cov[1, 0] ** 2 / cov[0, 0]).log()
            q1 = torch.stack([mean + self.shift, spread.expand(batch) + self.widen], 1)
        z1 = choose(1, torch.cat([A * z0 + A0, torch.full_like(z0, 2 * math.log(S1))], 1), q1)
        return (z0 * B0 + z1 * B1 + B)[..., None]


def world(shift=0.0, widen=1.0):
    head = LevelPosterior(2, "absolute", bound=0.0)
    return HierarchicalVAE(Up(), head, Down(shift, widen), GaussianLikelihood(S), image_size=(1,)).eval()


def joint(model, x):
    """q(z0, z1 | x) of the world as one Gaussian, from its two factors."""
    q, wide = true_posterior(x), math.exp(model.decoder.widen)
    cov, shift = q.covariance_matrix[0], model.decoder.shift
    slope = cov[1, 0] / cov[0, 0]
    v0, v1 = wide * cov[0, 0], wide * (cov[1, 1] - cov[1, 0] ** 2 / cov[0, 0])
    mean = torch.stack([q.mean[:, 0] + shift, q.mean[:, 1] + slope * shift + shift], 1)
    return MultivariateNormal(mean, torch.stack([v0, slope * v0, slope * v0, slope**2 * v0 + v1]).reshape(2, 2))
