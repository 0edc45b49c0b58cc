"""Posterior collapse: called early where it happens, never where it does not, and cured by what the message names."""

import logging
import math

import pytest
import torch
from torch.distributions import Normal

from omnivae import KL, NLL, DiagonalGaussian, conv_vae
from omnivae.losses import ConstantSchedule, CyclicalSchedule, LinearSchedule
from omnivae.training import TrainingConfig, fit
from omnivae.training.collapse import AGREEING, SILENT, channel_information, is_collapsed
from omnivae.types import Latent

STEPS, DIMENSIONS = 800, 4


def latent(mean, logvar):
    return Latent(DiagonalGaussian(mean, logvar), None, mean[None], None)


def test_information_is_the_mutual_information_of_a_gaussian_channel():
    """μ ~ N(0, s²), z ~ N(μ, σ²): I(μ; z) = E[log q(z|μ) - log q(z)], estimated here with the true marginal N(0, s² + σ²)."""
    torch.manual_seed(0)
    s, sigma, n = 1.5, 0.7, 200_000
    mean = s * torch.randn(n, 1, dtype=torch.float64)
    z = mean + sigma * torch.randn_like(mean)
    ratio = Normal(mean, sigma).log_prob(z) - Normal(0.0, math.hypot(s, sigma)).log_prob(z)
    got = float(channel_information(latent(mean, torch.full_like(mean, 2 * math.log(sigma)))))
    assert abs(got - float(ratio.mean())) < 4 * float(ratio.std()) / math.sqrt(n) + 0.01 * got


def test_a_constant_posterior_carries_nothing_whatever_its_kl_is():
    q = latent(torch.full((8, 3), 2.0), torch.full((8, 3), -4.0))
    assert float(q.posterior.kl().min()) > 6
    assert channel_information(q).tolist() == [0, 0, 0]


def test_the_scale_of_the_latent_does_not_matter():
    mean, logvar = torch.randn(16, 2, 3, 3), torch.randn(16, 2, 3, 3)
    small = channel_information(latent(1e-3 * mean, logvar + 2 * math.log(1e-3)))
    torch.testing.assert_close(small, channel_information(latent(mean, logvar)), rtol=1e-4, atol=1e-5)
    assert small.shape == (2,)


def test_what_cannot_be_told_is_none():
    assert channel_information(latent(torch.zeros(1, 2), torch.zeros(1, 2))) is None


def test_a_silent_latent_that_wakes_up_is_not_collapsed():
    dead = [SILENT / 10] * AGREEING
    assert is_collapsed([5.0, *dead])
    assert not is_collapsed(dead[1:])
    assert not is_collapsed([*dead[1:], 2 * SILENT])
    assert not is_collapsed([SILENT / 100 * 1.3**i for i in range(AGREEING)])


class Blobs:
    """Images of one soft blob at a random place: two numbers decide everything."""

    def __init__(self, n=512):
        generator = torch.Generator().manual_seed(0)
        centre = 2 + 4 * torch.rand(n, 2, 1, 1, generator=generator)
        grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
        self.x = torch.exp(-(grid - centre).square().sum(1, keepdim=True) / 4)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index]}


def run(directory, kl, steps=STEPS, **config):
    torch.manual_seed(0)
    model = conv_vae(
        in_channels=1, image_size=8, latent_dim=DIMENSIONS, channels=(8, 16), norm="none", likelihood="bernoulli"
    )
    settings = {
        "batch_size": 32,
        "max_steps": steps,
        "learning_rate": 3e-3,
        "precision": "32",
        "ema": 0,
        "log_every": 20,
    }
    result = fit(
        model,
        {"nll": NLL(), "kl": kl},
        Blobs(),
        None,
        config=TrainingConfig(**settings | config),
        directory=directory,
        save_model=lambda _: None,
        progress=False,
    )
    x = Blobs().x[:256]
    with torch.no_grad():
        active = int((model.eval().encode(x).mean.var(0) > 0.01).sum())
    return result, active


def calls(caplog):
    return [record.message for record in caplog.records if "posterior collapse" in record.message]


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING, logger="omnivae")


def test_a_kl_weight_that_is_too_large_is_called_within_the_first_fifth(tmp_path, caplog):
    _, active = run(tmp_path, KL(weight=20.0))
    assert active == 0
    (message,) = calls(caplog)
    step = int(message.split("step ")[1].split(":")[0])
    assert step <= STEPS / 5
    assert "losses.kl.weight" in message
    assert "free_bits" in message


# One remedy each, all of them settings of the configuration; the annealed weights end at 1.
REMEDIES = {
    "a smaller weight": KL(weight=0.5),
    "linear annealing": KL(weight=LinearSchedule(start=0.0, end=1.0, length=400)),
    "cyclical annealing": KL(weight=CyclicalSchedule(start=0.0, end=1.0, cycle_length=150)),
    "free bits": KL(weight=20.0, free_bits=0.5),
}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_each_remedy_brings_active_units_back_and_the_monitor_stays_quiet(remedy, tmp_path, caplog):
    _, active = run(tmp_path, REMEDIES[remedy])
    assert active >= 2
    assert calls(caplog) == []


def test_a_collapsed_run_can_be_stopped_and_continues_only_when_asked_again(tmp_path, caplog):
    result, _ = run(tmp_path, KL(weight=20.0), on_collapse="stop")
    assert result.stopped_by == "posterior collapse"
    assert result.step <= STEPS / 5
    result, _ = run(tmp_path, KL(weight=20.0), on_collapse="stop")
    assert result.complete
    assert len(calls(caplog)) == 1


def test_ignored_is_ignored(tmp_path, caplog):
    run(tmp_path, KL(weight=20.0), steps=150, on_collapse="ignore")
    assert calls(caplog) == []


def test_information_is_logged(tmp_path):
    run(tmp_path, KL(weight=ConstantSchedule(1.0)), steps=100)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/information")
    assert float(rows[-1].split(",")[column]) > SILENT
