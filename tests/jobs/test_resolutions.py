"""Training on several sizes: one a batch, the model sees each, validation has one."""

import numpy as np
import pytest
from PIL import Image

from omnivae.cli.train import read_run
from omnivae.data import DataConfig
from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import prepare, train
from omnivae.training import TrainingConfig

TINY = {
    "recipe": "transvae", "variant": "tiny", "base_dims": [8, 8, 16], "depths": [1, 1, 1], "compression_ratio": 4,
    "latent_dim": 2, "head_dim": 8,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def config(folder, **data):
    losses = {"l1": {"per_element": True}, "kl": {"weight": 1e-6}}
    return RunConfig(dict(TINY), DataConfig(str(folder), **data), losses, TrainingConfig(batch_size=2, max_steps=4))


def test_the_model_is_trained_on_each_size(folder, tmp_path, monkeypatch):
    from omnivae.training.module import VAEModule

    seen = []
    step = VAEModule.training_step
    monkeypatch.setattr(
        VAEModule, "training_step", lambda self, batch, i: seen.append(tuple(batch["x"].shape)) or step(self, batch, i)
    )
    result = train(config(folder, resolutions=(16, 32)), tmp_path / "run", progress=False, report=False)
    assert result.complete
    assert sorted(seen) == [(2, 3, 16, 16)] * 2 + [(2, 3, 32, 32)] * 2


def test_validation_and_test_have_the_first_or_their_own(folder):
    _, _, splits = prepare(config(folder, resolutions=(16, 32)))
    assert splits.val[0]["x"].shape == splits.test[0]["x"].shape == (3, 16, 16)
    _, _, splits = prepare(config(folder, resolutions=(16, 32), image_size=24))
    assert splits.val[0]["x"].shape == (3, 24, 24)


def test_a_vector_latent_takes_one_size(folder):
    one_size = config(folder, resolutions=(16, 32))
    one_size.model = {"recipe": "conv_vae", "latent_dim": 2, "channels": [4]}
    with pytest.raises(ValueError, match=r"data\.resolutions is \[16, 32\] and this model has a vector latent"):
        prepare(one_size)


def test_the_flat_flag_of_other_code_bases(folder):
    argv = ["--data_dir", str(folder), "--resolutions", "16", "32", "--model.recipe", "cnn_vae", "--losses", "l1", "kl"]
    assert read_run(argv).config.data.resolutions == (16, 32)
