"""A command about a run knows the run's own data, however its path is written: else it would judge it on training images."""

import numpy as np
import pytest
from PIL import Image

from omnivae.data import DataConfig
from omnivae.jobs.config import RunConfig
from omnivae.jobs.evaluate import images_for
from omnivae.jobs.run_data import is_same_data
from omnivae.jobs.train import train
from omnivae.training.config import TrainingConfig


@pytest.mark.parametrize("spelling", ["pictures/", "./pictures", "../{here}/pictures", "link", "{absolute}"])
def test_another_spelling_is_the_same_data(spelling, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to("pictures")
    monkeypatch.chdir(tmp_path)
    path = spelling.format(here=tmp_path.name, absolute=tmp_path / "pictures")
    assert is_same_data(path, DataConfig("pictures"))
    assert is_same_data("pictures", DataConfig(path))


def test_names_are_no_folders():
    assert is_same_data("digits", DataConfig("digits"))
    assert not is_same_data("./digits", DataConfig("digits"))
    assert not is_same_data("mnist", DataConfig("./mnist"))
    assert not is_same_data("pictures/train", DataConfig("pictures/"))


def test_a_slash_at_the_end_does_not_bring_in_training_images(tmp_path):
    random = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    model = {"recipe": "conv_vae", "latent_dim": 2, "channels": [4]}
    training = TrainingConfig(max_steps=1, batch_size=4)
    config = RunConfig(model, DataConfig(str(tmp_path)), {"nll": {}, "kl": {}}, training)
    train(config, tmp_path / ".run", progress=False, report=False)
    own = images_for(tmp_path / ".run", None, "auto", None, "32")[1]
    slash = images_for(tmp_path / ".run", f"{tmp_path}/", "auto", None, "32")[1]
    assert slash.keys == own.keys
    assert len(own.keys) == 2
