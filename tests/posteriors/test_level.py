"""The posterior of one level against independent formulas."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from omnivae.posteriors import LevelPosterior


def random_parameters(seed):
    return 1.5 * torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_merging_is_the_product_of_the_two_gaussians():
    head = LevelPosterior(3, "merge", bound=0.0)
    prior = head.split(random_parameters(0))
    own = head.split(random_parameters(1))
    mean, logvar = head(random_parameters(1), *prior)
    # The product's moments by integration on a grid, which knows nothing of precisions.
    z = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    densities = [Normal(m[..., None], torch.exp(0.5 * v[..., None])) for m, v in (prior, own)]
    product = (densities[0].log_prob(z) + densities[1].log_prob(z)).softmax(-1)
    expected = (product * z).sum(-1)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(logvar.exp(), (product * (z - expected[..., None]).square()).sum(-1))


def test_residual_kl_is_nvaes_formula():
    head = LevelPosterior(3, "residual", bound=0.0)
    m, v = head.split(random_parameters(2))
    params = random_parameters(3)
    mean, logvar = head(params, m, v)
    shift, change = params.chunk(2, 1)
    formula = 0.5 * (shift.square() / v.exp() + change.exp() - change - 1)
    by_torch = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(m, torch.exp(0.5 * v)))
    torch.testing.assert_close(by_torch, formula)
    # Parameters of zero: the posterior is the prior.
    same = head(torch.zeros_like(params), m, v)
    assert torch.equal(same[0], m)
    assert torch.equal(same[1], v)


def test_absolute_ignores_the_prior():
    head = LevelPosterior(3, "absolute")
    one, two = (head(random_parameters(3), *head.split(random_parameters(s))) for s in (0, 1))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_bound_is_smooth_and_holds():
    head = LevelPosterior(1, "absolute", bound=5.0)
    wild = torch.tensor([[0.0, 1e6], [0.0, -1e6], [0.0, 0.01]], dtype=torch.float64)
    logvar = head.split(wild)[1][:, 0]
    assert logvar[:2].tolist() == pytest.approx([10.0, -10.0])
    assert float(logvar[2]) == pytest.approx(0.01, rel=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="relation='product'; expected one of absolute, merge, residual"):
        LevelPosterior(1, "product")
    with pytest.raises(ValueError, match="bound=-1"):
        LevelPosterior(1, bound=-1)
