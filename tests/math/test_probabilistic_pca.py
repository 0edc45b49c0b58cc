"""A linear VAE finds probabilistic PCA (Tipping & Bishop, Probabilistic Principal Component Analysis, 1999).

Its best ELBO is the maximum of the likelihood although the posterior is diagonal (Lucas et al., Don't Blame the ELBO, 2019).
The log-likelihood is quadratic in z, so the mean over the 2 D points ``mean ± sqrt(D) stddev e_i`` is its exact expectation: the
losses are then the ELBO itself, without noise.
"""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import KL, NLL
from omnivae.types import Latent, VAEOutput

C, D, N = 5, 2, 300


def data():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(C, D, generator=generator).double() * torch.tensor([2.0, 1.0])
    noise = 0.4 * torch.randn(N, C, generator=generator).double()
    return torch.randn(N, D, generator=generator).double() @ mixing.T + noise + torch.arange(C)


def output_at(x, w, b, log_scale, v, logvar):
    mean = (x - b) @ v
    q = DiagonalGaussian(mean, logvar.expand_as(mean))
    steps = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).double()
    z = q.mean + q.stddev * steps[:, None]
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    pixels = Independent(Normal(z @ w.T + b, log_scale.exp()), 1)
    return VAEOutput((Latent(q, prior, z, q.log_prob(z)),), pixels)


def best_likelihood(x):
    """Tipping & Bishop, eqs. 4, 7 and 8: mean log-likelihood, principal subspace and noise variance at the maximum."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    noise = values[:-D].mean()
    log_det = values[-D:].log().sum() + (C - D) * noise.log()
    return -0.5 * (C * math.log(2 * math.pi) + log_det + C), vectors[:, -D:], noise


@pytest.mark.parametrize("seed", [0, 1])
def test_training_a_linear_vae_finds_the_maximum_likelihood_solution(seed):
    x = data()
    generator = torch.Generator().manual_seed(seed)
    w, v = (torch.randn(C, D, generator=generator).double().requires_grad_() for _ in range(2))
    b, log_scale, logvar = (torch.zeros(n).double().requires_grad_() for n in (C, 1, D))
    parameters = [w, b, log_scale, v, logvar]
    optimiser = torch.optim.LBFGS(parameters, lr=1, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        output = output_at(x, *parameters)
        return NLL(num_samples=2 * D)(output, {"x": x}) + KL()(output, {"x": x})

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    best, subspace, noise = best_likelihood(x)
    found = loss().item()
    assert found == pytest.approx(-best.item(), abs=1e-4)
    # No ELBO exceeds the best likelihood.
    assert found >= -best.item() - 1e-9
    assert log_scale.exp().square().item() == pytest.approx(noise.item(), rel=1e-2)
    columns = torch.linalg.qr(w.detach())[0]
    assert torch.linalg.svdvals(columns.T @ subspace).min().item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(b.detach(), x.mean(0), atol=1e-2, rtol=0)


def test_the_points_give_the_exact_expectation():
    """Against many samples: the loss is no approximation of the ELBO here."""
    torch.manual_seed(0)
    x, w, v = data()[:4], torch.randn(C, D).double(), torch.randn(C, D).double()
    b, log_scale, logvar = torch.randn(C).double(), torch.zeros(1).double(), torch.randn(D).double()
    output = output_at(x, w, b, log_scale, v, logvar)
    exact = NLL(num_samples=2 * D)(output, {"x": x})
    z = output.latents[0].posterior.rsample(40_000)[0]
    samples = -Independent(Normal(z @ w.T + b, 1.0), 1).log_prob(x).mean(1)
    assert abs(samples.mean() - exact) < 5 * samples.std() / 200
