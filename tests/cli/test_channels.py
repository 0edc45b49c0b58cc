"""Images of any number of channels and 16 bits through a whole run: training, evaluation, report, reconstruction."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from omnivae.data import read_header
from omnivae.models import VAE


def write_tiffs(folder, channels, count=12, dtype=np.uint16):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(channels)
    for i in range(count):
        image = random.integers(0, 1 << 16, (channels, 16, 16)).astype(dtype)
        how = {"imagej": True, "metadata": {"axes": "CYX"}} if channels > 1 else {}
        tifffile.imwrite(folder / f"{i:02d}.tif", image if channels > 1 else image[0], photometric="minisblack", **how)
    return folder


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_run_on_sixteen_bit_tiffs(omnivae, training, tmp_path, channels):
    folder, run = write_tiffs(tmp_path / "in", channels), tmp_path / "run"
    losses = ["--losses.nll.weight", 1, "--losses.kl.weight", 1, "--losses.ms_ssim.weight", 0.1]
    small = ["--training.batch_size", 4, "--model.latent", "spatial"]
    outcome = omnivae(*training(run, *losses, *small, data=folder, steps=2))
    assert outcome.code == 0, outcome.err
    model = VAE.from_pretrained(run)
    assert model.in_channels == channels
    assert model.statistics["data"]["alpha"] is False

    file = tmp_path / "card.json"
    outcome = omnivae("evaluate", run, "--metrics", "psnr", "ssim", "mse", "--json", file)
    assert outcome.code == 0, outcome.err
    metrics = json.loads(file.read_text())["metrics"]
    assert 0 < metrics["psnr"]["mean"] < 40

    outcome = omnivae("report", run, "--output", tmp_path / "report.html")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "report.html").read_text()
    assert ("magenta" in text) == (channels in (2, 5))

    outcome = omnivae("reconstruct", run, folder, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    for path in sorted(folder.iterdir()):
        assert read_header(tmp_path / "out" / path.name, "a") == read_header(path, "a")
    assert omnivae("sample", run, "--n", 2, "--output", tmp_path / "s.png").code == 0


def test_input_range_reaches_training_evaluation_and_reconstruction(omnivae, refused, training, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        np.save(folder / f"{i:02d}.npy", random.integers(-1000, 2000, (16, 16)).astype(np.int16))
    small = ["--training.batch_size", 4]
    assert "set data.input_range" in refused(*training(tmp_path / "run", *small, data=folder))
    limits = ["--data.input_range", "[-1000,2000]"]
    assert omnivae(*training(tmp_path / "run", *small, *limits, data=folder, steps=2)).code == 0
    assert VAE.from_pretrained(tmp_path / "run").statistics["data"]["input_range"] == [-1000, 2000]
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a.npy", np.full((16, 16), 2001, np.int16))
    said = refused("reconstruct", tmp_path / "run", other, "--output", tmp_path / "out")
    assert "a.npy holds values from 2001 to 2001, beyond the range -1000 to 2000" in said
    assert omnivae("reconstruct", tmp_path / "run", folder, "--output", tmp_path / "out").code == 0
    result = np.load(tmp_path / "out" / "00.npy")
    assert result.dtype == np.int16
    assert result.min() >= -1000
    assert result.max() <= 2000


def test_files_left_out_do_not_stop_a_run(omnivae, refused, training, tmp_path):
    folder = write_tiffs(tmp_path / "in", 1)
    (folder / "zz.png").write_bytes(b"no image")
    small = ["--training.batch_size", 4]
    said = refused(*training(tmp_path / "run", *small, data=folder))
    assert "1 of 13 images is not usable" in said
    assert "zz.png" in said
    assert not (tmp_path / "run").exists()
    outcome = omnivae(*training(tmp_path / "run", *small, "--data.on_error", "skip", data=folder, steps=2))
    assert outcome.code == 0, outcome.err
    assert "zz.png" in (tmp_path / "run" / "skipped.tsv").read_text()


def test_alpha_is_drawn_as_alpha(omnivae, training, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.zeros((16, 16, 4), np.uint8)  # black, and all of it transparent
    for i in range(12):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    run = tmp_path / "run"
    assert omnivae(*training(run, "--training.batch_size", 4, data=folder, steps=2)).code == 0
    assert VAE.from_pretrained(run).statistics["data"]["alpha"] is True
    with Image.open(next((run / "pictures").iterdir())) as picture:
        array = np.asarray(picture.convert("RGB"))
    black = (array[:96] == 0).all(-1).sum()
    assert black == 0  # originals stand on white
