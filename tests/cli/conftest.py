"""Runs, folders of images and the command line, in this process."""

import re

import numpy as np
import pytest
from PIL import Image

from omnivae.cli.main import main


class Outcome:
    """What a command returned and printed."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def omnivae(capsys, monkeypatch):
    """Run a command; returns its exit code and what it printed."""
    monkeypatch.delenv("OMNIVAE_DEBUG", raising=False)

    def call(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(omnivae):
    """Run a command that must fail with exit code 2 and one sentence; returns the sentence."""

    def call(*arguments):
        outcome = omnivae(*arguments)
        assert outcome.code == 2, outcome.err
        assert "Traceback" not in outcome.err
        lines = [line for line in outcome.err.splitlines() if "error:" in line]
        assert len(lines) == 1, outcome.err
        assert outcome.err.rstrip().endswith(lines[0])
        found = re.fullmatch(r"omnivae(?: \w+)?: error: (.+)", lines[0])
        assert found, lines[0]
        return found[1]

    return call


TINY = ["--model.recipe", "conv_vae", "--model.latent_dim", "3", "--model.channels", "[4,8]"]
FAST = ["--training.batch_size", "8", "--training.precision", "32", "--training.val_images", "16", "--data.limit", "40"]


def train_arguments(output, *more, data="digits", steps=3):
    return ["train", "--data.path", data, "--output", output, "--training.max_steps", steps, *TINY, *FAST, *more]


@pytest.fixture
def training():
    return train_arguments


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A finished run on the embedded digits; tests must not write to it."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        main([str(a) for a in train_arguments(directory, "--losses.nll.weight", "1", "--losses.kl.weight", "2")]) == 0
    )
    return directory


def write_images(folder, sizes, channels=3, seed=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i, (height, width) in enumerate(sizes):
        pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"image-{i:03d}{suffix}")
    return folder


@pytest.fixture
def make_images():
    return write_images


@pytest.fixture(scope="session")
def spatial_run(tmp_path_factory):
    """A finished run on a folder of colour pictures in two class folders, with a spatial latent."""
    base = tmp_path_factory.mktemp("spatial")
    for name in ("cats", "dogs"):
        write_images(base / "pictures" / name, [(16, 16)] * 12, seed=len(name) + ord(name[0]))
    arguments = train_arguments(base / "run", "--model.latent", "spatial", data=base / "pictures")
    assert main([str(a) for a in arguments]) == 0
    return base / "run"
