"""Bounds on log p(x) of a linear-Gaussian model, where it is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from linear_model import LATENTS, PIXELS, ListDataset, log_evidence
from torch.distributions import Distribution, Independent, MixtureSameFamily, Normal

from omnivae.metrics import LatentStatistics, evaluate
from omnivae.metrics.inference import Inference
from omnivae.priors import Prior


class MixturePriorForTests(Prior):
    """One standard normal component in a mixture: the same density, without a closed-form KL."""

    def forward(self, latent_shape, encode=None, cond=None) -> Distribution:
        components = Independent(Normal(torch.zeros(*latent_shape[:1], 1, *latent_shape[1:]), 1.0), 1)
        return MixtureSameFamily(torch.distributions.Categorical(torch.ones(latent_shape[0], 1)), components)


def values(result, name):
    return torch.tensor(list(result.per_image[name].values()), dtype=torch.float64)


def test_bounds_are_tight_at_the_exact_posterior(exact_model, images):
    result = evaluate(exact_model, ListDataset(images), ["nll", "elbo"], num_samples_nll=20)
    truth = log_evidence(images)
    # At the exact posterior every importance weight equals p(x).
    torch.testing.assert_close(-values(result, "nll"), truth, rtol=1e-5, atol=1e-5)
    assert values(result, "elbo").mean() == pytest.approx(float(truth.mean()), abs=0.15)


def test_bounds_are_ordered_and_tighten_with_k(loose_model, images):
    truth = float(log_evidence(images).mean())
    data = ListDataset(images)
    elbo = evaluate(loose_model, data, ["elbo"], num_samples_elbo=400).metrics["elbo"].mean

    def bound(k: int, repeats: int) -> float:
        runs = [evaluate(loose_model, data, ["nll"], num_samples_nll=k, seed=s, bootstrap=0) for s in range(repeats)]
        return -sum(run.metrics["nll"].mean for run in runs) / repeats

    bounds = [bound(5, 40), bound(100, 5), bound(3000, 1)]
    assert elbo < bounds[0] - 0.05
    assert bounds[0] < bounds[1] + 0.02
    assert bounds[1] <= truth + 0.03
    assert bounds[2] == pytest.approx(truth, abs=0.02)


def test_elbo_equals_its_closed_form(loose_model, images):
    loose_model.requires_grad_(False)
    q = loose_model.encode(images)
    w = loose_model.decoder.weight
    s2 = loose_model.likelihood_head.scale**2
    expected = (q.mean @ w.T - images.flatten(1)).square().sum(1) + (q.logvar.exp() * w.square().sum(0)).sum(1)
    expected = -0.5 * (expected / s2 + PIXELS * math.log(2 * math.pi * s2)) - q.kl()
    result = evaluate(loose_model, ListDataset(images), ["elbo", "kl", "bits_per_dim"], num_samples_elbo=4000)
    assert result.metrics["elbo"].mean == pytest.approx(float(expected.mean()), abs=0.05)
    torch.testing.assert_close(values(result, "kl").float(), q.kl().detach())
    bits = -result.metrics["elbo"].mean / (PIXELS * math.log(2))
    assert result.metrics["bits_per_dim"].mean == pytest.approx(bits, rel=1e-9)


def test_monte_carlo_kl_agrees_with_the_closed_form(loose_model, images):
    data = ListDataset(images)
    closed = evaluate(loose_model, data, ["kl", "elbo"], num_samples_elbo=2000)
    loose_model.prior = MixturePriorForTests()
    sampled = evaluate(loose_model, data, ["kl", "elbo"], num_samples_elbo=2000)
    assert sampled.metrics["kl"].mean == pytest.approx(closed.metrics["kl"].mean, abs=0.03)
    assert sampled.metrics["elbo"].mean == pytest.approx(closed.metrics["elbo"].mean, abs=0.03)
    assert sampled.kl_per_dimension == []
    assert len(closed.kl_per_dimension) == LATENTS
    assert sum(closed.kl_per_dimension) == pytest.approx(closed.metrics["kl"].mean, rel=1e-6)


def test_the_general_path_samples_the_same_posterior(loose_model, images):
    loose_model.requires_grad_(False)
    inference = Inference(loose_model, images, [str(i) for i in range(len(images))], num_samples_nll=2000)
    fast, general = inference._gaussian_terms(2000), inference._general_terms(2000)
    for a, b in zip(fast, general, strict=True):
        torch.testing.assert_close(a.mean(0), b.mean(0), atol=0.25, rtol=0)
        assert float((a - b).mean()) == pytest.approx(0, abs=0.05)


def test_chunks_do_not_change_the_noise(loose_model, images, monkeypatch):
    def run():
        return Inference(loose_model, images, [str(i) for i in range(len(images))], num_samples_nll=50).log_weights

    whole = run()
    # Chunks of images only: the number of samples a draw depends on the image alone.
    monkeypatch.setattr("omnivae.metrics.inference.DECODE_BUDGET", 4 * 50)
    torch.testing.assert_close(run(), whole, rtol=1e-6, atol=1e-6)


def test_active_units_counts_the_dimensions_in_use(exact_model, images):
    data = ListDataset(images)
    assert evaluate(exact_model, data, ["active_units"]).metrics["active_units"].mean == 2
    exact_model.posterior.matrix.data[0] = 0
    result = evaluate(exact_model, data, ["active_units"])
    assert result.metrics["active_units"].mean == 1
    assert result.metrics["active_units"].low is None
    assert "active_units" not in result.per_image


def test_latent_variance_equals_numpy(exact_model, images):
    statistics = LatentStatistics()
    for part in (slice(0, 7), slice(7, 24)):
        statistics.update(Inference(exact_model, images[part], [str(i) for i in range(24)][part]))
    expected = exact_model.encode(images).mean.double().var(0, correction=0)
    torch.testing.assert_close(statistics.variance(), expected, rtol=1e-9, atol=0)
