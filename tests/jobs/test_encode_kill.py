"""A run of ``encode`` that is killed, at whatever moment, and started again ends with the store of a run that was not."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from store_helpers import contents, keys_on_disk, write_pictures

from omnivae import PosteriorStore
from omnivae.data.latents import STORE
from omnivae.jobs.encode import encode_images

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")
FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else None


def encode(model, output, pictures):
    return encode_images(model, output, path=str(pictures), batch_size=2, shard_mib=0.0005, progress=False)


def start(*arguments):
    process = FORK.Process(target=encode, args=arguments)
    process.start()
    return process


def check_valid(path):
    """A store is valid at any moment: it opens, and every entry of it can be read."""
    if (path / STORE).is_file():
        store = PosteriorStore(path)
        assert [store[i]["key"] for i in range(len(store))] == store.keys


def test_killed_at_random_moments(model, tmp_path):
    pictures = write_pictures(tmp_path / "pictures", [(16, 16), (8, 12), (20, 16)] * 20)
    store, shards = tmp_path / "store", tmp_path / "store" / "shards"
    moments = random.Random(0)
    kept = []
    for _ in range(5):
        before = len(list(shards.glob("*.safetensors"))) if shards.is_dir() else 0
        process = start(model, store, pictures)
        # The moment is counted in shards and not in seconds: the machine may be slow or fast.
        target = before + moments.randrange(1, 6)
        while process.is_alive() and (not shards.is_dir() or len(list(shards.glob("*.safetensors"))) < target):
            time.sleep(0.0005)
        time.sleep(moments.random() * 0.004)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        check_valid(store)
        kept.append(len(PosteriorStore(store)))
    assert kept == sorted(kept)
    assert 0 < kept[0] < kept[-1] < 60  # every kill hit a run at work
    last = encode(model, store, pictures)
    assert (last.kept, last.encoded) == (kept[-1], 60 - kept[-1])
    encode(model, tmp_path / "uninterrupted", pictures)
    assert contents(store) == contents(tmp_path / "uninterrupted")
    assert keys_on_disk(store) == sorted(contents(store))
    assert not list(shards.glob(".*.tmp"))


def die_at(step, *arguments):
    """Encode, and be killed at one of the changes to the file system: before it, so that all before it have happened."""
    changes = [0]

    def counted(function):
        def run(*args, **kwargs):
            changes[0] += 1
            if changes[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return run

    Path.replace, Path.unlink, os.fsync = counted(Path.replace), counted(Path.unlink), counted(os.fsync)
    encode(*arguments)


def test_killed_before_any_change_to_the_disk_while_a_store_is_updated(model, tmp_path):
    pictures = write_pictures(tmp_path / "pictures", [(16, 16)] * 8)
    steps, killed = 0, True
    while killed:
        steps += 1
        store = tmp_path / f"store-{steps}"
        write_pictures(pictures, [(16, 16)] * 8)
        encode(model, store, pictures)
        # One file changes, one goes, one comes: shards are written, rewritten and deleted.
        write_pictures(pictures, [(16, 16)], seed=1, start=3)
        (pictures / "006.png").unlink()
        write_pictures(pictures, [(16, 16)], seed=2, start=8)
        process = FORK.Process(target=die_at, args=(steps, model, store, pictures))
        process.start()
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        assert killed or process.exitcode == 0
        check_valid(store)
        assert set(PosteriorStore(store).keys) >= {f"{i:03d}.png" for i in range(6)}
        encode(model, store, pictures)
        assert keys_on_disk(store) == PosteriorStore(store).keys
        assert not [file.name for file in (store / "shards").iterdir() if file.suffix != ".safetensors"]
        assert set(contents(store)) == {f"{i:03d}.png" for i in range(9) if i != 6}
        # The last of them was not killed.
        assert contents(store) == contents(tmp_path / "store-1")
        (pictures / "008.png").unlink()
    assert steps > 10  # there were that many changes to be killed before
