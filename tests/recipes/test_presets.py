"""Presets: within the guide's ranges, and they train whatever recipe they are given."""

from functools import cache
from pathlib import Path

import pytest

import omnivae
from omnivae.cli.train import read_run
from omnivae.component import from_config
from omnivae.jobs.train import train
from omnivae.losses import CyclicalSchedule
from omnivae.recipes import MEMBERS

PRESETS = Path(omnivae.__file__).parents[2] / "configs" / "presets"
#: The guide's: latent dimensions, learning rate, epochs. Batches of 64 to 128 and Adam or AdamW for all.
RANGES = {
    "mnist": ((2, 20), (1e-3, 5e-3), (50, 100)),
    "cifar10": ((128, 256), (1e-4, 1e-3), (100, 300)),
    "celeba": ((256, 512), (1e-4, 1e-3), (100, 300)),
    "text": ((32, 128), (5e-4, 1e-3), (50, 200)),
}
IMAGES = [name for name in RANGES if name != "text"]


@cache
def run_of(name, *overrides):
    return read_run(["--config", str(PRESETS / f"{name}.yaml"), *overrides]).config


def test_every_preset_is_in_the_table():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_presets_lie_in_the_guides_ranges(name):
    config = run_of(name)
    latent, rate, epochs = RANGES[name]
    assert latent[0] <= config.model["latent_dim"] <= latent[1]
    assert rate[0] <= config.training.learning_rate <= rate[1]
    assert epochs[0] <= config.training.num_epochs <= epochs[1]
    assert 64 <= config.training.batch_size <= 128
    assert config.training.optimizer in ("adam", "adamw")
    if name in IMAGES:
        # The plain ELBO, beta 1: where the guide starts.
        assert {name: loss["weight"] for name, loss in config.losses.items()} == {"nll": 1.0, "kl": 1.0}


def test_the_preset_for_text_keeps_its_latent_alive():
    """Every remedy of the guide: annealing in cycles, free bits, and a decoder that does not see every word."""
    config = run_of("text")
    weight = from_config(config.losses["kl"]["weight"])
    assert isinstance(weight, CyclicalSchedule)
    assert weight.unit == "epoch"
    assert config.training.num_epochs >= 4 * weight.cycle_length
    assert config.losses["kl"]["free_bits"] == 0.5
    assert 0.25 <= config.model["word_dropout"] <= 0.5


@pytest.mark.parametrize("name", IMAGES)
def test_another_recipe_brings_its_objective(name):
    config = run_of(name, "--model.recipe", "factor_vae")
    assert set(config.losses) == set(MEMBERS["factor_vae"].losses)
    assert config.model["recipe"] == "factor_vae"
    assert config.training.learning_rate == run_of(name).training.learning_rate


@pytest.mark.parametrize("name", IMAGES)
def test_presets_train(name, tmp_path):
    small = ["--data.path=digits", "--data.image_size=8", "--model.channels=[4, 8]", "--training.max_steps=2"]
    config = run_of(name, *small, "--training.precision=32", "--training.val_images=8", "--data.limit=400")
    assert train(config, tmp_path / "run", progress=False, report=False).complete


def test_the_preset_for_text_trains(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n".join(f"the {a} {b} {c}." for a in ("red", "old", "wet") for b in ("cat", "dog") for c in "xyzuvw" * 6)
    )
    small = ["--model.hidden=8", "--model.embedding_dim=8", "--training.max_steps=2", "--training.precision=32"]
    config = run_of("text", f"--data.path={corpus}", *small)
    assert train(config, tmp_path / "run", progress=False, report=False).complete
