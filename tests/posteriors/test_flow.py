"""The flow posterior against quadrature, a linear-Gaussian world with a known posterior, and many samples."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

import omnivae
from omnivae import DiagonalGaussian, GaussianPosterior, kl_divergence
from omnivae.losses import IWAE, KL, NLL, TC
from omnivae.networks.flows import FLOWS
from omnivae.posteriors import FlowPosterior
from omnivae.priors import VampPrior
from omnivae.training.module import check


def head(flow, latent_dim=2, dtype=torch.float64, spread=0.4, **arguments):
    """A head with weights far from where it starts; its samples stay within a few units."""
    torch.manual_seed(0)
    made = FlowPosterior(4, latent_dim, flow=flow, num_flows=2, context_dim=3, hidden=(8,), **arguments).to(dtype)
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.add_(spread * torch.randn_like(p)) if name.endswith(".lu") else p.normal_(std=spread)
    return made


def features(n=1, dtype=torch.float64):
    return torch.randn(n, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))


def grid(q, points=400):
    """Points that cover the samples of ``q`` (one image, two dimensions), and the area of each."""
    with torch.no_grad():
        z = q.rsample(20_000)[0].squeeze(1)
        low, high = z.amin(0) - 3, z.amax(0) + 3
        axes = [torch.linspace(float(a), float(b), points, dtype=z.dtype) for a, b in zip(low, high, strict=True)]
        area = math.prod(float(axis[1] - axis[0]) for axis in axes)
        return torch.cartesian_prod(*axes).unsqueeze(1), area


@pytest.mark.parametrize("flow", FLOWS)
def test_density_integrates_to_one(flow):
    q = head(flow)(features())
    points, area = grid(q)
    with torch.no_grad():
        assert float(q.log_prob(points).exp().sum() * area) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("flow", FLOWS)
def test_log_density_of_samples_is_the_same_both_ways(flow):
    q = head(flow, 3)(features(5))
    z, log_q = q.rsample(7)
    assert z.shape == (7, 5, 3)
    torch.testing.assert_close(q.log_prob(z), log_q, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(q.log_prob(z[2]), log_q[2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("flow", FLOWS)
def test_gradient_of_an_expectation_is_that_of_the_integral(flow):
    # d/dtheta of the integral of q(z) f(z), through the density alone: no sample and no reparameterisation in it.
    made = head(flow, spread=0.3)
    x = features()
    points, area = grid(made(x), 300)

    def f(z):
        return torch.sin(z[..., 0]) + 0.5 * z[..., 1].square()

    parameters = list(made.parameters())
    integral = (made(x).log_prob(points).exp() * f(points)).sum() * area
    exact = torch.autograd.grad(integral, parameters, allow_unused=True)
    torch.manual_seed(2)
    estimates = []
    for _ in range(40):
        z, _ = made(x).rsample(500)
        estimates.append(torch.autograd.grad(f(z).mean(), parameters, allow_unused=True))
    for index, expected in enumerate(exact):
        each = torch.stack([gradients[index] for gradients in estimates])
        error = each.std(0) / math.sqrt(len(each))
        assert bool(((each.mean(0) - expected).abs() < 5 * error + 2e-3 * (1 + expected.abs())).all())


@pytest.mark.parametrize("flow", FLOWS)
def test_kl_is_the_average_over_samples(flow):
    q = head(flow, spread=0.3)(features())
    prior = Independent(Normal(torch.zeros(1, 2).double(), torch.ones(1, 2).double()), 1)
    points, area = grid(q)
    with torch.no_grad():
        log_q = q.log_prob(points)
        exact = float((log_q.exp() * (log_q - prior.log_prob(points))).sum() * area)
        torch.manual_seed(3)
        z, log_q = q.rsample(20_000)
        estimate = kl_divergence(q, prior, z=z, log_q=log_q)
        error = float((log_q - prior.log_prob(z)).std() / math.sqrt(len(z)))
    assert float(estimate) == pytest.approx(exact, abs=4 * error + 2e-3)


@pytest.mark.parametrize("flow", ["realnvp", "glow", "maf", "iaf"])
def test_affine_flow_reaches_the_log_likelihood_where_a_diagonal_gaussian_cannot(flow):
    # p(z) = N(0, I), p(x|z) = N(x; z1 + z2, s^2): the posterior is one Gaussian with correlated dimensions.
    s, x = 0.5, 1.2
    precision = torch.eye(2, dtype=torch.float64) + torch.ones(2, 2, dtype=torch.float64) / s**2
    truth = MultivariateNormal(torch.linalg.solve(precision, torch.full((2,), x / s**2).double()), precision.inverse())
    log_px = float(Normal(0.0, math.sqrt(2 + s**2)).log_prob(torch.tensor(x)))
    # The best diagonal Gaussian has the posterior's mean and the inverse of the precision's diagonal.
    gap = 0.5 * float(torch.log(precision.diagonal()).sum() - torch.logdet(precision))
    assert gap > 0.5

    torch.manual_seed(0)
    made = FlowPosterior(1, 2, flow=flow, num_flows=2, context_dim=0, hidden=(8,)).double()
    optimiser = torch.optim.Adam(made.parameters(), lr=0.03)
    ones = torch.ones(1, 1, dtype=torch.float64)

    def elbo(k):
        z, log_q = made(ones).rsample(k)
        log_p = Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(z.sum(-1), s).log_prob(torch.tensor(x).double())
        return (log_p - log_q).mean()

    for _ in range(300):
        optimiser.zero_grad()
        (-elbo(32)).backward()
        optimiser.step()
    with torch.no_grad():
        bound = float(elbo(20_000))
        assert bound < log_px + 0.02
        assert bound > log_px - 0.2 * gap
        z, _ = made(ones).rsample(20_000)
        correlation = torch.corrcoef(z.squeeze(1).T)[0, 1]
    assert float(correlation) == pytest.approx(
        float(truth.covariance_matrix[0, 1] / truth.covariance_matrix[0, 0]), abs=0.15
    )


@pytest.mark.parametrize("flow", ["realnvp", "glow", "nsf", "maf", "planar"])
def test_a_new_flow_posterior_has_the_gaussians_density(flow):
    made = FlowPosterior(4, 3, flow=flow).double()
    q = made(features(2))
    z, log_q = q.rsample(3)
    eps, _ = q.flow.inverse(z, q.context)
    torch.testing.assert_close(log_q, q.base.log_prob(eps))
    if flow != "glow":
        torch.testing.assert_close(q.mean, q.base.mean)
        torch.testing.assert_close(q.logvar, q.base.logvar)


def test_linearised_variance_is_exact_for_an_affine_map():
    made = head("glow", 3)
    # A coupling without a network is the constant that its last bias says: the flow is affine.
    with torch.no_grad():
        for layer in made.flow.layers:
            layer.coupling.hyper[-1].weight.zero_()
    q = made(features())
    z, _ = q.rsample(200_000)
    torch.testing.assert_close(q.logvar, z.var(0).log(), atol=0.03, rtol=0)
    torch.testing.assert_close(q.mean, z.mean(0), atol=0.03, rtol=0.01)
    assert not q.logvar.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(made(features()).stddev, torch.exp(0.5 * q.logvar))


@pytest.mark.parametrize("context_dim", [0, 3])
def test_mean_and_variance_are_the_same_in_inference_mode(context_dim):
    torch.manual_seed(0)
    made = FlowPosterior(4, 2, flow="realnvp", num_flows=2, context_dim=context_dim, hidden=(8,)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.4)
    expected = made(features(3))
    with torch.inference_mode():
        q = made(features(3))
        torch.testing.assert_close(q.mean, expected.mean.detach())
        torch.testing.assert_close(q.logvar, expected.logvar)


def test_refuses_spatial_latents_and_what_needs_a_gaussian():
    with pytest.raises(ValueError, match=r"vector latent.*GaussianPosterior"):
        FlowPosterior(4, 2, 2)
    model = omnivae.recipes.flow_vae(image_size=8, latent_dim=2, channels=(4,))
    check(model, {"nll": NLL(), "kl": KL()})
    check(model, {"iwae": IWAE(num_samples=4)})
    for losses in ({"iwae": IWAE(gradient="dreg")}, {"tc": TC()}):
        with pytest.raises(
            ValueError, match=r"diagonal, which FlowPosterior does not have: .*, or use a gaussian posterior"
        ):
            check(model, losses)
    with pytest.raises(ValueError, match="at least one posterior sample"):
        model.encode(torch.zeros(1, 1, 8, 8)).rsample(0)


def test_vamp_prior_refuses_a_flow_posterior():
    # Its mixture is of diagonal Gaussians: mean and linearised variance would be another density than the posterior's.
    prior = VampPrior(1, (4, 4), 2)
    made = FlowPosterior(16, 2)
    with pytest.raises(ValueError, match="needs a diagonal Gaussian posterior, got TransformedGaussian"):
        prior(torch.Size((3, 2)), lambda x: made(x.flatten(1)))
    gaussian = GaussianPosterior(16, 2, 0)
    assert isinstance(gaussian(torch.zeros(1, 16)), DiagonalGaussian)
    assert prior(torch.Size((3, 2)), lambda x: gaussian(x.flatten(1))).sample().shape == (3, 2)


def test_importance_weighted_bounds_grow_with_the_number_of_samples():
    model = omnivae.recipes.iaf_vae(image_size=8, latent_dim=3, channels=(4,), hidden=(16,), context_dim=4).eval()
    x = (torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(x, num_samples=2000)
        bounds = [float(-IWAE(num_samples=2000, num_bounds=2000 // k)(output, {"x": x})) for k in (1, 10, 100)]
    assert bounds == sorted(bounds)
