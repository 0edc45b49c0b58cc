"""Imputation in a linear-Gaussian world, whose conditional mean is closed form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import omnivae
from omnivae.jobs.impute import impute

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
from linear_model import NOISE, PIXELS, exact_model, images, loose_model

__all__ = ["exact_model", "images", "loose_model"]


def conditional_mean(model, x, known):
    """E[x_m | x_o] = S_mo S_oo^-1 x_o with S = W W' + s² I."""
    w = model.decoder.weight.detach().double()
    covariance = w @ w.T + NOISE**2 * torch.eye(PIXELS, dtype=torch.float64)
    result = x.double().flatten(1).clone()
    o = known.flatten().bool()
    gain = covariance[~o][:, o] @ torch.linalg.inv(covariance[o][:, o])
    result[:, ~o] = result[:, o] @ gain.T
    return result.reshape(x.shape).float()


MASK = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 1, 2, 2)


@pytest.mark.parametrize("method", ["importance", "gibbs"])
@pytest.mark.parametrize("which", ["exact_model", "loose_model"])
def test_missing_pixels_become_their_conditional_mean(method, which, images, request):
    model, x = request.getfixturevalue(which), images[:6]
    mask = MASK.expand(6, -1, -1, -1)
    before = torch.random.get_rng_state()
    result = impute(model, x, mask, method=method, num_samples=4000)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(result.x[mask.bool()], x[mask.bool()])
    truth = conditional_mean(model, x, MASK)
    # What the holes held says nothing: the truth lies elsewhere.
    assert (truth - x).abs().max() > 0.3
    torch.testing.assert_close(result.x, truth, atol=0.06, rtol=0)
    assert ((result.reliability > 0.05) & (result.reliability <= 1)).all()


def test_an_exact_posterior_accepts_every_step_and_needs_no_weights(exact_model, images):
    everything = torch.ones(4, 1, 2, 2)
    assert impute(exact_model, images[:4], everything).reliability.min() > 0.999
    chain = impute(exact_model, images[:4], MASK.expand(4, -1, -1, -1), method="gibbs", num_samples=50)
    assert chain.reliability.min() == 1


def test_what_stands_in_the_holes_does_not_matter(loose_model, images):
    mask = MASK.expand(4, -1, -1, -1)
    other = torch.where(mask.bool(), images[:4], torch.full_like(images[:4], 3.0))
    a, b = (impute(loose_model, x, mask, num_samples=20).x for x in (images[:4], other))
    assert torch.equal(a, b)


def test_what_cannot_work_is_refused(exact_model, images):
    with pytest.raises(ValueError, match="got a mask of shape"):
        impute(exact_model, images, MASK)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        impute(exact_model, images[:1], 0.5 * MASK)
    with pytest.raises(ValueError, match="got method='mean'"):
        impute(exact_model, images[:1], MASK, method="mean")
    with pytest.raises(ValueError, match="num_samples=0"):
        impute(exact_model, images[:1], MASK, num_samples=0)
    plain = omnivae.autoencoder(in_channels=1, image_size=8)
    with pytest.raises(ValueError, match="does not have"):
        impute(plain, torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
