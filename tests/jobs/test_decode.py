"""Decoding a store gives what reconstructing its files gives, under their names, and refuses what is not its own."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from store_helpers import save_model, write_pictures

from omnivae import PosteriorStore, gumbel_softmax_vae
from omnivae.data import read_image
from omnivae.jobs.decode import decode_latents
from omnivae.jobs.encode import encode_images
from omnivae.jobs.reconstruct import reconstruct_files


def pixels(path):
    return read_image(path, str(path))


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures" / "a", [(16, 16), (9, 23), (1, 1)])
    write_pictures(tmp_path / "pictures" / "b", [(16, 16), (32, 20)], seed=1)
    return tmp_path / "pictures"


@pytest.fixture
def store(model, pictures, tmp_path):
    encode_images(model, tmp_path / "store", path=str(pictures), batch_size=1, progress=False)
    return tmp_path / "store"


def test_encoding_and_decoding_is_reconstructing(model, pictures, store, tmp_path):
    written = decode_latents([store], model, tmp_path / "decoded", batch_size=1, progress=False)
    keys = PosteriorStore(store).keys
    assert written == [tmp_path / "decoded" / key for key in keys]
    reconstruct_files(model, [pictures], tmp_path / "expected", precision="32", progress=False)
    for key in keys:
        assert np.array_equal(pixels(tmp_path / "decoded" / key), pixels(tmp_path / "expected" / key)), key
        assert pixels(tmp_path / "decoded" / key).shape == pixels(pictures / key).shape


def test_the_batch_size_changes_rounding_only(model, store, tmp_path):
    for size in (1, 4):
        decode_latents([store], model, tmp_path / str(size), batch_size=size, progress=False)
    for key in PosteriorStore(store).keys:
        one, many = (pixels(tmp_path / str(size) / key).astype(int) for size in (1, 4))
        assert np.abs(one - many).max() <= 1


def test_depth_and_format_are_those_of_the_files(tmp_path):
    model = save_model(tmp_path / "grey", in_channels=1)
    random, folder = np.random.default_rng(0), tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "deep.tif", random.integers(0, 65536, (12, 16), dtype=np.uint16), compression="zlib")
    Image.fromarray(random.integers(0, 65536, (8, 8), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "flat.jpg")
    np.save(folder / "float.npy", random.random((8, 12), dtype=np.float32))
    encode_images(model, tmp_path / "store", path=str(folder), batch_size=1, progress=False)
    written = decode_latents([tmp_path / "store"], model, tmp_path / "out", batch_size=1, progress=False)
    assert [path.name for path in written] == ["deep.png", "deep.tif", "flat.jpg", "float.npy"]
    reconstruct_files(model, [folder], tmp_path / "expected", precision="32", progress=False)
    for path in written:
        assert path.read_bytes() == (tmp_path / "expected" / path.name).read_bytes()
    assert pixels(tmp_path / "out" / "deep.png").dtype == np.uint16


def test_images_without_files_become_png(tmp_path):
    model = save_model(tmp_path / "digits-model", in_channels=1)
    encode_images(model, tmp_path / "store", path="digits", limit=3, progress=False)
    written = decode_latents([tmp_path / "store"], model, tmp_path / "out", progress=False)
    assert len(written) == 3
    assert all(path.suffix == ".png" and pixels(path).shape == (8, 8, 1) for path in written)


def test_draws_are_seeded_and_are_not_the_mode(model, store, tmp_path):
    def decoded(name, **arguments):
        decode_latents([store], model, tmp_path / name, progress=False, **arguments)
        return [pixels(tmp_path / name / key) for key in PosteriorStore(store).keys]

    mode, first, again, other = (
        decoded("mode"),
        decoded("first", sample=True, seed=1),
        decoded("again", sample=True, seed=1),
        decoded("other", sample=True, seed=2),
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, mode, strict=True))


def test_some_keys_and_single_shards(model, store, tmp_path):
    written = decode_latents([store], model, tmp_path / "some", keys=["b/001.png"], progress=False)
    assert written == [tmp_path / "some" / "b" / "001.png"]
    shard = next((store / "shards").iterdir())
    assert len(decode_latents([shard], model, tmp_path / "shard", progress=False)) == 5
    with pytest.raises(ValueError, match=r"no latent of 'b/9\.png'"):
        decode_latents([store], model, tmp_path / "no", keys=["b/9.png"], progress=False)


# -- refused


def test_a_store_of_another_model_is_refused_and_both_are_named(store, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"VAE in tiny \(\w{12}\), not of .*other \(\w{12}\)") as refusal:
        decode_latents([store], other, tmp_path / "out", progress=False)
    assert PosteriorStore(store).model_hash[:12] in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_the_originals_are_not_replaced(model, pictures, store):
    before = {path: path.read_bytes() for path in pictures.rglob("*.png")}
    with pytest.raises(ValueError, match="folder of the images"):
        decode_latents([store], model, pictures, progress=False)
    assert {path: path.read_bytes() for path in pictures.rglob("*.png")} == before


def test_one_store_twice_is_refused(model, store, tmp_path):
    with pytest.raises(ValueError, match="two latents would both be written"):
        decode_latents([store, store], model, tmp_path / "out", progress=False)


@pytest.mark.parametrize("key", ["../out.png", "/out.png", "a/../../out.png", "C:/out.png", "..\\out.png"])
def test_names_that_lead_out_of_the_folder_are_refused(model, store, tmp_path, key):
    from safetensors import safe_open

    shard = next((store / "shards").iterdir())
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    entries = json.loads(metadata["entries"])
    entries["key"][0] = key
    tensors = {name: t.clone() for name, t in load_file(shard).items()}
    save_file(tensors, shard, metadata=metadata | {"entries": json.dumps(entries)})
    with pytest.raises(ValueError, match="outside of"):
        decode_latents([store], model, tmp_path / "decoded" / "here", progress=False)
    assert not list(tmp_path.rglob("out.png"))


def test_decoding_needs_a_store(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no posterior store"):
        decode_latents([tmp_path / "nowhere"], model, tmp_path / "out", progress=False)
    torch.save({}, tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match="damaged"):
        decode_latents([tmp_path / "some.safetensors"], model, tmp_path / "out", progress=False)


def test_a_posterior_that_a_store_cannot_hold_is_refused_before_there_is_one(pictures, tmp_path):
    torch.manual_seed(0)
    model = gumbel_softmax_vae(in_channels=3, image_size=None, latent="spatial", channels=(4,), likelihood="gaussian")
    model.save_pretrained(tmp_path / "categories")
    with pytest.raises(ValueError, match="mean and log-variance of a diagonal Gaussian"):
        encode_images(tmp_path / "categories", tmp_path / "store", path=str(pictures), progress=False)
    assert not (tmp_path / "store").exists()


def test_a_store_without_latents_is_refused(model, pictures, tmp_path):
    encode_images(model, tmp_path / "store", path=str(pictures), progress=False)
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "store" / "store.json", tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no latents"):
        decode_latents([tmp_path / "empty"], model, tmp_path / "decoded", progress=False)
