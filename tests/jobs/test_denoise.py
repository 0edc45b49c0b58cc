"""Denoising: a model that was trained to, one that was not, and PSNR before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omnivae.cli.main import main
from omnivae.jobs.denoise import CorruptedImages, denoise_files, measure_denoising, noise_of
from omnivae.models import VAE
from omnivae.training.corruption import Corruption


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("denoiser") / "run"
    arguments = ["--model.recipe", "conv_vae", "--model.latent_dim", "16", "--model.channels", "[16,32]"]
    arguments += ["--training.max_steps", "400", "--training.learning_rate", "3e-3", "--training.val_images", "8"]
    arguments += ["--training.corrupt", "gaussian", "--training.corrupt_strength", "0.4", "--training.precision", "32"]
    arguments += ["--training.ema", "0"]
    assert main(["train", "--data.path", "digits", "--output", str(directory), *arguments]) == 0
    return directory


def test_noise_is_removed(run, tmp_path):
    model = VAE.from_pretrained(run)
    assert noise_of(model) == Corruption("gaussian", 0.4)
    result = measure_denoising(run, tmp_path / "picture.png", limit=30, progress=False)
    assert result["after"].low > result["before"].high
    assert (tmp_path / "picture.png").stat().st_size > 1000
    again = measure_denoising(run, limit=30, progress=False)
    assert again["before"] == result["before"]
    (tmp_path / "noisy").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noisy" / "a.png")
    written = denoise_files(run, [tmp_path / "noisy"], tmp_path / "out")
    assert [path.name for path in written] == ["a.png"]


def test_noise_belongs_to_the_key():
    images = [{"x": torch.zeros(1, 4, 4), "key": name} for name in ("a", "b", "a")]
    noisy = CorruptedImages(images, Corruption("gaussian", 0.2), (-1.0, 1.0))
    assert torch.equal(noisy[0]["x"], noisy[2]["x"])
    assert not torch.equal(noisy[0]["x"], noisy[1]["x"])
    assert not noisy[0]["target"].any()


def test_models_that_were_not_trained_to_are_refused():
    import omnivae

    model = omnivae.conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=(4, 8))
    with pytest.raises(ValueError, match="not trained to denoise"):
        noise_of(model)
    model.statistics["corruption"] = Corruption("missing", 0.5).to_dict()
    with pytest.raises(ValueError, match="not trained to denoise"):
        noise_of(model)
