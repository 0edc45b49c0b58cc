"""The training section: what it refuses, and how it counts."""

import dataclasses
import math

import pytest

from omnivae.training import TrainingConfig

REQUIRED = {
    "batch_size", "learning_rate", "num_epochs", "max_steps", "warmup_steps", "optimizer", "weight_decay",
    "gradient_clip", "precision", "ema", "seed", "devices", "checkpoint_every",
}  # fmt: skip


def test_the_promised_keys_exist():
    assert {f.name for f in dataclasses.fields(TrainingConfig)} >= REQUIRED


@pytest.mark.parametrize("name", ["batch_size", "accumulate", "checkpoint_every", "log_every", "val_images"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_one(name, value):
    with pytest.raises(ValueError, match=rf"training\.{name}={value}; expected .*at least 1"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("name", ["num_epochs", "max_steps", "validate_every", "draw_every"])
def test_optional_counts_are_at_least_one(name):
    TrainingConfig(**{name: None})
    with pytest.raises(ValueError, match=rf"training\.{name}=0; expected .*at least 1"):
        TrainingConfig(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-4),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("ema", 1.0),
        ("ema", -0.1),
        ("ema", math.nan),
        ("gradient_clip", -1.0),
        ("gradient_clip", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("warmup_steps", -1),
        ("schedule", "cosin"),
        ("optimizer", "sgd"),
        ("gradient_clip_algorithm", "vlaue"),
        ("precision", "fp32"),
        ("devices", 0),
        ("num_nodes", 0),
        ("strategy", "dpp"),
    ],
)
def test_values_that_cannot_work_are_named(name, value):
    with pytest.raises(ValueError, match=rf"training\.{name}") as error:
        TrainingConfig(**{name: value})
    assert "expected" in str(error.value)
    assert str(value) in str(error.value)


def test_zero_switches_off():
    config = TrainingConfig(ema=0, gradient_clip=0, weight_decay=0, warmup_steps=0)
    assert config.ema == config.gradient_clip == config.weight_decay == config.warmup_steps == 0


def test_epochs_become_steps():
    assert TrainingConfig(num_epochs=3, batch_size=4).total_steps(22) == 15
    assert TrainingConfig(num_epochs=3, batch_size=4, accumulate=2).total_steps(22) == 6
    assert TrainingConfig(num_epochs=2, batch_size=22).total_steps(22) == 2
    assert TrainingConfig(num_epochs=3, max_steps=7, batch_size=4).total_steps(22) == 7
    assert TrainingConfig().total_steps(22) == 1000


def test_the_default_warm_up_is_a_twentieth_and_at_most_a_thousand():
    config = TrainingConfig()
    assert [config.warmup(n) for n in (10, 200, 20_000, 1_000_000)] == [0, 10, 1000, 1000]
    assert TrainingConfig(warmup_steps=7).warmup(10) == 7
