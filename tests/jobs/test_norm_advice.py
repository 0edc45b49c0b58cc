"""Batch normalisation of single images is refused, and the advice names a setting that the recipe has."""

import pytest

from omnivae.data import DataConfig
from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import _other_norms, prepare
from omnivae.training import TrainingConfig


def test_the_refusal_names_the_recipes_own_setting():
    model = {"recipe": "conv_vae", "norm": "batch", "channels": [4], "latent_dim": 2}
    config = RunConfig(model, DataConfig("digits"), {"nll": {}, "kl": {}}, TrainingConfig(batch_size=1))
    with pytest.raises(ValueError, match=r"training\.batch_size to 2 or more, or model\.norm to group or none"):
        prepare(config)


def test_a_setting_that_a_recipe_does_not_have_is_not_advised():
    assert _other_norms("beta_vae_25d") == ", or model.norm_name to instance"
    assert _other_norms("kl_autoencoder") == ""
