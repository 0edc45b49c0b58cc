"""A posterior store holds each image once: made, continued, updated, shared among processes, and never half written."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from store_helpers import contents, keys_on_disk, save_model, write_pictures

from omnivae import VAE, PosteriorStore, preprocess_image
from omnivae.data.latents import read_shard
from omnivae.jobs import store as store_module
from omnivae.jobs.encode import encode_images

SIZES = [(16, 16), (9, 23), (1, 1), (16, 16), (32, 16)]


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures" / "cats", SIZES)
    write_pictures(tmp_path / "pictures" / "dogs", SIZES, seed=1)
    return tmp_path / "pictures"


def encode(model, output, pictures, **arguments):
    return encode_images(model, output, path=str(pictures), progress=False, **arguments)


# -- what is in a store


def test_an_entry_is_the_posterior_of_its_image(model, pictures, tmp_path):
    result = encode(model, tmp_path / "store", pictures)
    assert (result.encoded, result.kept, result.removed) == (10, 0, [])
    store = PosteriorStore(tmp_path / "store")
    assert store.keys == sorted(f"{c}/{i:03d}.png" for c in ("cats", "dogs") for i in range(5))
    loaded = VAE.from_pretrained(model)
    for key in store.keys:
        with torch.no_grad():
            posterior = loaded.encode(preprocess_image(pictures / key))
        item = store[key]
        torch.testing.assert_close(item["mean"], posterior.mean[0])
        torch.testing.assert_close(item["logvar"], posterior.logvar[0])
        assert item["input_size"] == posterior.input_size
        assert item["label"] == ["cats", "dogs"].index(key.split("/")[0])
    assert store.classes == ["cats", "dogs"]


def test_latents_of_different_shapes_share_a_shard(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    assert len(list((tmp_path / "store" / "shards").iterdir())) == 1
    store = PosteriorStore(tmp_path / "store")
    assert len({store.latent_shape(i) for i in range(len(store))}) == 4


def test_a_store_says_what_its_latents_are(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures, image_size=16)
    info = json.loads((tmp_path / "store" / "store.json").read_text())
    assert info["model"]["sha256"] == store_module.PosteriorStore(tmp_path / "store").model_hash
    assert len(info["model"]["sha256"]) == 64
    assert info["transform"]["shape"] == [3, 16, 16]
    assert info["transform"]["resize"]
    assert info["dtype"] == "float32"
    assert info["precision"] == "32"
    assert str(pictures) == info["recipe"]["data"]


def test_the_batch_size_and_loading_processes_change_a_latent_by_rounding_only(model, pictures, tmp_path):
    encode(model, tmp_path / "one", pictures, batch_size=1)
    encode(model, tmp_path / "many", pictures, batch_size=7)
    encode(model, tmp_path / "processes", pictures, batch_size=7, num_workers=2)
    assert contents(tmp_path / "many") == contents(tmp_path / "processes")
    one, many = PosteriorStore(tmp_path / "one"), PosteriorStore(tmp_path / "many")
    for key in one.keys:
        for name in ("mean", "logvar"):
            torch.testing.assert_close(one[key][name], many[key][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_smaller_dtypes_round(model, pictures, tmp_path, dtype, tolerance):
    encode(model, tmp_path / "full", pictures)
    encode(model, tmp_path / "small", pictures, dtype=dtype)
    full, small = PosteriorStore(tmp_path / "full"), PosteriorStore(tmp_path / "small")
    for key in full.keys:
        assert small[key]["mean"].dtype == torch.float32
        torch.testing.assert_close(small[key]["mean"], full[key]["mean"], rtol=tolerance, atol=tolerance)
    sizes = [sum(f.stat().st_size for f in (tmp_path / s / "shards").iterdir()) for s in ("full", "small")]
    assert sizes[1] < sizes[0]


def scaled_model(directory, factor):
    loaded = VAE.from_pretrained(save_model(directory))
    loaded.posterior.projection.weight.data[:4] *= factor
    loaded.save_pretrained(directory)
    return directory


def test_values_beyond_the_dtype_stop_the_run_and_name_the_image(pictures, tmp_path):
    model = scaled_model(tmp_path / "m", 1e7)
    with pytest.raises(ValueError, match=r"cats/\d+\.png reaches .* float16 .*float32 or bfloat16"):
        encode(model, tmp_path / "store", pictures, dtype="float16")
    encode(model, tmp_path / "wide", pictures, dtype="bfloat16")


def test_posteriors_that_are_not_finite_stop_the_run_and_name_the_image(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"\.png has NaN or infinite"):
        encode(scaled_model(tmp_path / "m", float("inf")), tmp_path / "store", pictures)


def test_vector_latents_prepare_images_as_in_training(tmp_path):
    model = save_model(tmp_path / "vector", latent="vector")
    small = write_pictures(tmp_path / "small", [(16, 16), (9, 12)])
    encode(model, tmp_path / "store", small, image_size=16)
    store = PosteriorStore(tmp_path / "store")
    assert store.latent_shape(0) == (4,)
    assert store.input_size(1) == (16, 16)
    with pytest.raises(ValueError, match=r"large|32x32.*vector latent"):
        encode(model, tmp_path / "no", write_pictures(tmp_path / "large", [(32, 32)] * 3))


def test_images_of_other_channels_are_named(model, tmp_path):
    grey = write_pictures(tmp_path / "grey", [(16, 16)] * 3, channels=1)
    with pytest.raises(ValueError, match=r"000\.png has 1 channels and the model takes 3.*data\.channels"):
        encode(model, tmp_path / "store", grey)
    assert encode(model, tmp_path / "store", grey, channels=3).encoded == 3


def test_splits_can_be_encoded_apart(model, pictures, tmp_path):
    found = [set(), set(), set()]
    for keys, part in zip(found, ("train", "val", "test"), strict=True):
        encode(model, tmp_path / part, pictures, part=part)
        keys.update(PosteriorStore(tmp_path / part).keys)
    assert len(set.union(*found)) == 10 == sum(map(len, found))


# -- continued and brought up to date


def shards_of(path):
    return {file.name: file.stat().st_mtime_ns for file in (path / "shards").iterdir()}


def test_the_same_command_again_encodes_nothing(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    before = shards_of(tmp_path / "store")
    again = encode(model, tmp_path / "store", pictures)
    assert (again.encoded, again.kept) == (0, 10)
    assert shards_of(tmp_path / "store") == before


def test_one_changed_file_is_one_encoded_image(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    before = contents(tmp_path / "store")
    write_pictures(pictures / "cats", [(12, 12)], seed=9, start=3)
    result = encode(model, tmp_path / "store", pictures)
    assert (result.encoded, result.kept, result.removed) == (1, 9, [])
    after = contents(tmp_path / "store")
    assert {key for key in after if after[key] != before[key]} == {"cats/003.png"}
    assert after["cats/003.png"][2] == (12, 12)
    encode(model, tmp_path / "fresh", pictures, batch_size=1)
    assert PosteriorStore(tmp_path / "fresh").data_hash() == PosteriorStore(tmp_path / "store").data_hash()
    # The replaced latent is gone from the disk too, not only from the index.
    assert keys_on_disk(tmp_path / "store") == sorted(after)


def test_new_files_are_added_and_gone_ones_reported_and_dropped(model, pictures, tmp_path, caplog):
    encode(model, tmp_path / "store", pictures)
    before = contents(tmp_path / "store")
    (pictures / "dogs" / "002.png").unlink()
    write_pictures(pictures / "dogs", [(8, 8), (16, 16)], seed=5, start=7)
    result = encode(model, tmp_path / "store", pictures)
    assert (result.encoded, result.kept, result.removed) == (2, 9, ["dogs/002.png"])
    assert "dogs/002.png" in caplog.text
    after = contents(tmp_path / "store")
    assert keys_on_disk(tmp_path / "store") == sorted(after)
    assert set(after) == set(before) - {"dogs/002.png"} | {"dogs/007.png", "dogs/008.png"}
    assert all(after[key] == before[key] for key in set(after) & set(before))


def test_renamed_and_relabelled_files_are_copied_not_encoded(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    before = contents(tmp_path / "store")
    (pictures / "cats" / "000.png").rename(pictures / "dogs" / "moved.png")
    result = encode(model, tmp_path / "store", pictures)
    assert (result.encoded, result.copied, result.kept, result.removed) == (0, 1, 9, ["cats/000.png"])
    assert contents(tmp_path / "store")["dogs/moved.png"][:4] == before["cats/000.png"][:4]
    assert PosteriorStore(tmp_path / "store")["dogs/moved.png"]["label"] == 1


def test_labels_stay_right_when_a_class_is_added(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    write_pictures(pictures / "birds", [(8, 8)], seed=5)
    assert encode(model, tmp_path / "store", pictures).kept == 10
    store = PosteriorStore(tmp_path / "store")
    assert store.classes == ["birds", "cats", "dogs"]
    assert [int(store[key]["label"]) for key in ("birds/000.png", "cats/000.png", "dogs/000.png")] == [0, 1, 2]


def test_many_small_additions_do_not_leave_many_shards(model, tmp_path):
    pictures = tmp_path / "pictures"
    for i in range(4):
        write_pictures(pictures, [(16, 16)], seed=i, start=i)
        encode(model, tmp_path / "store", pictures)
    assert len(shards_of(tmp_path / "store")) == 1
    assert len(PosteriorStore(tmp_path / "store")) == 4


def test_small_shards_are_filled_one_after_the_other(model, tmp_path):
    pictures = write_pictures(tmp_path / "pictures", [(16, 16)] * 12)
    encode(model, tmp_path / "store", pictures, batch_size=2, shard_mib=0.0005)
    assert len(shards_of(tmp_path / "store")) > 3
    encode(model, tmp_path / "whole", pictures, batch_size=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert not [f for f in (tmp_path / "store" / "shards").iterdir() if f.suffix != ".safetensors"]


# -- refused


def test_a_store_of_something_else_is_refused(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=r"latents of VAE in tiny \(\w{12}\), not of VAE in other \(\w{12}\); .*--output"
    ):
        encode(other, tmp_path / "store", pictures)
    with pytest.raises(ValueError, match=r"resize=False.*resize=True|resize=True.*resize=False"):
        encode(model, tmp_path / "store", pictures, image_size=8)
    with pytest.raises(ValueError, match="dtype float32, not with dtype float16"):
        encode(model, tmp_path / "store", pictures, dtype="float16")
    with pytest.raises(ValueError, match="precision 32, not with precision bf16"):
        encode(model, tmp_path / "store", pictures, precision="bf16")


def test_other_images_do_not_empty_a_store(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    before = contents(tmp_path / "store")
    elsewhere = write_pictures(tmp_path / "elsewhere", [(16, 16)] * 3)
    with pytest.raises(ValueError, match=r"none of the 10 images .* another --output"):
        encode(model, tmp_path / "store", elsewhere)
    assert contents(tmp_path / "store") == before


def test_a_folder_of_something_else_is_left_alone(model, pictures, tmp_path):
    with pytest.raises(FileExistsError, match="something else"):
        encode(model, pictures, pictures)
    assert not (pictures / "store.json").exists()


def test_two_writers_at_once_are_refused(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    with (
        store_module.locked(tmp_path / "store"),
        pytest.raises(BlockingIOError, match="another `omnivae encode` is writing"),
    ):
        encode(model, tmp_path / "store", pictures)


def test_a_damaged_shard_is_named(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    shard = next((tmp_path / "store" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is damaged .* delete it"):
        encode(model, tmp_path / "store", pictures)
    shard.unlink()
    assert encode(model, tmp_path / "store", pictures).encoded == 10


def test_a_damaged_image_stops_the_run_by_name_and_keeps_what_was_done(model, pictures, tmp_path):
    whole = Image.open(pictures / "dogs" / "004.png")
    assert whole.size == (16, 32)  # the last batch: sizes are encoded in ascending order
    data = (pictures / "dogs" / "004.png").read_bytes()
    (pictures / "dogs" / "004.png").write_bytes(data[:200] + bytes(40) + data[240:])
    with pytest.raises(ValueError, match=r"dogs/004\.png"):
        encode(model, tmp_path / "store", pictures, batch_size=1)
    assert len(PosteriorStore(tmp_path / "store")) >= 8
    left_out = encode(model, tmp_path / "store", pictures, batch_size=1, on_error="skip")
    assert left_out.total == 9
    (pictures / "dogs" / "004.png").write_bytes(data)
    assert encode(model, tmp_path / "store", pictures, batch_size=1).encoded == 1


def test_a_full_disk_is_one_sentence_and_leaves_a_valid_store(model, tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", [(16, 16)] * 12)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*: No space left on device.*free some space"):
        encode(model, tmp_path / "store", pictures, batch_size=2, shard_mib=0.0005)
    monkeypatch.undo()
    partial = contents(tmp_path / "store")
    assert 0 < len(partial) < 12
    assert not [f.name for f in (tmp_path / "store" / "shards").iterdir() if f.suffix != ".safetensors"]
    assert encode(model, tmp_path / "store", pictures, batch_size=2).kept == len(partial)
    encode(model, tmp_path / "fresh", pictures, batch_size=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


def test_a_place_that_cannot_be_written_is_one_sentence(model, pictures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*file/store"):
        encode(model, tmp_path / "file" / "store", pictures)


# -- more than one process


def test_processes_share_the_work_and_meet_in_no_shard(model, tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", [(16, 16)] * 20)
    monkeypatch.setenv("WORLD_SIZE", "3")
    counts, seen = [], []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        counts.append(encode(model, tmp_path / "store", pictures, batch_size=1).encoded)
        seen.append(set(PosteriorStore(tmp_path / "store").keys))
    assert sum(counts) == 20
    assert all(counts)
    assert [len(keys) for keys in seen] == np.cumsum(counts).tolist()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    encode(model, tmp_path / "alone", pictures, batch_size=1)
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert keys_on_disk(tmp_path / "store") == PosteriorStore(tmp_path / "alone").keys


def test_processes_at_work_together_name_shards_by_rank_and_do_not_rewrite(model, tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", [(16, 16)] * 20)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "store").mkdir()
    # Rank 0 is still at work: it holds the store too.
    with store_module.locked(tmp_path / "store", rank=0, world_size=2):
        encode(model, tmp_path / "store", pictures)
        assert all(name.startswith("shard-rank001-") for name in shards_of(tmp_path / "store"))
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(BlockingIOError):
            encode(model, tmp_path / "store", pictures)
        monkeypatch.delenv("RANK")
        monkeypatch.delenv("WORLD_SIZE")
        with pytest.raises(BlockingIOError):
            encode(model, tmp_path / "store", pictures)
    # Another number of processes goes on with what is there.
    again = encode(model, tmp_path / "store", pictures)
    assert again.kept > 0
    assert again.kept + again.encoded == 20
    assert keys_on_disk(tmp_path / "store") == PosteriorStore(tmp_path / "store").keys


def test_a_rank_beyond_the_number_of_processes_is_refused(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=2 and WORLD_SIZE=2"):
        encode(model, tmp_path / "store", pictures)


def test_every_shard_tells_by_itself_what_it_holds(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures)
    file = next((tmp_path / "store" / "shards").iterdir())
    shard, store = read_shard(file), PosteriorStore(file)
    assert shard.store["model"] == store.info["model"]
    assert contents(file) == contents(tmp_path / "store")


@pytest.mark.parametrize("narrower", [{"limit": 3}, {"part": "test"}])
def test_a_narrower_choice_does_not_drop_what_it_leaves_out(model, pictures, tmp_path, narrower):
    encode(model, tmp_path / "store", pictures)
    before = len(PosteriorStore(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"--data\.(limit 3|split test) would drop entries"):
        encode(model, tmp_path / "store", pictures, **narrower)
    assert len(PosteriorStore(tmp_path / "store")) == before > 3


def test_a_wider_choice_adds(model, pictures, tmp_path):
    encode(model, tmp_path / "store", pictures, limit=3)
    assert len(PosteriorStore(tmp_path / "store")) == 3
    encode(model, tmp_path / "store", pictures)
    assert len(PosteriorStore(tmp_path / "store")) > 3
