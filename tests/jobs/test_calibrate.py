"""Latent statistics are measured once, kept with the model, and applied on both sides."""

import json
import shutil

import numpy as np
import pytest
import torch
from store_helpers import save_model, write_pictures

from omnivae import VAE, LatentDataset, PosteriorStore, load_data, preprocess_image
from omnivae.data import DataConfig
from omnivae.jobs.calibrate import calibrate_model
from omnivae.jobs.encode import encode_images
from omnivae.models.storage import model_hash


@pytest.fixture
def own(model, tmp_path):
    """A model directory that may be written to."""
    return shutil.copytree(model, tmp_path / "own")


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", [(16, 16), (8, 20), (5, 5), (16, 16)] * 3)


def calibrate(model, **arguments):
    return calibrate_model(model, progress=False, **arguments)


def test_measured_statistics_equal_numpy(own, pictures):
    latent = calibrate(own, path=str(pictures))
    loaded = VAE.from_pretrained(own)
    means, variances = [], []
    for file in sorted(pictures.iterdir()):
        with torch.no_grad():
            posterior = loaded.encode(preprocess_image(file))
        means.append(posterior.mean[0].double().numpy().reshape(4, -1))
        variances.append(posterior.logvar[0].double().exp().numpy().reshape(4, -1))
    mean, variance = np.concatenate(means, 1), np.concatenate(variances, 1)
    np.testing.assert_allclose(latent["mean"], mean.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(latent["std_of_means"], mean.std(1), rtol=1e-5)
    np.testing.assert_allclose(latent["std"], np.sqrt(mean.var(1) + variance.mean(1)), rtol=1e-5)
    assert latent["scale_factor"] == pytest.approx((mean.var() + variance.mean()) ** -0.5, rel=1e-5)
    assert latent["num_images"] == 12


def test_a_store_gives_the_same_figures_as_its_images(own, pictures, tmp_path):
    encode_images(own, tmp_path / "store", path=str(pictures), progress=False)
    from_store = calibrate(own, store=tmp_path / "store")
    from_images = calibrate(own, path=str(pictures))
    for name in ("mean", "std", "std_of_means", "scale_factor"):
        np.testing.assert_allclose(from_store[name], from_images[name], rtol=1e-6)
    for name in ("data_sha256", "model_sha256", "num_images", "num_values"):
        assert from_store[name] == from_images[name]


def test_the_model_stays_the_same_model(own, pictures, tmp_path):
    files = {name: (own / name).read_bytes() for name in ("config.json", "model.safetensors", "README.md")}
    hashed, before = model_hash(own), json.loads((own / "statistics.json").read_text())
    encode_images(own, tmp_path / "store", path=str(pictures), progress=False)
    latent = calibrate(own, path=str(pictures))
    assert model_hash(own) == hashed == latent["model_sha256"]
    assert {name: (own / name).read_bytes() for name in files} == files
    assert json.loads((own / "statistics.json").read_text()) == before | {"latent": latent}
    # A store written before is still the model's.
    assert encode_images(own, tmp_path / "store", path=str(pictures), progress=False).kept == 12


def test_statistics_travel_with_the_model(own, pictures, tmp_path):
    latent = calibrate(own, path=str(pictures))
    loaded = VAE.from_pretrained(own)
    assert loaded.statistics["latent"] == latent
    loaded.save_pretrained(tmp_path / "again")
    assert VAE.from_pretrained(tmp_path / "again").statistics["latent"] == latent


def test_statistics_of_other_weights_are_not_used(own, pictures, tmp_path, caplog):
    calibrate(own, path=str(pictures))
    loaded = VAE.from_pretrained(own)
    loaded.posterior.projection.weight.data += 1
    loaded.save_pretrained(tmp_path / "trained")
    trained = VAE.from_pretrained(tmp_path / "trained")
    assert "other weights" in caplog.text
    with pytest.raises(ValueError, match="omnivae calibrate"):
        trained.whiten(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("kind", ["channel", "scale"])
def test_encode_whiten_unwhiten_decode_is_encode_decode(own, pictures, kind):
    calibrate(own, path=str(pictures))
    loaded = VAE.from_pretrained(own)
    x = preprocess_image(pictures / "001.png")
    with torch.no_grad():
        posterior = loaded.encode(x)
        z = posterior.mode()
        back = loaded.unwhiten(loaded.whiten(z, kind=kind), kind=kind)
        torch.testing.assert_close(back, z, rtol=1e-5, atol=1e-6)
        expected, got = loaded.decode(posterior), loaded.decode(back, size=posterior.input_size)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_data_set_and_the_model_whiten_alike(own, pictures, tmp_path):
    encode_images(own, tmp_path / "store", path=str(pictures), progress=False)
    calibrate(own, store=tmp_path / "store")
    loaded, store = VAE.from_pretrained(own), PosteriorStore(tmp_path / "store")
    for kind in ("channel", "scale"):
        z = LatentDataset(store, whiten=kind, mode=True, mixed=True)[2]["z"]
        torch.testing.assert_close(z, loaded.whiten(store[2]["mean"], kind=kind))


def test_vector_latents_are_calibrated_too(tmp_path):
    vector = save_model(tmp_path / "vector", latent="vector", in_channels=1, image_size=8)
    latent = calibrate(vector, path="digits", limit=50)
    assert (latent["num_images"], latent["num_values"], len(latent["mean"])) == (50, 50, 4)
    loaded = VAE.from_pretrained(vector)
    x = torch.stack([load_data(DataConfig("digits")).train[i]["x"] for i in range(5)])
    z = loaded.encode(x).mode()
    torch.testing.assert_close(loaded.unwhiten(loaded.whiten(z)), z, rtol=1e-5, atol=1e-6)


def test_a_store_of_another_model_is_refused(own, pictures, tmp_path):
    encode_images(own, tmp_path / "store", path=str(pictures), progress=False)
    other = save_model(tmp_path / "other", seed=1)
    before = (other / "statistics.json").read_bytes()
    with pytest.raises(ValueError, match=r"latents of the model VAE in own .* not of .*other"):
        calibrate(other, store=tmp_path / "store")
    assert (other / "statistics.json").read_bytes() == before
    with pytest.raises(ValueError, match="either --store or --data"):
        calibrate(own, store=tmp_path / "store", path=str(pictures))


def test_a_bare_model_needs_images(own):
    with pytest.raises(ValueError, match=r"--data\.path"):
        calibrate(own)
