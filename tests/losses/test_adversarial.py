"""GAN: its objectives by hand, the discriminator in 1-D to 3-D, and the balance."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MixtureSameFamily, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import GAN, L1, NLL
from omnivae.losses.adaptive import pixel_parameters, reconstruction_gradient
from omnivae.losses.adversarial import PatchDiscriminator, discriminator_loss, generator_loss
from omnivae.types import Latent, VAEOutput


def output_of(reconstruction, *, scale=1.0, logits=False):
    r = reconstruction[None]
    base = Bernoulli(logits=r, validate_args=False) if logits else Normal(r, torch.full_like(r, scale))
    q = DiagonalGaussian(torch.zeros(len(reconstruction), 2), torch.zeros(len(reconstruction), 2))
    return VAEOutput((Latent(q, None, q.mode()[None], None),), Independent(base, r.ndim - 2))


def make(**arguments):
    loss = GAN(**{"channels": 4, "num_layers": 1} | arguments)
    loss.build(in_channels=1, latent_dim=2, dim=2, latent_axes=2)
    return loss


# -- objectives

REAL, FAKE = torch.tensor([2.0, 0.0]), torch.tensor([-0.5, 1.0])


def test_hinge_by_hand():
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx(0.5 * (0.5 + (0.5 + 2.0) / 2))
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(-0.25)


def test_least_squares_by_hand():
    assert discriminator_loss(REAL, FAKE, "least_squares").item() == pytest.approx(0.5 * (1.0 + 0.625))
    assert generator_loss(FAKE, "least_squares").item() == pytest.approx(0.5 * 2.25 / 2)


def test_vanilla_is_binary_cross_entropy():
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = 0.5 * (bce(REAL, torch.ones(2)) + bce(FAKE, torch.zeros(2)))
    assert discriminator_loss(REAL, FAKE, "vanilla").item() == pytest.approx(expected.item())
    assert generator_loss(FAKE, "vanilla").item() == pytest.approx(bce(FAKE, torch.ones(2)).item())


@pytest.mark.parametrize("objective", ["hinge", "least_squares", "vanilla"])
def test_both_sides_pull_the_logit_of_a_fake_apart(objective):
    fake = torch.tensor([0.2], requires_grad=True)
    (up,) = torch.autograd.grad(generator_loss(fake, objective), fake)
    (down,) = torch.autograd.grad(discriminator_loss(torch.tensor([0.2]), fake, objective), fake)
    assert up < 0 < down


# -- the discriminator


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_logits_are_one_map(dim, channels):
    x = torch.randn(2, channels, *[16, 18, 20][:dim])
    assert PatchDiscriminator(channels, 4, 1, dim=dim)(x).shape == (2, 1, *[6, 7, 8][:dim])


def test_the_published_size():
    """pix2pix' discriminator, on image and condition of three channels each, has 2.769 million weights; a logit sees 70 pixels."""
    assert sum(p.numel() for p in PatchDiscriminator(6).parameters()) == 2_768_705
    net = PatchDiscriminator(3).eval()
    x = torch.randn(1, 3, 142, 142, requires_grad=True)
    logits = net(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows[-1] - rows[0] + 1).item() == 70


def test_the_smallest_image_works_and_a_smaller_one_is_refused():
    net = PatchDiscriminator(1, 4, 3)
    assert net(torch.zeros(2, 1, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="at least 24"):
        net(torch.zeros(2, 1, 24, 23))


# -- the loss


def test_both_losses_are_the_objectives_on_the_discriminators_logits():
    loss, real, fake = make(), torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    loss.eval()
    d = loss.opponent
    assert loss(output_of(fake), {"x": real}).item() == pytest.approx(-d(fake).mean().item(), rel=1e-5)
    expected = discriminator_loss(d(real), d(fake), "hinge").item()
    assert loss.opponent_loss(output_of(fake), {"x": real}).item() == pytest.approx(expected, rel=1e-5)


def test_the_generators_loss_trains_the_reconstruction_alone():
    loss, fake = make(), torch.rand(2, 1, 16, 16, requires_grad=True)
    loss(output_of(fake), {"x": torch.rand(2, 1, 16, 16)}).backward()
    assert fake.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in loss.opponent.parameters())


def test_the_opponents_loss_trains_the_discriminator_alone():
    loss, fake = make(), torch.rand(2, 1, 16, 16, requires_grad=True)
    loss.opponent.requires_grad_(True)
    loss.opponent_loss(output_of(fake), {"x": torch.rand(2, 1, 16, 16)}).backward()
    assert fake.grad is None
    assert all(p.grad is not None for p in loss.opponent.parameters())


def test_nothing_happens_before_start_step():
    loss, fake = make(start_step=3, weight=2.0, adaptive=False), torch.rand(2, 1, 16, 16, requires_grad=True)
    batch = {"x": torch.rand(2, 1, 16, 16)}
    loss.step = 2
    value = loss(output_of(fake), batch)
    assert (value.item(), value.requires_grad, loss.current_weight(), loss.active) == (0.0, False, 0.0, False)
    loss.step = 3
    assert loss(output_of(fake), batch).requires_grad
    assert (loss.current_weight(), loss.active) == (2.0, True)


# -- the balance


@pytest.mark.parametrize("logits", [False, True])
def test_balance_is_vqgans_lambda_at_the_pixels(logits):
    loss = make(weight=0.5)
    pixels = torch.randn(2, 1, 16, 16, requires_grad=True)
    output, batch = output_of(pixels, logits=logits, scale=0.7), {"x": torch.rand(2, 1, 16, 16)}
    value = loss(output, batch)
    total = 2 * L1()(output, batch) + NLL()(output, batch)
    loss.rebalance(value, output, reconstruction_gradient("gan", total, output))
    (reference,) = torch.autograd.grad(total, pixels, retain_graph=True)
    (own,) = torch.autograd.grad(value, pixels)
    expected = (reference.norm() / (own.norm() + 1e-4)).clamp(max=1e4).item()
    assert loss.balance.item() == pytest.approx(expected, rel=1e-4)
    assert 1 < expected < 1e4
    assert float(loss.current_weight()) == pytest.approx(0.5 * expected, rel=1e-4)


def test_balance_is_limited():
    loss = make()
    pixels = torch.randn(2, 1, 16, 16, requires_grad=True)
    output, batch = output_of(pixels), {"x": torch.rand(2, 1, 16, 16)}
    value = loss(output, batch)
    loss.rebalance(value, output, torch.full_like(pixel_parameters("gan", output), 1e9))
    assert loss.balance.item() == 1e4


def test_without_a_reconstruction_term_the_balance_is_refused():
    pixels = torch.randn(2, 1, 16, 16, requires_grad=True)
    output = output_of(pixels)
    for total in (torch.zeros(()), torch.ones(2, requires_grad=True).sum()):
        with pytest.raises(ValueError, match="add l1 or nll"):
            reconstruction_gradient("gan", total, output)


def test_a_likelihood_without_pixels_is_refused():
    mixture = MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ValueError, match=r"losses\.gan\.adaptive"):
        pixel_parameters("gan", VAEOutput((), mixture))


# -- refusals


@pytest.mark.parametrize(
    "arguments",
    [
        {"start_step": -1},
        {"channels": 0},
        {"num_layers": 0},
        {"loss": "wasserstein"},
        {"discriminator_learning_rate": 0.0},
        {"discriminator_learning_rate": math.nan},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GAN(**arguments)


def test_a_mask_and_an_unbuilt_loss_are_refused():
    x = torch.rand(1, 1, 16, 16)
    with pytest.raises(ValueError, match="masked"):
        make()(output_of(x), {"x": x, "mask": torch.ones_like(x)})
    with pytest.raises(ValueError, match="call build"):
        GAN()(output_of(x), {"x": x})
    with pytest.raises(ValueError, match="1, 2 or 3 axes"):
        GAN().build(in_channels=1, latent_dim=2, dim=0, latent_axes=0)
