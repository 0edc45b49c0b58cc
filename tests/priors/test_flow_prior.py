"""The flow prior against quadrature, its samples and a standard normal."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import omnivae
from omnivae import StandardNormal
from omnivae.networks.flows import FLOWS
from omnivae.priors import FlowPrior


def moved(flow="maf", latent_dim=2, **arguments):
    torch.manual_seed(0)
    prior = FlowPrior(latent_dim, flow, num_flows=2, hidden=(8,), **arguments).double()
    with torch.no_grad():
        for name, p in prior.named_parameters():
            p.add_(0.4 * torch.randn_like(p)) if name.endswith(".lu") else p.normal_(std=0.4)
    return prior


@pytest.mark.parametrize("flow", FLOWS)
def test_density_integrates_to_one_and_is_that_of_its_samples(flow):
    p = moved(flow)(torch.Size((1, 2)))
    with torch.no_grad():
        z = p.sample((20_000,)).squeeze(1)
        low, high = z.amin(0) - 3, z.amax(0) + 3
        axes = [torch.linspace(float(a), float(b), 400, dtype=z.dtype) for a, b in zip(low, high, strict=True)]
        area = math.prod(float(axis[1] - axis[0]) for axis in axes)
        points = torch.cartesian_prod(*axes).unsqueeze(1)
        density = p.log_prob(points).exp()
        assert float(density.sum() * area) == pytest.approx(1, abs=2e-3)
        mean = (density * points.squeeze(1).T.unsqueeze(-1)).sum((1, 2)) * area
    assert bool(((z.mean(0) - mean).abs() < 5 * z.std(0) / math.sqrt(len(z)) + 2e-3).all())


@pytest.mark.parametrize("flow", [name for name in FLOWS if name != "iaf"])
def test_a_new_flow_prior_is_standard_normal(flow):
    z = torch.randn(5, 3, 4)
    torch.testing.assert_close(
        FlowPrior(4, flow)(torch.Size((3, 4))).log_prob(z), StandardNormal()(torch.Size((3, 4))).log_prob(z)
    )


def test_temperature_is_that_of_the_base():
    prior = moved()
    p = prior(torch.Size((4, 2)))
    cold = p.sample_at(0.0)
    torch.testing.assert_close(cold, prior.flow(torch.zeros(4, 2).double())[0])
    torch.manual_seed(1)
    warm = p.sample_at(0.5, (1000,))
    eps, _ = prior.flow.inverse(warm)
    assert float(eps.detach().std()) == pytest.approx(0.5, abs=0.02)
    assert not warm.requires_grad
    assert p.expand((7, 4)).sample().shape == (7, 4, 2)


def test_learns_the_aggregate_of_codes():
    # Two groups of codes, which a standard normal cannot follow.
    torch.manual_seed(0)
    z = torch.randn(256, 2) * 0.3 + torch.tensor([1.5, -1.0]) * (2 * torch.randint(2, (256, 1)) - 1)
    prior = FlowPrior(2, "realnvp", hidden=(32,))
    optimiser = torch.optim.Adam(prior.parameters(), lr=1e-2)
    before = float(Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(z).mean())
    for _ in range(200):
        optimiser.zero_grad()
        loss = -prior(z.shape).log_prob(z).mean()
        loss.backward()
        optimiser.step()
    assert -float(loss.detach()) > before + 0.5


def test_condition_is_used_or_refused():
    prior = moved(cond_dim=3)
    shape, cond = torch.Size((2, 2)), torch.eye(3, dtype=torch.float64)[:2]
    p = prior(shape, cond=cond)
    z = torch.zeros(2, 2, dtype=torch.float64)
    assert float((p.log_prob(z)[0] - prior(shape, cond=cond.flip(0)).log_prob(z)[0]).abs()) > 1e-6
    assert p.sample().shape == (2, 2)
    with pytest.raises(ValueError, match=r"got the condition None; this prior needs one of shape \(2, 3\)"):
        prior(shape)
    with pytest.raises(ValueError, match="cannot use a condition"):
        moved()(shape, cond=cond)


def test_refuses_latents_that_it_was_not_built_for():
    with pytest.raises(ValueError, match=r"over vectors of 2.*StandardNormal for a spatial one"):
        moved()(torch.Size((1, 2, 4, 4)))


def test_models_sample_at_a_temperature_and_come_back_from_files(tmp_path):
    model = omnivae.recipes.flow_prior_vae(image_size=8, latent_dim=3, channels=(4,)).eval()
    model.save_pretrained(tmp_path)
    again = omnivae.VAE.from_pretrained(tmp_path)
    one, other = (m.sample(3, temperature=0.7, generator=torch.Generator().manual_seed(0)) for m in (model, again))
    assert torch.equal(one, other)
    cold = model.sample(3, temperature=0.0)
    torch.testing.assert_close(cold[0], cold[1])
