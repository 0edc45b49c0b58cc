"""Importance-weighted bounds in a linear-Gaussian world: p(z) = N(0, 1), p(x|z) = N(w z + b, s^2 I), one latent dimension.

log p(x) and the true posterior are closed form, and the expected bound of two samples is an integral over two normal
variables: Gauss-Hermite quadrature gives it, and its gradient, without any sampling.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import IWAE, KL, NLL
from omnivae.types import Latent, VAEOutput

C, SIGMA = 3, 0.6
X = torch.tensor([[0.9, -0.4, 1.3], [-1.5, 0.2, 0.1]], dtype=torch.float64)


class World(nn.Module):
    """The model, small enough to write its pieces out; the posterior is off the true one by ``shift`` and ``widen``."""

    def __init__(self, shift=0.0, widen=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.1, -0.5, 0.8], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.2, 0.1, -0.3], dtype=torch.float64))
        precision = 1 + self.w.detach().square().sum() / SIGMA**2
        self.slope = nn.Parameter(self.w.detach() / (SIGMA**2 * precision))
        self.offset = nn.Parameter(-(self.slope.detach() @ self.b.detach()) + shift)
        self.logvar = nn.Parameter(-precision.log() + 2 * math.log(widen))

    def posterior(self, x):
        mean = x @ self.slope + self.offset
        return DiagonalGaussian(mean[:, None], self.logvar.expand(len(x), 1))

    def output(self, x, z, log_q, q):
        prior = Independent(Normal(torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()), 1)
        likelihood = Independent(Normal(z * self.w + self.b, SIGMA), 1)
        return VAEOutput((Latent(q, prior, z, log_q),), likelihood)

    def forward(self, x, k):
        q = self.posterior(x)
        return self.output(x, *q.rsample(k), q)

    def evidence(self, x):
        cov = torch.outer(self.w, self.w) + SIGMA**2 * torch.eye(C).double()
        return MultivariateNormal(self.b, cov).log_prob(x).mean().detach()


def at(model, x, eps):
    """The model's output at z = mean + stddev * eps, ``[K, B, 1]``."""
    q = model.posterior(x)
    log_q = (-0.5 * (eps.square() + q.logvar + math.log(2 * math.pi))).sum(-1)
    return model.output(x, q.mean + q.stddev * eps, log_q, q)


def exact_bound(model, x, k):
    """E[log 1/K sum w] of one or two samples by quadrature: no code of the loss takes part."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes = torch.from_numpy(nodes)
    weights = torch.from_numpy(weights / weights.sum())
    eps = nodes[:, None, None].expand(-1, len(x), 1)
    output = at(model, x, eps)
    latent = output.latents[0]
    log_w = output.likelihood.log_prob(x) + latent.prior.log_prob(latent.z) - latent.log_q
    if k == 1:
        return (weights[:, None] * log_w).sum(0).mean()
    pair = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
    return (weights[:, None, None] * weights[None, :, None] * pair).sum((0, 1)).mean()


def repeated(n, x=X):
    """The batch many times over: the mean over the batch is then a mean over independent replicates."""
    return x.repeat(n, 1)


def replicates(model, loss, n, chunks=20):
    """Mean and standard error of the bound from ``chunks`` runs of n replicates."""
    values = torch.stack([-loss(model(repeated(n), loss.num_samples), {"x": repeated(n)}) for _ in range(chunks)])
    return values.mean(), values.std() / math.sqrt(chunks)


def gradient(model, loss, n):
    model.zero_grad()
    x = repeated(n)
    loss(model(x, loss.num_samples), {"x": x}).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# -- the bounds


@torch.no_grad()
def test_elbo_below_iwae_below_evidence_and_tighter_with_k():
    torch.manual_seed(0)
    model = World(shift=0.5, widen=1.6)
    exact = [exact_bound(model, X, k) for k in (1, 2)]
    evidence = model.evidence(X)
    means = {k: replicates(model, IWAE(num_samples=k), 500) for k in (1, 2, 8, 64)}
    for k, value in zip((1, 2), exact, strict=True):
        assert abs(means[k][0] - value) < 4 * means[k][1]
    ordered = [means[k][0] for k in (1, 2, 8, 64)]
    assert all(a + 5 * e < b for a, b, (_, e) in zip(ordered, ordered[1:], means.values(), strict=False))
    assert ordered[-1] < evidence
    # The gap vanishes like 1 / K.
    assert evidence - ordered[-1] < 0.05 * (evidence - ordered[0])


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 5])
def test_every_bound_is_the_evidence_at_the_true_posterior(k):
    model = World()
    for loss in (IWAE(num_samples=k), IWAE(num_samples=k, num_bounds=k), IWAE(num_samples=k, elbo_share=0.3)):
        torch.testing.assert_close(-loss(model(X, k), {"x": X}), model.evidence(X))


@torch.no_grad()
def test_one_sample_is_nll_plus_sampled_kl():
    model = World(shift=0.5)
    output = model(X, 1)
    latent = output.latents[0]
    kl = (latent.log_q - latent.prior.log_prob(latent.z)).mean()
    torch.testing.assert_close(IWAE(num_samples=1)(output, {"x": X}), NLL()(output, {"x": X}) + kl)
    many = model(repeated(20_000), 1)
    x = repeated(20_000)
    elbo = NLL(num_samples=1)(many, {"x": x}) + KL()(many, {"x": x})
    assert abs(IWAE(num_samples=1)(many, {"x": x}) - elbo) < 0.02


@torch.no_grad()
def test_miwae_and_ciwae_by_hand():
    model = World(shift=0.5)
    output = model(X, 6)
    latent = output.latents[0]
    log_w = (output.likelihood.log_prob(X) + latent.prior.log_prob(latent.z) - latent.log_q).numpy()
    groups = [np.log(np.exp(log_w[i : i + 3]).mean(0)) for i in (0, 3)]
    iwae = np.log(np.exp(log_w).mean(0)).mean()
    found = IWAE(num_samples=6, num_bounds=2)(output, {"x": X})
    assert found.item() == pytest.approx(-np.mean(groups), rel=1e-12)
    mixed = IWAE(num_samples=6, elbo_share=0.25)(output, {"x": X})
    assert mixed.item() == pytest.approx(-(0.25 * log_w.mean() + 0.75 * iwae), rel=1e-12)
    assert IWAE(num_samples=6, num_bounds=6)(output, {"x": X}).item() == pytest.approx(-log_w.mean(), rel=1e-12)


@torch.no_grad()
def test_more_samples_than_asked_for_change_nothing():
    model = World(shift=0.5)
    eps = torch.randn(7, 2, 1).double()
    few, many = at(model, X, eps[:3]), at(model, X, eps)
    torch.testing.assert_close(IWAE(num_samples=3)(many, {"x": X}), IWAE(num_samples=3)(few, {"x": X}))


@torch.no_grad()
def test_masked_pixels_are_left_out():
    model = World(shift=0.5)
    output = model(X, 4)
    mask = torch.tensor([[1.0, 0.0, 1.0]]).double().expand(2, -1)
    latent = output.latents[0]
    pixels = Normal(latent.z * model.w + model.b, SIGMA).log_prob(X)[..., [0, 2]].sum(-1)
    log_w = (pixels + latent.prior.log_prob(latent.z) - latent.log_q).numpy()
    found = IWAE(num_samples=4)(output, {"x": X, "mask": mask})
    assert found.item() == pytest.approx(-np.log(np.exp(log_w).mean(0)).mean(), rel=1e-12)


# -- gradients

KINDS = [{}, {"num_bounds": 2}, {"elbo_share": 0.4}]


def exact_gradient(model, arguments):
    """Of the loss of two samples, by differentiating the quadrature."""
    model.zero_grad()
    pair, single = exact_bound(model, X, 2), exact_bound(model, X, 1)
    share = arguments.get("elbo_share", 1.0 if arguments.get("num_bounds") == 2 else 0.0)
    (-(1 - share) * pair - share * single).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("arguments", KINDS, ids=["iwae", "miwae", "ciwae"])
@pytest.mark.parametrize("estimator", ["standard", "dreg"])
def test_both_gradients_are_unbiased(estimator, arguments):
    torch.manual_seed(1)
    model = World(shift=0.4, widen=1.5)
    truth = exact_gradient(model, arguments)
    loss = IWAE(num_samples=2, gradient=estimator, **arguments)
    runs = torch.stack([gradient(model, loss, 1000) for _ in range(60)])
    error = runs.std(0) / math.sqrt(len(runs))
    assert bool(((runs.mean(0) - truth).abs() < 4.5 * error).all())
    # The test would see a gradient of one sample in place of two.
    if not arguments:
        wrong = exact_gradient(model, {"elbo_share": 1.0})
        assert bool(((wrong - truth).abs() > 10 * error).any())


def test_dreg_agrees_with_the_standard_gradient_for_many_samples():
    torch.manual_seed(2)
    model = World(shift=0.4, widen=1.5)
    means, errors = [], []
    for estimator in ("standard", "dreg"):
        loss = IWAE(num_samples=16, gradient=estimator)
        runs = torch.stack([gradient(model, loss, 300) for _ in range(60)])
        means.append(runs.mean(0))
        errors.append(runs.std(0) / math.sqrt(len(runs)))
    assert bool(((means[0] - means[1]).abs() < 4.5 * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all())
    # What it is for: less noise in the encoder's gradient (slope, offset, logvar are the last five numbers).
    assert bool((errors[1][-5:] < 0.5 * errors[0][-5:]).all())


@pytest.mark.parametrize("arguments", KINDS, ids=["iwae", "miwae", "ciwae"])
def test_dreg_has_the_standard_value_and_the_standard_decoder_gradient(arguments):
    model = World(shift=0.4, widen=1.5)
    eps = torch.randn(6, 2, 1).double()
    values, gradients = [], []
    for estimator in ("standard", "dreg"):
        model.zero_grad()
        value = IWAE(num_samples=6, gradient=estimator, **arguments)(at(model, X, eps), {"x": X})
        value.backward()
        values.append(value.detach())
        gradients.append([copy.deepcopy(p.grad) for p in (model.w, model.b)])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_at_the_true_posterior_dreg_is_zero_for_every_sample_and_the_standard_gradient_is_not():
    encoder = {}
    for estimator in ("standard", "dreg"):
        model = World()
        IWAE(num_samples=5, gradient=estimator)(model(X, 5), {"x": X}).backward()
        encoder[estimator] = torch.cat([p.grad.flatten() for p in (model.slope, model.offset, model.logvar)])
    assert encoder["dreg"].abs().max() < 1e-12
    assert encoder["standard"].abs().max() > 1e-3


def test_dreg_with_a_frozen_encoder_trains_the_decoder():
    model = World(shift=0.4)
    for p in (model.slope, model.offset, model.logvar):
        p.requires_grad_(False)
    eps = torch.randn(4, 2, 1).double()
    for estimator in ("standard", "dreg"):
        IWAE(num_samples=4, gradient=estimator)(at(model, X, eps), {"x": X}).backward()
    assert bool(model.w.grad.any())
    assert model.slope.grad is None


# -- refusals


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_samples": 0},
        {"num_samples": 4, "num_bounds": 3},
        {"num_bounds": 0},
        {"elbo_share": 1.5},
        {"gradient": "sticking"},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        IWAE(**arguments)


def test_what_has_no_importance_weight_is_refused():
    model = World()
    with pytest.raises(ValueError, match=r"lower losses\.iwae\.num_samples"):
        IWAE(num_samples=3)(model(X, 2), {"x": X})
    output = model(X, 1)
    latent = output.latents[0]
    mode = VAEOutput((Latent(latent.posterior, latent.prior, latent.z, None),), output.likelihood)
    with pytest.raises(ValueError, match="sample=True"):
        IWAE(num_samples=1)(mode, {"x": X})
    without = VAEOutput((Latent(latent.posterior, None, latent.z, None),), output.likelihood)
    with pytest.raises(ValueError, match=r"penalties, or a gaussian posterior"):
        IWAE(num_samples=1)(without, {"x": X})
    two = VAEOutput((latent, latent), output.likelihood)
    with pytest.raises(ValueError, match="one latent"):
        IWAE(num_samples=1, gradient="dreg")(two, {"x": X})


def test_dreg_does_not_go_wrong_in_silence_where_the_decoders_graph_is_hidden():
    model = World()
    q = model.posterior(X)
    z, log_q = q.rsample(2)
    hidden = model.output(X, z.detach(), log_q, q)
    output = VAEOutput((Latent(q, hidden.latents[0].prior, z, log_q),), hidden.likelihood)
    with pytest.raises(ValueError, match=r"training\.compile"):
        IWAE(num_samples=2, gradient="dreg")(output, {"x": X})
