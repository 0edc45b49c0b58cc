"""``omnivae encode``, ``decode`` and ``calibrate`` from the command line: what they print, and one sentence for a mistake."""

import json
import shutil

import pytest

from omnivae import PosteriorStore


@pytest.fixture
def run(spatial_run, tmp_path):
    """A run that may be written to."""
    return shutil.copytree(spatial_run, tmp_path / "run")


def test_a_store_is_written_measured_and_decoded(omnivae, run, make_images, tmp_path):
    folder, store = make_images(tmp_path / "in", [(16, 16), (9, 23), (12, 12)]), tmp_path / "store"
    encoded = omnivae("encode", run, "--data.path", folder, "--output", store)
    assert encoded.code == 0, encoded.err
    assert "3 images, 3 encoded, 0 kept" in encoded.out
    assert "3 images, 0 encoded, 3 kept" in omnivae("encode", run, "--data.path", folder, "--output", store).out
    calibrated = omnivae("calibrate", run, "--store", store)
    assert calibrated.code == 0, calibrated.err
    latent = json.loads((run / "model" / "statistics.json").read_text())["latent"]
    assert f"scale factor {latent['scale_factor']:.5g}, measured on 3 images" in calibrated.out
    decoded = omnivae("decode", store, "--model", run, "--output", tmp_path / "out")
    assert decoded.code == 0, decoded.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in folder.iterdir())


def test_a_run_calibrates_on_its_own_training_images(omnivae, run):
    outcome = omnivae("calibrate", run)
    assert outcome.code == 0, outcome.err
    assert "measured on 20 images" in outcome.out  # 24, less two of validation and two of test


def test_a_run_encodes_its_own_images(omnivae, run, tmp_path):
    outcome = omnivae("encode", run, "--output", tmp_path / "store", "--data.limit", 5, "--dtype", "bfloat16")
    assert outcome.code == 0, outcome.err
    assert len(PosteriorStore(tmp_path / "store")) == 5


def test_mistakes_are_one_sentence(refused, run, make_images, tmp_path):
    folder, store = make_images(tmp_path / "in", [(16, 16)]), tmp_path / "store"
    assert "no model at" in refused("encode", tmp_path, "--data.path", folder, "--output", store)
    assert "nowhere" in refused("encode", run, "--data.path", tmp_path / "nowhere", "--output", store)
    assert "batch_size=0" in refused("encode", run, "--data.path", folder, "--output", store, "--batch_size", 0)
    assert "num_workers=-1" in refused("encode", run, "--data.path", folder, "--output", store, "--num_workers", -1)
    assert "shard_mib=0" in refused("encode", run, "--data.path", folder, "--output", store, "--shard_mib", 0)
    assert "dtype" in refused("encode", run, "--data.path", folder, "--output", store, "--dtype", "int8")
    assert "no posterior store" in refused("decode", tmp_path / "in", "--model", run, "--output", tmp_path / "out")
    assert "--store or --data" in refused("calibrate", run, "--store", store, "--data.limit", 3)
