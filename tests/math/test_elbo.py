"""The ELBO on a linear-Gaussian VAE, where log p(x) is known in closed form.

p(z) = N(0, I), p(x|z) = N(Wz + b, s^2 I), so p(x) = N(b, W W^T + s^2 I). With orthogonal columns in W the true
posterior is a diagonal Gaussian, and the encoder below can represent it exactly.
"""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from omnivae.component import Component
from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import GaussianLikelihood
from omnivae.losses import KL, NLL
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal

C, D, SIGMA = 4, 2, 0.6


class ElboTestLinear(nn.Module, Component):
    """One linear map over channels at every position of a one-axis signal."""

    stride = 1
    dim = 1

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.map = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x, cond=None):
        return self.map(x)


def linear_vae(exact=True):
    """A linear-Gaussian VAE in float64, with the exact posterior or some other one."""
    model = VAE(
        ElboTestLinear(C, C),
        GaussianPosterior(C, D, dim=1),
        ElboTestLinear(D, C),
        GaussianLikelihood(SIGMA),
        StandardNormal(),
        value_range=(-10.0, 10.0),
    ).double()
    w = torch.linalg.qr(torch.randn(C, C, dtype=torch.float64))[0][:, :D] * torch.tensor([1.5, 0.7]).double()
    b = torch.randn(C, dtype=torch.float64)
    with torch.no_grad():
        model.decoder.map.weight.copy_(w[..., None])
        model.decoder.map.bias.copy_(b)
        if exact:
            precision = 1 + (w**2).sum(0) / SIGMA**2
            to_mean = (w / (precision * SIGMA**2)).T
            model.encoder.map.weight.copy_(torch.eye(C).double()[..., None])
            model.encoder.map.bias.copy_(-b)
            model.posterior.projection.weight.zero_()
            model.posterior.projection.weight[:D] = to_mean[..., None]
            model.posterior.projection.bias.copy_(torch.cat([torch.zeros(D).double(), -precision.log()]))
    return model


def log_evidence(model, x):
    """log p(x) of [B, C, N], positions independent."""
    w, b = model.decoder.map.weight[..., 0], model.decoder.map.bias
    p = MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(C).double())
    return p.log_prob(x.movedim(1, -1)).sum(-1).detach()


def negative_elbo(model, x, k=1):
    output = model(x, num_samples=k, sample=True)
    return NLL()(output, {"x": x}) + KL()(output, {"x": x})


def expected_nll(model, x):
    """E_q[-log p(x|z)] of the batch in closed form: error at the mean plus the variance that the decoder passes on."""
    q = model.encode(x)
    w = model.decoder.map.weight[..., 0]
    error = (x - model.decoder(q.mean)).square().flatten(1).sum(1)
    spread = ((w**2).sum(0)[:, None] * q.logvar.exp()).flatten(1).sum(1)
    return ((error + spread) / (2 * SIGMA**2) + 0.5 * x[0].numel() * math.log(2 * math.pi * SIGMA**2)).mean()


def signal(b=3, n=1):
    return 1.5 * torch.randn(b, C, n, dtype=torch.float64)


# -- the bound


@pytest.mark.parametrize("n", [1, 5])
@torch.no_grad()
def test_at_the_exact_posterior_every_sample_gives_the_evidence(n):
    # log p(x|z) + log p(z) - log q(z|x) = log p(x) whatever z: no tolerance for noise.
    model, x = linear_vae(), signal(n=n)
    output = model(x, num_samples=7, sample=True)
    latent = output.latents[0]
    joint = output.likelihood.log_prob(x) + latent.prior.log_prob(latent.z) - latent.log_q
    torch.testing.assert_close(joint, log_evidence(model, x).expand(7, -1))


@pytest.mark.parametrize("n", [1, 3])
@torch.no_grad()
def test_the_bound_is_tight_at_the_exact_posterior(n):
    model, x = linear_vae(), signal(n=n)
    evidence = log_evidence(model, x).mean()
    closed = expected_nll(model, x) + model.encode(x).kl().mean()
    torch.testing.assert_close(closed, -evidence)
    runs = torch.stack([negative_elbo(model, x, k=2000) for _ in range(20)])
    assert abs(runs.mean() + evidence) < 4 * runs.std() / math.sqrt(len(runs))


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_the_bound_holds_for_any_posterior_and_the_gap_is_the_kl_to_the_true_one(seed):
    torch.manual_seed(seed)
    model, x = linear_vae(exact=False), signal()
    evidence = log_evidence(model, x).mean()
    runs = torch.stack([negative_elbo(model, x, k=1000) for _ in range(20)])
    error = runs.std() / math.sqrt(len(runs))
    assert runs.mean() > -evidence

    w, b = model.decoder.map.weight[..., 0], model.decoder.map.bias
    variance = 1 / (1 + (w**2).sum(0) / SIGMA**2)
    true_mean = ((x[..., 0] - b) @ w) * variance / SIGMA**2
    q = model.encode(x)
    m, v = q.mean[..., 0], q.logvar[..., 0].exp()
    gap = 0.5 * (variance.log() - v.log() + (v + (m - true_mean) ** 2) / variance - 1).sum(1).mean()
    assert abs(runs.mean() + evidence - gap) < 4 * error


@torch.no_grad()
def test_the_nll_loss_is_the_expectation_and_not_the_value_at_the_mean():
    model, x = linear_vae(exact=False), signal()
    values = torch.stack([NLL()(model(x, num_samples=500, sample=True), {"x": x}) for _ in range(40)])
    assert abs(values.mean() - expected_nll(model, x)) < 4 * values.std() / math.sqrt(len(values))
    # Evaluated at the mode the spread term is missing, and the "bound" with it.
    assert NLL()(model.eval()(x), {"x": x}) < expected_nll(model, x)


@torch.no_grad()
def test_one_sample_and_many_samples_have_the_same_mean():
    model, x = linear_vae(exact=False), signal()
    one = torch.stack([negative_elbo(model, x, k=1) for _ in range(600)])
    many = negative_elbo(model, x, k=50_000)
    assert abs(one.mean() - many) < 5 * one.std() / math.sqrt(len(one))


def test_training_the_encoder_closes_the_gap():
    model, x = linear_vae(exact=False), signal(b=16)
    parameters = [*model.encoder.parameters(), *model.posterior.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.03)
    for step in range(300):
        if step == 200:
            optimiser.param_groups[0]["lr"] = 0.003
        optimiser.zero_grad()
        negative_elbo(model, x, k=16).backward()
        optimiser.step()
    with torch.no_grad():
        gap = expected_nll(model, x) + model.encode(x).kl().mean() + log_evidence(model, x).mean()
    assert 0 <= gap < 0.02


# -- the reduction rule


@torch.no_grad()
def test_doubling_the_resolution_doubles_both_terms():
    model, x = linear_vae(), signal(n=4)
    wide = torch.cat([x, x], -1)
    small, large = model.eval()(x), model(wide)
    for loss in (NLL(), KL()):
        torch.testing.assert_close(loss(large, {"x": wide}), 2 * loss(small, {"x": x}))
    for loss in (NLL(per_element=True), KL(per_element=True)):
        torch.testing.assert_close(loss(large, {"x": wide}), loss(small, {"x": x}))


@torch.no_grad()
def test_repeating_the_batch_changes_nothing():
    model, x = linear_vae().eval(), signal(n=4)
    twice = torch.cat([x, x])
    for loss in (NLL(), KL(), NLL(per_element=True), KL(per_element=True), KL(free_bits=0.3)):
        torch.testing.assert_close(loss(model(twice), {"x": twice}), loss(model(x), {"x": x}))


@torch.no_grad()
def test_the_order_of_the_batch_changes_nothing():
    model, x = linear_vae().eval(), signal(b=5)
    order = torch.randperm(5)
    for loss in (NLL(), KL()):
        torch.testing.assert_close(loss(model(x[order]), {"x": x[order]}), loss(model(x), {"x": x}))


@torch.no_grad()
def test_the_sum_over_the_event_is_divided_by_what_per_element_says():
    model, x = linear_vae().eval(), signal(n=4)
    output = model(x)
    torch.testing.assert_close(NLL()(output, {"x": x}), NLL(per_element=True)(output, {"x": x}) * C * 4)
    torch.testing.assert_close(KL()(output, {"x": x}), KL(per_element=True)(output, {"x": x}) * D * 4)


# -- beta


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
def test_beta_moves_the_best_posterior_as_the_objective_says(beta):
    # Minimising E[NLL] + beta KL over a diagonal q: v = beta / (w^2/s^2 + beta), m = w^T(x - b)/s^2 / (w^2/s^2 + beta).
    model, x = linear_vae(), signal()
    w, b = model.decoder.map.weight[..., 0].detach(), model.decoder.map.bias.detach()
    gain = (w**2).sum(0) / SIGMA**2
    mean = (((x[..., 0] - b) @ w) / SIGMA**2 / (gain + beta))[..., None].requires_grad_()
    logvar = torch.log(beta / (gain + beta))[None, :, None].expand(3, D, 1).clone().requires_grad_()

    class Given(nn.Module):
        latent_dim = D

        def forward(self, features):
            return DiagonalGaussian(mean, logvar)

    model.posterior = Given()
    output = model(x, num_samples=100_000, sample=True)
    nll, kl = NLL(), KL(weight=beta)
    total = nll.current_weight() * nll(output, {"x": x}) + kl.current_weight() * kl(output, {"x": x})
    total.backward()
    assert mean.grad.abs().max() < 0.02
    assert logvar.grad.abs().max() < 0.02


class MixturePrior(nn.Module):
    """A prior to which no closed form of the KL exists."""

    def forward(self, latent_shape, encode=None, cond=None):
        centres = torch.tensor([-1.0, 1.5]).double()[:, None, None].expand(latent_shape[0], 2, *latent_shape[1:])
        bumps = Independent(Normal(centres, torch.full_like(centres, 0.8)), len(latent_shape) - 1)
        return MixtureSameFamily(Categorical(probs=torch.tensor([0.3, 0.7]).double().expand(latent_shape[0], 2)), bumps)


@pytest.mark.parametrize("mode", ["train", "eval"])
@torch.no_grad()
def test_the_kl_loss_is_a_kl_also_where_it_is_sampled(mode):
    # In evaluation the model decodes the mode: log q - log p there is not the divergence.
    model, x = linear_vae(), signal()
    model.prior = MixturePrior()
    sampled = model(x, num_samples=50_000, sample=True).latents[0]
    truth = (sampled.log_q - sampled.prior.log_prob(sampled.z)).mean()
    model.train(mode == "train")
    values = torch.stack([KL()(model(x), {"x": x}) for _ in range(400)])
    assert abs(values.mean() - truth) < 5 * values.std() / math.sqrt(len(values)) + 0.05


def test_the_forward_value_of_the_kl_loss_does_not_depend_on_beta():
    model, x = linear_vae().eval(), signal()
    output = model(x)
    assert torch.equal(KL(weight=8.0)(output, {"x": x}), KL()(output, {"x": x}))
    assert KL(weight=8.0).current_weight() == 8.0
