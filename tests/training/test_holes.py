"""Prior holes, measured while training."""

import logging

import pytest
import torch
from torch.distributions import Normal

from omnivae import DiagonalGaussian, Latent, VAEOutput, conv_vae
from omnivae.metrics.aggregate import share_in_holes
from omnivae.training.holes import AGREEING, FEWEST_IMAGES, HoleWatch


def output(mean: torch.Tensor, logvar: torch.Tensor) -> VAEOutput:
    q = DiagonalGaussian(mean, logvar)
    return VAEOutput((Latent(q, Normal(torch.zeros(()), 1.0), q.mean[None], None),), Normal(q.mean[None], 1.0))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return conv_vae(in_channels=1, image_size=8, latent_dim=2, channels=(4,)).eval()


def test_posteriors_that_make_up_the_prior_leave_no_holes(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    # N(0, 0.75) means with variances of 0.25: together the standard normal.
    mean, logvar = 0.75**0.5 * torch.randn(900, 2), torch.full((900, 2), 0.25).log()
    watch = HoleWatch()
    for part in zip(mean.split(100), logvar.split(100), strict=True):
        watch.add(output(*part))
    assert abs(watch.figures(model, 1)["val/prior_holes"]) < 0.05
    assert watch.figures(model, 2) == {}, "a validation starts with nothing"


def test_posteriors_that_leave_the_prior_empty_are_called_once(
    model: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    mean, logvar = torch.full((FEWEST_IMAGES, 2), 6.0), torch.full((FEWEST_IMAGES, 2), -4.0)
    watch = HoleWatch()
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="omnivae"):
        for step in range(AGREEING + 2):
            watch.add(output(mean, logvar))
            share = watch.figures(model, step)["val/prior_holes"]
            assert share == pytest.approx(1.0, abs=0.01)
            assert len(caplog.records) == (step >= AGREEING - 1)
    assert "prior holes" in caplog.text
    assert torch.equal(torch.get_rng_state(), before), "training draws what it would have drawn"


def test_few_images_spatial_latents_and_conditions_are_left_alone(model: torch.nn.Module) -> None:
    watch = HoleWatch()
    watch.add(output(torch.zeros(FEWEST_IMAGES - 1, 2), torch.zeros(FEWEST_IMAGES - 1, 2)))
    assert watch.figures(model, 1) == {}
    watch.add(output(torch.zeros(FEWEST_IMAGES, 2, 3, 3), torch.zeros(FEWEST_IMAGES, 2, 3, 3)))
    assert watch.figures(model, 1) == {}
    conditional = output(torch.zeros(FEWEST_IMAGES, 2), torch.zeros(FEWEST_IMAGES, 2))
    conditional.latents[0].posterior.cond = torch.zeros(FEWEST_IMAGES, 1)
    watch.add(conditional)
    assert watch.figures(model, 1) == {}


def test_half_of_the_prior_empty_is_about_half() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    mean = torch.randn(800, 1, generator=generator, dtype=torch.float64).abs()
    share = share_in_holes(mean, torch.full((800, 1), -6.0, dtype=torch.float64), draws, generator=generator)
    # Half of the draws lie below 0, next to all of them in a hole; a little is lost to the 5 % tail.
    assert share == pytest.approx(0.5, abs=0.05)
