"""The full-covariance Gaussian and the point mass, against quadrature, torch and many samples."""

import math

import pytest
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal

from omnivae import DiagonalGaussian, kl_divergence
from omnivae.distributions import closed_form_kl
from omnivae.posteriors import (
    FullCovarianceGaussian,
    FullCovarianceGaussianPosterior,
    GaussianPosterior,
    PointMass,
    PointMassPosterior,
)


def posterior(batch=3, d=4, dtype=torch.float32):
    torch.manual_seed(0)
    tril = torch.tril(0.5 * torch.randn(batch, d, d, dtype=dtype), -1)
    tril = tril + torch.diag_embed(0.3 + torch.rand(batch, d, dtype=dtype))
    return FullCovarianceGaussian(torch.randn(batch, d, dtype=dtype), tril)


def test_density_integrates_to_one_and_equals_torchs():
    q = posterior(1, 2, torch.float64)
    axis = torch.linspace(-10, 10, 501, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1)
    total = q.log_prob(points).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-6)
    q = posterior()
    z, log_q = q.rsample(6)
    torch.testing.assert_close(log_q, q.log_prob(z), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_q, MultivariateNormal(q.mean, q.covariance).log_prob(z), atol=1e-3, rtol=1e-3)


def test_samples_have_its_mean_and_covariance():
    q = posterior(2, 3)
    z, _ = q.rsample(100_000)
    for b in range(2):
        torch.testing.assert_close(z[:, b].mean(0), q.mean[b], atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(z[:, b].T), q.covariance[b], atol=0.03, rtol=0)
    torch.testing.assert_close(q.stddev, q.covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    torch.testing.assert_close(q.logvar, 2 * q.stddev.log())


def test_closed_form_kl_equals_torchs_and_monte_carlo():
    q = posterior()
    loc, scale = torch.randn(3, 4), 0.5 + torch.rand(3, 4)
    factorised = Independent(Normal(loc, scale), 1)
    full = MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    reference = torch.distributions.kl_divergence(q.distribution(), full)
    torch.testing.assert_close(kl_divergence(q, factorised), reference, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kl_divergence(q, full), reference)
    z, log_q = q.rsample(50_000)
    ratio = log_q - factorised.log_prob(z)
    assert bool(((ratio.mean(0) - reference).abs() < 4 * ratio.std(0) / math.sqrt(len(z))).all())
    torch.testing.assert_close(q.kl(), kl_divergence(q, Independent(Normal(torch.zeros(3, 4), torch.ones(3, 4)), 1)))
    assert closed_form_kl(q, Independent(Laplace(loc, scale), 1)) is None


def test_a_diagonal_factor_is_the_diagonal_gaussian():
    mean, logvar = torch.randn(2, 3), torch.randn(2, 3)
    full = FullCovarianceGaussian(mean, torch.diag_embed(torch.exp(0.5 * logvar)))
    diagonal = DiagonalGaussian(mean, logvar)
    torch.testing.assert_close(full.kl(), diagonal.kl())
    z = torch.randn(5, 2, 3)
    torch.testing.assert_close(full.log_prob(z), diagonal.log_prob(z))
    torch.testing.assert_close(full.logvar, logvar)


def test_reparameterised_gradient_is_unbiased():
    """d/dL E[|z|^2] = 2 L below and on the diagonal, d/dm = 2 m: closed form against the mean of many samples."""
    q = posterior(1, 3)
    mean, tril = q.mean.requires_grad_(), q.scale_tril.requires_grad_()
    z, _ = FullCovarianceGaussian(mean, tril).rsample(200_000)
    z.square().sum(-1).mean().backward()
    torch.testing.assert_close(mean.grad, 2 * mean.detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(tril.grad.tril(), 2 * tril.detach(), atol=0.05, rtol=0)


def test_head_uses_every_output_once():
    head = FullCovarianceGaussianPosterior(5, 4)
    features = torch.randn(3, 5)
    q = head(features)
    assert bool((q.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert not bool(q.scale_tril.triu(1).any())
    raw = head.projection(features)
    torch.testing.assert_close(q.scale_tril[:, 3, 2], raw[:, -1])
    torch.testing.assert_close(q.scale_tril[:, 0, 0], torch.exp(0.5 * raw[:, 4]))
    (q.kl().sum() + q.rsample()[0].sum()).backward()
    assert bool((head.projection.weight.grad.abs().sum(1) > 0).all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(features)
        assert rough.rsample(2)[0].dtype == rough.kl().dtype == rough.log_prob(rough.mean).dtype == torch.float32
    torch.testing.assert_close(rough.mean, q.mean)


def test_point_mass_is_its_point():
    head = PointMassPosterior(5, 2, 2)
    features = torch.randn(3, 5, 4, 4, requires_grad=True)
    q = head(features)
    z, log_q = q.rsample(3)
    assert log_q is None
    assert z.shape == (3, 3, 2, 4, 4)
    assert all(torch.equal(part, q.mode()) for part in z)
    torch.testing.assert_close(q.penalties["norm"], torch.stack([m.square().sum() for m in q.mean]))
    (gradient,) = torch.autograd.grad(z.sum(), q.mean)
    assert torch.equal(gradient, torch.full_like(gradient, 3.0))


def test_refusals():
    with pytest.raises(ValueError, match="needs a vector latent"):
        FullCovarianceGaussianPosterior(5, 4, 2)
    with pytest.raises(ValueError, match=r"expected \[B, D\]"):
        FullCovarianceGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    for q in (posterior(), PointMass(torch.zeros(2, 3))):
        with pytest.raises(ValueError, match="k=0"):
            q.rsample(0)
    for head in (FullCovarianceGaussianPosterior, PointMassPosterior, GaussianPosterior):
        with pytest.raises(ValueError, match="latent_dim=0"):
            head(3, 0)
