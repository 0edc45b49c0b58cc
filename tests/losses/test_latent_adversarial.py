"""Opponents of latents: FactorVAE's permutation and density ratio, the adversarial autoencoder, and who trains whom."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import AAE, KL, MSE, NLL, Factor, permute_dimensions
from omnivae.recipes import conv_vae
from omnivae.training.opponents import detached
from omnivae.types import Latent, VAEOutput

BATCH = {"x": torch.zeros(6, 1)}


def output_of(z, *, prior=True):
    q = DiagonalGaussian(z, torch.zeros_like(z))
    p = Independent(Normal(torch.zeros_like(z.detach()), torch.ones_like(z.detach())), z.ndim - 1) if prior else None
    pixels = Independent(Normal(torch.zeros(1, len(z), 1), torch.ones(1, len(z), 1)), 1)
    return VAEOutput((Latent(q, p, z[None], q.log_prob(z)[None]),), pixels)


def make(cls, latent_dim=3, **arguments):
    torch.manual_seed(0)
    loss = cls(**{"width": 8, "depth": 2} | arguments)
    loss.build(in_channels=1, latent_dim=latent_dim, dim=2, latent_axes=0)
    return loss


both = pytest.mark.parametrize("cls", [Factor, AAE])


# -- the permutation


def test_permuting_keeps_every_marginal_exactly():
    z = torch.randn(50, 4)
    assert torch.equal(permute_dimensions(z).sort(0).values, z.sort(0).values)


def test_permuting_destroys_dependence():
    torch.manual_seed(1)
    base = torch.randn(4000, 1)
    z = torch.cat([base, base, -base], 1)
    correlation = np.corrcoef(permute_dimensions(z).T.numpy())
    assert np.abs(correlation - np.eye(3)).max() < 4 / math.sqrt(4000)
    # Dependence without correlation goes too.
    square = torch.cat([base, base.square()], 1)
    shuffled = permute_dimensions(square)
    assert abs(np.corrcoef(shuffled[:, 0].square(), shuffled[:, 1])[0, 1]) < 4 / math.sqrt(4000)


def test_every_order_of_a_column_is_as_likely_and_columns_are_shuffled_apart():
    torch.manual_seed(2)
    counts = {}
    for _ in range(3000):
        key = tuple(permute_dimensions(torch.arange(3.0)[:, None].expand(3, 2)).T.flatten().tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 36
    # 3000 / 36 = 83 each, standard deviation 9.
    assert max(abs(n - 3000 / 36) for n in counts.values()) < 45


# -- the values


def test_factor_is_the_mean_logit_and_its_opponents_loss_is_cross_entropy():
    loss, z = make(Factor), torch.randn(6, 3)
    logits = loss.opponent(z)
    ratio = torch.log(logits.sigmoid() / (1 - logits.sigmoid())).mean()
    assert loss(output_of(z), BATCH).item() == pytest.approx(ratio.item(), abs=1e-5)
    torch.manual_seed(7)
    permuted = permute_dimensions(z)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    fake = loss.opponent(permuted)
    expected = 0.5 * (bce(logits, torch.ones(6, 1)) + bce(fake, torch.zeros(6, 1)))
    torch.manual_seed(7)
    assert loss.opponent_loss(output_of(z), BATCH).item() == pytest.approx(expected.item(), rel=1e-5)


def test_aae_is_cross_entropy_against_samples_of_the_prior():
    loss, z = make(AAE), torch.randn(6, 3) + 1
    bce, output = torch.nn.functional.binary_cross_entropy_with_logits, output_of(z)
    assert loss(output, BATCH).item() == pytest.approx(bce(loss.opponent(z), torch.ones(6, 1)).item(), rel=1e-5)
    torch.manual_seed(7)
    samples = output.latents[0].prior.sample()
    expected = 0.5 * (bce(loss.opponent(samples), torch.ones(6, 1)) + bce(loss.opponent(z), torch.zeros(6, 1)))
    torch.manual_seed(7)
    assert loss.opponent_loss(output, BATCH).item() == pytest.approx(expected.item(), rel=1e-5)


def train_opponent(loss, draw, steps):
    loss.opponent.requires_grad_(True)
    optimiser = torch.optim.Adam(loss.opponent.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss.opponent_loss(output_of(draw()), BATCH).backward()
        optimiser.step()


def test_a_trained_opponent_estimates_the_total_correlation():
    """Of a Gaussian with correlation r it is -log(1 - r^2) / 2."""
    torch.manual_seed(3)
    r = 0.8
    mixing = torch.linalg.cholesky(torch.tensor([[1.0, r], [r, 1.0]]))

    def draw():
        return torch.randn(512, 2) @ mixing.T

    loss = make(Factor, 2, width=32)
    train_opponent(loss, draw, 400)
    with torch.no_grad():
        found = np.mean([loss(output_of(draw()), BATCH).item() for _ in range(20)])
    assert found == pytest.approx(-0.5 * math.log(1 - r**2), abs=0.12)


def test_a_trained_opponent_pushes_codes_to_the_prior():
    loss = make(AAE, 1, width=16)
    train_opponent(loss, lambda: 2 + torch.randn(256, 1), 200)
    loss.opponent.requires_grad_(False)
    z = (2 + torch.randn(256, 1)).requires_grad_()
    loss(output_of(z), BATCH).backward()
    # Downhill, which is against the gradient, is towards zero.
    assert z.grad.mean() > 0


# -- who trains whom


@both
def test_the_models_side_trains_the_encoder_alone(cls):
    torch.manual_seed(4)
    model = conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=[4]).train()
    x = torch.rand(4, 1, 8, 8)
    loss = make(cls)
    loss(model(x), {"x": x}).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.posterior.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in loss.opponent.parameters())


@both
@pytest.mark.parametrize("cut", [True, False], ids=["detached", "with its graph"])
def test_the_opponents_side_trains_the_discriminator_alone(cls, cut):
    model = conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=[4]).train()
    x = torch.rand(4, 1, 8, 8)
    loss, output = make(cls), model(x)
    loss.opponent.requires_grad_(True)
    loss.opponent_loss(detached(output) if cut else output, {"x": x}).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in loss.opponent.parameters())


@both
def test_the_discriminator_is_built_once(cls):
    loss = make(cls)
    before = copy.deepcopy(loss.opponent.state_dict())
    loss.build(in_channels=1, latent_dim=3, dim=2, latent_axes=0)
    assert all(torch.equal(value, before[name]) for name, value in loss.opponent.state_dict().items())


def test_the_published_size():
    """Six hidden layers of 1,000 units on ten dimensions (FactorVAE, appendix A); one logit, the difference of its two."""
    loss = Factor()
    loss.build(in_channels=1, latent_dim=10, dim=2, latent_axes=0)
    linear = [m for m in loss.opponent if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [1000] * 6 + [1]
    assert linear[0].in_features == 10


# -- in a run


@both
def test_training_moves_both_sides_and_their_losses_are_logged(cls, tmp_path):
    import csv

    from omnivae.training import TrainingConfig, fit

    images = torch.rand(16, 1, 8, 8)

    class Images:
        def __len__(self):
            return 16

        def __getitem__(self, i):
            return {"x": images[i]}

    model, loss = conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=[4]), make(cls)
    before = [copy.deepcopy(part.state_dict()) for part in (model, loss.opponent)]
    terms = {"nll": NLL(), "kl": KL()} if cls is Factor else {"mse": MSE()}
    config = TrainingConfig(batch_size=8, max_steps=3, precision="32", warmup_steps=0, learning_rate=1e-2, ema=0)
    common = {"config": config, "directory": tmp_path, "save_model": lambda trained: None, "progress": False}
    fit(model, terms | {loss.name: loss}, Images(), None, **common)
    for part, old in zip((model, loss.opponent), before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in part.state_dict().items())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/total"]]
    assert all(float(row[f"train/{loss.name}_opponent"]) > 0 for row in rows)


# -- refusals


@both
def test_what_they_cannot_do_is_refused(cls):
    with pytest.raises(ValueError, match="call build"):
        cls()(output_of(torch.randn(6, 3)), BATCH)
    with pytest.raises(ValueError, match="use kl or mmd in its place, or use a model with a vector latent"):
        cls().build(in_channels=1, latent_dim=3, dim=2, latent_axes=2)
    for arguments in ({"width": 0}, {"depth": 0}, {"discriminator_learning_rate": math.inf}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            cls(**arguments)
    two = output_of(torch.randn(6, 3))
    with pytest.raises(ValueError, match="one latent"):
        make(cls)(VAEOutput(two.latents * 2, two.likelihood), BATCH)


def test_aae_without_a_prior_is_refused():
    with pytest.raises(ValueError, match="drop 'aae', or use a gaussian posterior"):
        make(AAE).opponent_loss(output_of(torch.randn(6, 3), prior=False), BATCH)
