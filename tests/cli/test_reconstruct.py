"""``omnivae reconstruct``: with a model that changes nothing, nothing may change, whatever kind of file goes through."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from omnivae.component import Component
from omnivae.data.images import read_header, read_image
from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import GaussianLikelihood
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal


class NothingNetwork(nn.Module, Component):
    """Stands where a network would, and is never called."""

    def __init__(self, in_channels=1, out_channels=1):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dim = in_channels, out_channels, 1, 2
        self.weight = nn.Parameter(torch.zeros(1))


class IdentityVAE(VAE):
    """Its latent is the image."""

    def encode(self, x, cond=None):
        self._check(x)
        posterior = DiagonalGaussian(x, torch.zeros_like(x))
        posterior.input_size = tuple(x.shape[2:])
        return posterior

    def decode(self, z, cond=None, *, size=None):
        return z.mode() if isinstance(z, DiagonalGaussian) else z


@pytest.fixture
def identity(tmp_path):
    """Write the model that changes nothing; returns its directory."""

    def build(in_channels, value_range=(-1.0, 1.0), image_size=None, **data):
        model = IdentityVAE(
            NothingNetwork(in_channels, 2 * in_channels),
            GaussianPosterior(2 * in_channels, in_channels, dim=2),
            NothingNetwork(in_channels, in_channels),
            GaussianLikelihood(1.0),
            StandardNormal(),
            value_range=value_range,
            image_size=image_size,
        )
        model.statistics = {"data": data}
        model.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return build


def noise(height, width, channels, dtype):
    values = np.random.default_rng(channels).integers(0, 1 << 16, (height, width, channels))
    if np.dtype(dtype).kind == "f":
        return (values / 65535).astype(dtype)
    return (values >> (16 - 8 * np.dtype(dtype).itemsize)).astype(dtype)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array[..., 0] if array.shape[2] == 1 else array
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".png":
        import imagecodecs

        path.write_bytes(imagecodecs.png_encode(array))
    else:
        tifffile.imwrite(
            path, array, photometric="minisblack", **({} if array.ndim == 2 else {"planarconfig": "contig"})
        )


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_every_pixel_comes_back(omnivae, identity, tmp_path, suffix, dtype, channels):
    if suffix == ".png" and (dtype == "float32" or channels > 4):
        return
    # Floats in [0, 1] are exact in a model on [0, 1]; on [-1, 1] the smallest ones would be rounded.
    model = identity(channels, (0.0, 1.0) if dtype == "float32" else (-1.0, 1.0))
    array = noise(17, 9, channels, dtype)
    write(tmp_path / "in" / "deep" / f"a{suffix}", array)
    outcome = omnivae("reconstruct", model, tmp_path / "in", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    source, target = (tmp_path / name / "deep" / f"a{suffix}" for name in ("in", "out"))
    assert outcome.out.split() == [str(target)]
    np.testing.assert_array_equal(read_image(target, "a"), array)
    assert read_header(target, "a") == read_header(source, "a")


def test_values_go_through_the_input_range_and_back(omnivae, refused, identity, tmp_path):
    array = np.random.default_rng(0).integers(-1024, 3072, (9, 7, 1)).astype(np.int16)
    write(tmp_path / "in" / "ct.tif", array)
    assert "set data.input_range" in refused("reconstruct", identity(1), tmp_path / "in", "--output", tmp_path / "out")
    model = identity(1, input_range=(-1024, 3071))
    outcome = omnivae("reconstruct", model, tmp_path / "in" / "ct.tif", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "ct.tif"), array[..., 0])
    model = identity(1, input_range=(-100, 300))
    said = refused("reconstruct", model, tmp_path / "in", "--output", tmp_path / "out2")
    assert "ct.tif holds values from -10" in said
    assert "data.clip true" in said
    assert not (tmp_path / "out2").exists()
    model = identity(1, input_range=(-100, 300), clip=True)
    assert omnivae("reconstruct", model, tmp_path / "in", "--output", tmp_path / "out3").code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out3" / "ct.tif"), array[..., 0].clip(-100, 300))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_pictures_through_a_colour_model_come_back_grey(omnivae, identity, tmp_path, dtype):
    for channels, name in ((1, "grey"), (2, "alpha"), (3, "rgb"), (4, "rgba")):
        write(tmp_path / "in" / f"{name}.png", noise(8, 9, channels, dtype))
    outcome = omnivae("reconstruct", identity(3, channels=3), tmp_path / "in", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    for channels, name in ((1, "grey"), (2, "alpha"), (3, "rgb"), (4, "rgba")):
        result = read_image(tmp_path / "out" / f"{name}.png", name)
        np.testing.assert_array_equal(result, noise(8, 9, channels, dtype), err_msg=name)


def test_colour_pictures_through_a_grey_model_are_rgb_of_equal_channels(omnivae, identity, tmp_path):
    array = noise(8, 9, 3, "uint8")
    write(tmp_path / "in" / "a.png", array)
    assert omnivae("reconstruct", identity(1, channels=1), tmp_path / "in", "--output", tmp_path / "out").code == 0
    result = read_image(tmp_path / "out" / "a.png", "a")
    luma = np.asarray(Image.fromarray(array).convert("L"))
    np.testing.assert_array_equal(result, np.repeat(luma[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_eight_bit_formats_keep_their_mode(omnivae, identity, tmp_path, suffix):
    modes = {".jpg": ["L", "RGB", "CMYK"], ".webp": ["RGB", "RGBA"], ".bmp": ["L", "RGB"]}[suffix]
    y, x = np.mgrid[:24, :32] * 8
    smooth = np.stack([y, x, 255 - y], axis=-1).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for mode in modes:
        Image.fromarray(smooth).convert(mode).save(tmp_path / "in" / f"{mode}{suffix}", quality=95)
    outcome = omnivae("reconstruct", identity(3, channels=3), tmp_path / "in", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    for mode in modes:
        with (
            Image.open(tmp_path / "out" / f"{mode}{suffix}") as after,
            Image.open(tmp_path / "in" / f"{mode}{suffix}") as before,
        ):
            assert (after.mode, after.size, after.format) == (before.mode, before.size, before.format)
            difference = np.abs(np.asarray(after.convert("RGB"), int) - np.asarray(before.convert("RGB"), int))
        assert difference.max() <= (12 if suffix in (".jpg", ".webp") else 0)


def test_turned_photographs_come_out_upright(omnivae, identity, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (24, 1))).save(tmp_path / "in" / "a.jpg", exif=exif)
    assert omnivae("reconstruct", identity(1), tmp_path / "in", "--output", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.size == (24, 32)
        assert image.getexif().get(274, 1) == 1
        assert np.asarray(image)[0].mean() < 10 < 230 < np.asarray(image)[-1].mean()


def test_a_model_of_one_size_takes_squares_and_gives_their_size_back(omnivae, refused, identity, tmp_path):
    model = identity(1, image_size=(8, 8))
    (tmp_path / "model" / "statistics.json").write_text('{"data": {"image_size": 8}}')
    smooth = (np.add.outer(np.arange(24), np.arange(24)) * 5).astype(np.uint16)[..., None] * 200
    write(tmp_path / "in" / "a.png", smooth)
    assert omnivae("reconstruct", model, tmp_path / "in", "--output", tmp_path / "out").code == 0
    result = read_image(tmp_path / "out" / "a.png", "a")
    assert (result.shape, result.dtype) == (smooth.shape, smooth.dtype)
    assert np.abs(result.astype(int) - smooth)[3:-3, 3:-3].max() < 1000
    write(tmp_path / "wide" / "b.png", smooth[:20])
    assert "squares of 8 only" in refused("reconstruct", model, tmp_path / "wide", "--output", tmp_path / "out")


def test_nothing_is_written_unless_everything_can_be(omnivae, refused, identity, tmp_path):
    model = identity(3)
    for name in "abc":
        write(tmp_path / "in" / f"{name}.png", noise(8, 8, 3, "uint8"))
    bad = tmp_path / "in" / "b.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    Image.fromarray(noise(8, 8, 3, "uint8")).save(tmp_path / "in" / "z.gif")
    assert "b.png is damaged" in refused("reconstruct", model, tmp_path / "in", "--output", tmp_path / "out")
    bad.unlink()
    assert "z.gif: a GIF holds 256 colours" in refused(
        "reconstruct", model, tmp_path / "in", "--output", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
    bad.write_bytes(b"nothing")
    outcome = omnivae("reconstruct", model, tmp_path / "in", "--output", tmp_path / "out", "--on_error", "skip")
    assert outcome.code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_folders_do_not_swallow_their_own_results(refused, identity, tmp_path):
    write(tmp_path / "in" / "a.png", noise(8, 8, 3, "uint8"))
    model = identity(3)
    assert "lies in" in refused("reconstruct", model, tmp_path / "in", "--output", tmp_path / "in" / "out")
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused("reconstruct", model, tmp_path / "empty", "--output", tmp_path / "out")


def test_interpolation_of_deep_images(omnivae, identity, tmp_path):
    for i, name in enumerate("ab"):
        write(tmp_path / f"{name}.tif", np.full((32, 32, 2), 65535 * i, np.uint16))
    outcome = omnivae(
        "interpolate", identity(2), tmp_path / "a.tif", tmp_path / "b.tif", "--steps", 3, "--output", tmp_path / "w.png"
    )
    assert outcome.code == 0, outcome.err
    with Image.open(io.BytesIO((tmp_path / "w.png").read_bytes())) as image:
        row = np.asarray(image)[image.height // 2].max(-1)
    # The original, then alpha 0, 1/2 and 1, then the other original: tiles of 96 behind the label of the row.
    assert [int(row[x]) for x in (100, 210)] == [0, 0]
    assert 120 < row[310] < 136
    assert row[400] > 200
