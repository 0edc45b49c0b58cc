"""Likelihood regret in a linear-Gaussian world, where the best posterior is known."""

from __future__ import annotations

import pytest
import torch
from linear_model import ListDataset

import omnivae
from omnivae.metrics import evaluate


def test_no_regret_at_the_exact_posterior(exact_model, images):
    result = evaluate(exact_model, ListDataset(images[:6]), ["likelihood_regret"])
    assert torch.tensor(list(result.per_image["likelihood_regret"].values())).abs().max() < 0.15


def test_regret_is_the_gap_of_a_loose_posterior(loose_model, images):
    """The family holds the exact posterior, so the optimum is log p(x) and the regret is log p(x) - ELBO, in closed form."""
    from linear_model import PIXELS, log_evidence

    data, m = ListDataset(images[:6]), loose_model
    regret = torch.tensor(list(evaluate(m, data, ["likelihood_regret"]).per_image["likelihood_regret"].values()))
    with torch.no_grad():
        q, w, s2 = m.encode(images[:6]), m.decoder.weight, m.likelihood_head.scale**2
        error = (q.mean @ w.T - images[:6].flatten(1)).square().sum(1) + (q.logvar.exp() * w.square().sum(0)).sum(1)
        elbo = -0.5 * (error / s2 + PIXELS * torch.log(2 * torch.pi * torch.as_tensor(s2))) - q.kl()
    gap = log_evidence(images[:6]).float() - elbo
    # The ELBOs' 64 samples carry noise that the closed form has not.
    torch.testing.assert_close(regret.float(), gap, atol=0.45, rtol=0)
    assert float((regret - gap).mean().abs()) < 0.2
    assert all(p.grad is None for p in m.parameters())


def test_regret_does_not_depend_on_the_others(loose_model, images):
    keys = [f"k{i}" for i in range(4)]
    alone = evaluate(loose_model, ListDataset(images[:1], keys[:1]), ["likelihood_regret"]).per_image
    among = evaluate(loose_model, ListDataset(images[:4], keys), ["likelihood_regret"]).per_image
    assert alone["likelihood_regret"]["k0"] == among["likelihood_regret"]["k0"]


def test_other_posteriors_are_refused():
    model = omnivae.autoencoder(in_channels=1, image_size=8)
    with pytest.raises(ValueError, match="diagonal Gaussian"):
        evaluate(model, ListDataset(torch.zeros(1, 1, 8, 8)), ["likelihood_regret"])
