"""The von Mises-Fisher posterior against scipy's Bessel functions, quadrature, torch, and many samples."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ive

import omnivae
from omnivae import StandardNormal, kl_divergence
from omnivae.distributions import closed_form_kl
from omnivae.losses import IWAE
from omnivae.posteriors import VonMisesFisher, VonMisesFisherPosterior
from omnivae.posteriors.von_mises_fisher import bessel_ratio, log_normaliser
from omnivae.priors import UniformCategories, UniformSphere

KAPPAS = (1e-3, 0.1, 1.0, 5.0, 40.0, 300.0, 1e4)


def posterior(d, kappa, batch=1, dtype=torch.float64):
    torch.manual_seed(0)
    direction = F.normalize(torch.randn(batch, d, dtype=dtype), dim=1)
    return VonMisesFisher(direction, torch.full((batch,), kappa, dtype=dtype))


@pytest.mark.parametrize("d", [2, 3, 4, 7, 20, 100, 1000])
def test_bessel_functions_are_scipys_where_those_do_not_underflow(d):
    kappa = np.array(KAPPAS)
    upper, lower = ive(d / 2, kappa), ive(d / 2 - 1, kappa)
    fine = (upper > 1e-290) & (lower > 1e-290)
    assert fine.any()
    ratio = bessel_ratio(torch.tensor(kappa), d).numpy()
    np.testing.assert_allclose(ratio[fine], (upper / np.where(fine, lower, 1))[fine], rtol=1e-10)
    log_c = (d / 2 - 1) * np.log(kappa) - d / 2 * math.log(2 * math.pi) - np.log(np.where(fine, lower, 1)) - kappa
    np.testing.assert_allclose(
        log_normaliser(torch.tensor(kappa), d).numpy()[fine], log_c[fine], rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("d", [2, 3, 50, 2000])
def test_normaliser_stays_between_its_limits(d):
    # kappa -> 0: the uniform density; A ~ kappa / d.
    small = torch.tensor(1e-3, dtype=torch.float64)
    log_area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    assert float(log_normaliser(small, d)) == pytest.approx(-log_area, abs=1e-6, rel=1e-9)
    assert float(bessel_ratio(small, d)) == pytest.approx(1e-3 / d, rel=1e-6)
    # kappa -> infinity: A ~ 1 - (d - 1) / (2 kappa).
    large = torch.tensor(1e4 * d, dtype=torch.float64)
    assert float(bessel_ratio(large, d)) == pytest.approx(1 - (d - 1) / (2e4 * d), abs=1e-8)


@pytest.mark.parametrize("d", [2, 5, 64])
def test_gradients_of_the_normaliser(d):
    kappa = torch.tensor([0.3, 4.0, 90.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: log_normaliser(k, d), kappa)
    assert torch.autograd.gradcheck(lambda k: bessel_ratio(k, d), kappa, atol=1e-7)


@pytest.mark.parametrize("kappa", [0.5, 10.0])
def test_density_integrates_to_one_on_circle_and_sphere(kappa):
    angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1).unsqueeze(1)
    q = posterior(2, kappa)
    assert float(q.log_prob(circle).exp().mean() * 2 * math.pi) == pytest.approx(1, abs=1e-9)
    # Heights of a sphere are uniform in area (Archimedes).
    height = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    h, a = torch.meshgrid(height, angle[::50], indexing="ij")
    radius = torch.sqrt(1 - h.square())
    sphere = torch.stack([radius * a.cos(), radius * a.sin(), h], -1).reshape(-1, 1, 3)
    q = posterior(3, kappa)
    assert float(q.log_prob(sphere).exp().mean() * 4 * math.pi) == pytest.approx(1, abs=1e-3)


def test_on_the_circle_it_is_torchs_von_mises():
    q = posterior(2, 3.0)
    reference = torch.distributions.VonMises(torch.atan2(q.direction[:, 1], q.direction[:, 0]), q.kappa)
    z, log_q = q.rsample(7)
    # torch's Bessel function is a polynomial of seven digits.
    torch.testing.assert_close(log_q, reference.log_prob(torch.atan2(z[..., 1], z[..., 0])), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("d", "kappa"), [(2, 1.0), (2, 50.0), (3, 0.5), (5, 20.0), (40, 8.0), (40, 500.0)])
def test_samples_have_its_mean_and_variance_and_log_density(d, kappa):
    q = posterior(d, kappa, batch=2)
    z, log_q = q.rsample(40_000)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(40_000, 2, dtype=torch.float64))
    error = z.std(0) / math.sqrt(len(z))
    assert bool(((z.mean(0) - q.mean).abs() < 4.5 * error).all())
    torch.testing.assert_close(q.logvar, z.var(0).log(), atol=0.06, rtol=0)
    torch.testing.assert_close(q.log_prob(z[:10]), log_q[:10], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("d", "kappa"), [(2, 2.0), (3, 10.0), (30, 60.0), (200, 100.0)])
def test_closed_form_kl_is_the_average_over_samples(d, kappa):
    q, prior = posterior(d, kappa, batch=2), UniformSphere().double()(torch.Size((2, d)))
    z, log_q = q.rsample(20_000)
    ratio = log_q - prior.log_prob(z)
    kl = kl_divergence(q, prior)
    assert bool((kl > 0).all())
    assert bool(((ratio.mean(0) - kl).abs() < 4.5 * ratio.std(0) / math.sqrt(len(z))).all())


def test_kl_vanishes_with_the_concentration_and_is_exact_in_float32():
    prior = UniformSphere()(torch.Size((1, 200)))
    assert 0 <= float(kl_divergence(posterior(200, 1e-3, dtype=torch.float32), prior)) < 1e-6
    # Terms of hundreds of nats cancel.
    for kappa in (1.0, 20.0, 1000.0):
        single = kl_divergence(posterior(200, kappa, dtype=torch.float32), prior)
        double = kl_divergence(posterior(200, kappa), prior)
        assert float(single) == pytest.approx(float(double), rel=1e-6)


@pytest.mark.parametrize(("d", "kappa"), [(2, 1.5), (2, 30.0), (3, 0.7), (4, 12.0), (25, 40.0)])
def test_gradients_at_concentration_and_direction_are_unbiased(d, kappa):
    # E[a z + (b z)^2] in closed form: the mean is A mu, the covariance A / kappa across and A' along.
    torch.manual_seed(1)
    a, b = torch.randn(2, d, dtype=torch.float64)
    raw = torch.randn(1, d, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([kappa], dtype=torch.float64, requires_grad=True)

    def exact():
        mu, length = F.normalize(raw, dim=1)[0], bessel_ratio(k, d)[0]
        along = 1 - (d - 1) * length / k[0]
        return length * (a @ mu) + along * (b @ mu).square() + length / k[0] * (b.square().sum() - (b @ mu).square())

    expected = torch.autograd.grad(exact(), (raw, k))
    estimates = []
    for _ in range(60):
        z, _ = VonMisesFisher(F.normalize(raw, dim=1), k).rsample(300)
        estimates.append(torch.autograd.grad(((z @ a) + (z @ b).square()).mean(), (raw, k)))
    for index, right in enumerate(expected):
        each = torch.stack([gradients[index] for gradients in estimates])
        error = each.std(0) / math.sqrt(len(each))
        assert bool(((each.mean(0) - right).abs() < 4.5 * error + 1e-9).all())


def test_angle_moves_along_its_distribution_function():
    # At fixed F: F(angle(kappa + h); kappa + h) = F(angle; kappa); by fine quadrature in four dimensions.
    from omnivae.posteriors.von_mises_fisher import _angle_gradient

    d, kappa, h = 4, 6.0, 1e-4

    def cdf(angle, k):
        t = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
        p = torch.exp(k * (t.cos() - 1)) * t.sin() ** (d - 2)
        return torch.cumulative_trapezoid(p, t)[round(angle / math.pi * 200_000) - 1] / torch.trapezoid(p, t)

    for node in (2_000, 30_000, 60_000, 120_000):
        angle = node / 200_000 * math.pi
        slope = (cdf(angle + 1e-2, kappa) - cdf(angle - 1e-2, kappa)) / 2e-2
        if not float(slope) > 1e-8:
            continue
        change = (cdf(angle, kappa + h) - cdf(angle, kappa - h)) / (2 * h)
        t = torch.tensor([angle], dtype=torch.float64)
        p = torch.exp(kappa * (t.cos() - 1)) * t.sin() ** (d - 2)
        whole = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
        p = p / torch.trapezoid(torch.exp(kappa * (whole.cos() - 1)) * whole.sin() ** (d - 2), whole)
        got = _angle_gradient(t, torch.tensor([kappa], dtype=torch.float64), d)
        assert float(got) == pytest.approx(float(-change / p), rel=1e-4)


def test_gradients_are_finite_at_the_ends_of_the_concentration():
    for d in (2, 3, 400):
        for kappa in (1e-3, 1e4):
            k = torch.full((64,), kappa, requires_grad=True)
            direction = F.normalize(torch.randn(64, d), dim=1).requires_grad_()
            z, log_q = VonMisesFisher(direction, k).rsample(3)
            (z.sum() + log_q.sum()).backward()
            assert bool(torch.isfinite(k.grad).all())
            assert bool(torch.isfinite(direction.grad).all())


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="at least 2"):
        VonMisesFisherPosterior(4, 1)
    with pytest.raises(ValueError, match="needs a vector latent"):
        VonMisesFisherPosterior(4, 3, 2)
    model = omnivae.recipes.hyperspherical_vae(image_size=8, latent_dim=3, channels=(4,)).eval()
    with pytest.raises(ValueError, match="uniform and has none: leave it at 1"):
        model.sample(2, temperature=0.5)
    parts = (model.encoder, model.posterior, model.decoder, model.likelihood_head)
    for prior in (StandardNormal(), UniformCategories(3)):
        with pytest.raises(ValueError, match=r"points of a sphere and .* use UniformSphere, or another posterior"):
            omnivae.VAE(*parts, prior, value_range=(0, 1), image_size=(8, 8))
    assert closed_form_kl(posterior(3, 1.0), StandardNormal()(torch.Size((1, 3)))) is None


def test_codes_are_on_the_sphere_and_bounds_grow():
    model = omnivae.recipes.hyperspherical_vae(image_size=8, latent_dim=4, channels=(4,)).eval()
    x = (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(x, num_samples=500)
        torch.testing.assert_close(output.latents[0].z.norm(dim=-1), torch.ones(500, 8))
        bounds = [float(-IWAE(num_samples=500, num_bounds=500 // k)(output, {"x": x})) for k in (1, 10, 100)]
    assert bounds == sorted(bounds)
