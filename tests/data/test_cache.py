"""Images are decoded once and are the same as without the cache, in whatever process."""

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from omnivae.data import DataConfig, load_data
from omnivae.data.cache import PixelCache, affordable, free_memory


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for i in range(12):
        size = (20 + i, 30 - i, 3)
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


SETTINGS = {
    "resized": {"image_size": 16},
    "grey": {"image_size": 16, "channels": 1},
    "random crops": {"image_size": 16, "random_crop": True, "flip": True},
    "binarised": {"image_size": 16, "binarize": "stochastic", "channels": 1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_images_are_the_same_bit_for_bit_and_decoded_once(settings, folder):
    plain, cached = (load_data(DataConfig(str(folder), **settings)).train for _ in range(2))
    assert cached.keep_decoded(True)
    read, calls = cached.source.read, []
    cached.source.read = lambda number: calls.append(number) or read(number)
    for epoch in range(3):
        plain.set_epoch(epoch)
        cached.set_epoch(epoch)
        for i in range(len(plain)):
            assert torch.equal(plain[i]["x"], cached[i]["x"])
    assert len(calls) == len(plain)


@pytest.mark.parametrize(
    ("colours", "channels"), [*(("minisblack", n) for n in range(1, 6)), *(("rgb", n) for n in range(3, 6))]
)
def test_every_kind_of_eight_bits_is_kept(channels, colours, tmp_path):
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (20, 30, channels), dtype=np.uint8)
        extra = ["unspecified"] * (channels - (3 if colours == "rgb" else 1))
        array, how = (
            (pixels[..., 0], {}) if channels == 1 else (pixels, {"extrasamples": extra, "planarconfig": "contig"})
        )
        tifffile.imwrite(tmp_path / f"{i}.tif", array, photometric=colours, metadata=None, **how)
    plain, cached = (load_data(DataConfig(str(tmp_path), image_size=16)).train for _ in range(2))
    assert plain.source.channels.tolist() == [channels] * 4
    assert cached.keep_decoded(True)
    first = [cached[i]["x"] for i in range(len(cached))]
    assert cached._cache.filled == len(cached)
    for i, x in enumerate(first):
        assert torch.equal(x, plain[i]["x"])
        assert torch.equal(cached[i]["x"], x)


def test_sixteen_bits_and_many_channels_are_kept_whole(tmp_path):
    random = np.random.default_rng(0)
    for i in range(6):
        image = random.integers(0, 65536, (5, 24, 24), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{i}.tif", image, metadata={"axes": "CYX"})
    for side in (None, 16):
        plain, cached = (load_data(DataConfig(str(tmp_path), image_size=side)).train for _ in range(2))
        assert cached.keep_decoded(True)
        for _ in range(2):
            assert all(torch.equal(plain[i]["x"], cached[i]["x"]) for i in range(len(plain)))
        assert cached._cache.filled == len(cached)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loading_processes_share_it(start, folder):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    data = load_data(DataConfig(str(folder), image_size=16)).train
    expected = torch.stack([data[i]["x"] for i in range(len(data))])
    assert data.keep_decoded(True)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=start)
    assert torch.equal(torch.cat([batch["x"] for batch in loader]), expected)
    # What the workers decoded is here too.
    assert data._cache.filled == len(data)


def test_auto_leaves_out_what_is_in_memory_or_too_large(folder, monkeypatch):
    assert not load_data(DataConfig("digits")).train.keep_decoded("auto")
    assert load_data(DataConfig(str(folder), image_size=16)).train.keep_decoded("auto")
    monkeypatch.setattr("omnivae.data.cache.free_memory", lambda: 1000)
    assert not load_data(DataConfig(str(folder), image_size=16)).train.keep_decoded("auto")
    assert not load_data(DataConfig(str(folder), image_size=16)).train.keep_decoded(False)


def test_several_sizes_are_made_from_one_decoding(folder):
    plain, cached = (load_data(DataConfig(str(folder), resolutions=(16, 8))).train for _ in range(2))
    cached.keep_decoded(True, any_size=True)
    for side in (16, 8, 16):
        for data in (plain, cached):
            data.set_resolution(side)
        assert cached[0]["x"].shape == (3, side, side)
        assert all(torch.equal(plain[i]["x"], cached[i]["x"]) for i in range(len(plain)))


def test_the_file_goes_with_its_owner_and_stays_for_its_heirs():
    cache = PixelCache(np.array([[2, 2, 1]]), np.array(["uint8"]))
    cache.put(0, np.full((2, 2, 1), 7, dtype=np.uint8))
    heir = pickle.loads(pickle.dumps(cache))
    assert heir.get(0).tolist() == cache.get(0).tolist()
    del heir
    path = cache.path
    assert os.path.exists(path)
    child = os.fork()
    if child == 0:
        del cache
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.exists(path)
    del cache
    assert not os.path.exists(path)


def test_the_file_of_a_killed_process_is_removed_by_the_next_and_no_other(tmp_path):
    shape, dtype = np.array([[2, 2, 1]]), np.array(["uint8"])
    child = os.fork()
    if child == 0:
        abandoned = PixelCache(shape, dtype, tmp_path)
        assert abandoned.nbytes
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    living = PixelCache(shape, dtype, tmp_path)
    assert left.exists()  # it may be one that is just being made
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    another = PixelCache(shape, dtype, tmp_path)
    assert {str(path) for path in tmp_path.iterdir()} == {living.path, another.path}


def test_an_array_of_another_shape_is_not_kept():
    cache = PixelCache(np.array([[2, 2, 1], [3, 3, 1]]), np.array(["uint8", "uint16"]))
    cache.put(0, np.zeros((3, 3, 1), dtype=np.uint8))
    cache.put(1, np.zeros((3, 3, 1), dtype=np.uint8))
    assert cache.get(0) is None
    assert cache.get(1) is None
    assert cache.filled == 0


def test_what_is_returned_is_a_copy():
    cache = PixelCache(np.array([[1, 1, 1]]), np.array(["uint8"]))
    cache.put(0, np.ones((1, 1, 1), dtype=np.uint8))
    cache.get(0)[:] = 9
    assert cache.get(0).item() == 1


def test_memory_is_measured():
    assert 0 < free_memory() < 1 << 50
    assert affordable(0)
    assert not affordable(1 << 60)
    assert Path(PixelCache(np.array([[1, 1, 1]]), np.array(["uint8"])).path).name.startswith("omnivae-cache-")
