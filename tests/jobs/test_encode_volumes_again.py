"""Stores of volumes that are continued, brought up to date and shared; runs, and the commands."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from store_helpers import contents, keys_on_disk, save_model
from test_reconstruct_volumes import affine_of, scan
from volume_stores import decode, encode

from omnivae import PosteriorStore
from omnivae.cli.main import main
from omnivae.data import DataConfig
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes import read_volume, write_volume
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.jobs.config import RunConfig
from omnivae.jobs.volumes_codec import VolumeCodec
from omnivae.jobs.volumes_reconstruct import reconstruct_volumes
from omnivae.training.config import TrainingConfig

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


# -- continued and brought up to date


def test_the_same_command_encodes_what_is_new_or_changed(toy, scans, tmp_path, caplog):
    encode(toy, scans, tmp_path / "store")
    before = contents(tmp_path / "store")
    again = encode(toy, scans, tmp_path / "store")
    assert (again.encoded, again.copied, again.kept) == (0, 0, 6)
    write_volume(scan(affine_of("RAS"), seed=8), scans / "oblique.nii.gz")
    write_volume(scan(affine_of("RAS"), seed=9), scans / "new.nii.gz")
    (scans / "itk.nrrd").unlink()
    (scans / "tilted.nii.gz").rename(scans / "renamed.nii.gz")
    result = encode(toy, scans, tmp_path / "store")
    assert (result.encoded, result.copied, result.kept, result.removed) == (2, 1, 3, ["itk", "tilted"])
    assert "2 volumes of the store are gone" in caplog.text
    after = contents(tmp_path / "store")
    assert {key for key in before if after.get(key) == before[key]} == {"deep/float", "phantom", "series/series-1"}
    assert after["renamed"] == before["tilted"]
    assert keys_on_disk(tmp_path / "store") == sorted(after)
    # What is written back is the new scan, in the new geometry; what has not changed is not written again.
    encode(toy, scans, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == after


def test_series_that_change_their_number_are_not_encoded_again(toy, tmp_path):
    for number in (1, 2):
        write_dicom(scan(affine_of("LPS"), seed=number), tmp_path / "in" / f"b{number}")
    encode(toy, tmp_path / "in", tmp_path / "store")
    before = contents(tmp_path / "store")
    assert sorted(before) == ["b1/series-1", "b2/series-2"]
    # A series that comes first pushes the numbers of the others up.
    write_dicom(scan(affine_of("tilted"), seed=3), tmp_path / "in" / "a")
    result = encode(toy, tmp_path / "in", tmp_path / "store")
    assert (result.encoded, result.copied, result.removed) == (1, 2, ["b1/series-1", "b2/series-2"])
    after = contents(tmp_path / "store")
    assert sorted(after) == ["a/series-1", "b1/series-2", "b2/series-3"]
    assert (after["b1/series-2"], after["b2/series-3"]) == (before["b1/series-1"], before["b2/series-2"])
    encode(toy, tmp_path / "in", tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "store")


def test_voxels_beside_their_header_count_as_content(toy, tmp_path):
    import SimpleITK as sitk

    (tmp_path / "in").mkdir()

    def save(name, seed):
        array = np.random.default_rng(seed).integers(-1000, 1000, (6, 8, 8)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / "in" / name)

    for name in ("a.mhd", "b.nhdr"):
        save(name, 0)
    assert encode(toy, tmp_path / "in", tmp_path / "store").encoded == 2
    headers = {name: (tmp_path / "in" / name).read_bytes() for name in ("a.mhd", "b.nhdr")}
    for name in headers:
        save(name, 1)
        assert (tmp_path / "in" / name).read_bytes() == headers[name]
    result = encode(toy, tmp_path / "in", tmp_path / "store")
    assert (result.encoded, result.kept) == (2, 0)


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(toy, scans, tmp_path, monkeypatch):
    real, calls = VolumeCodec.encode, []

    def stopping(self, seen, *, progress=None):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, seen, progress=progress)

    monkeypatch.setattr(VolumeCodec, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode(toy, scans, tmp_path / "store")
    assert len(PosteriorStore(tmp_path / "store")) == 3
    result = encode(toy, scans, tmp_path / "store")
    assert (result.kept, result.encoded, len(calls)) == (3, 3, 7)
    encode(toy, scans, tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def _encode_slowly(*arguments):
    real = VolumeCodec.encode

    def slow(self, seen, *, progress=None):
        time.sleep(0.05)
        return real(self, seen, progress=progress)

    VolumeCodec.encode = slow
    encode(*arguments, shard_mib=0.0001)


@pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")
def test_killed_runs_end_with_the_store_of_one_that_was_not(toy, tmp_path):
    for number in range(12):
        volume = scan(affine_of("LPS"), seed=number)
        write_volume(volume.with_array(volume.array[..., : 1 + number % 6]), tmp_path / "in" / f"{number:02d}.nii.gz")
    fork, kept = multiprocessing.get_context("fork"), []
    shards = tmp_path / "store" / "shards"
    for _ in range(3):
        before = len(list(shards.glob("*.safetensors"))) if shards.is_dir() else 0
        process = fork.Process(target=_encode_slowly, args=(toy, tmp_path / "in", tmp_path / "store"))
        process.start()
        while process.is_alive() and (not shards.is_dir() or len(list(shards.glob("*.safetensors"))) < before + 2):
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = PosteriorStore(tmp_path / "store")
        assert [store[i]["key"] for i in range(len(store))] == store.keys  # valid at any moment
        kept.append(len(store))
    assert 0 < kept[0] < kept[1] < kept[2] < 12
    result = encode(toy, tmp_path / "in", tmp_path / "store")
    assert (result.kept, result.encoded) == (kept[-1], 12 - kept[-1])
    encode(toy, tmp_path / "in", tmp_path / "uninterrupted")
    assert contents(tmp_path / "store") == contents(tmp_path / "uninterrupted")
    assert not list(shards.glob(".*.tmp"))


def test_processes_share_the_volumes(toy, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        counts.append(encode(toy, scans, tmp_path / "store").encoded)
    assert sum(counts) == 6
    assert all(counts)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    encode(toy, scans, tmp_path / "alone")
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")


def test_decoding_goes_on_and_follows_the_store(toy, scans, tmp_path, monkeypatch):
    encode(toy, scans, tmp_path / "store")
    real, calls = VolumeCodec.decode, []

    def stopping(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    monkeypatch.setattr(VolumeCodec, "decode", stopping)
    with pytest.raises(KeyboardInterrupt):
        decode(tmp_path / "store", toy, tmp_path / "out")
    written = decode(tmp_path / "store", toy, tmp_path / "out")
    assert (len(written), len(calls)) == (6, 7)
    write_volume(scan(affine_of("RAS"), seed=8), scans / "oblique.nii.gz")
    encode(toy, scans, tmp_path / "store")
    decode(tmp_path / "store", toy, tmp_path / "out")
    assert len(calls) == 8
    reconstruct_volumes(toy, [scans / "oblique.nii.gz"], tmp_path / "expected", measure=False, progress=False)
    assert (tmp_path / "out" / "oblique.nii.gz").read_bytes() == (tmp_path / "expected" / "oblique.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="decoded with another sample and seed"):
        decode(tmp_path / "store", toy, tmp_path / "out", sample=True, seed=3)


def test_a_draw_is_a_function_of_seed_and_name(toy, scans, tmp_path):
    encode(toy, scans, tmp_path / "store")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        decode(tmp_path / "store", toy, tmp_path / name, keys=["oblique"], sample=True, seed=seed)
    a, b, c = ((tmp_path / name / "oblique.nii.gz").read_bytes() for name in "abc")
    assert a == b
    assert a != c


# -- runs and the command


@pytest.fixture
def run(toy, scans, tmp_path, monkeypatch):
    """A run of volumes whose own data are the scans; its splits are by folder."""
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path / "cache"))
    for split, name in (
        ("train", "oblique.nii.gz"),
        ("train", "tilted.nii.gz"),
        ("val", "itk.nrrd"),
        ("test", "phantom.mha"),
    ):
        (scans / split).mkdir(exist_ok=True)
        (scans / name).rename(scans / split / name)
    for name in ("deep", "series"):
        shutil.rmtree(scans / name)
    shutil.copytree(toy, tmp_path / "run" / "model")
    config = RunConfig(
        model={"recipe": "maisi_vae"},
        data=DataConfig(str(scans), volume=VolumeConfig(unit="HU", patch_size=4)),
        losses={"l1": {}},
        training=TrainingConfig(),
    )
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    return tmp_path / "run"


def test_a_run_encodes_its_own_volumes_and_their_splits(run, scans, tmp_path):
    encode(run, [], tmp_path / "all")
    store = PosteriorStore(tmp_path / "all")
    assert store.keys == ["test/phantom", "train/oblique", "train/tilted", "val/itk"]
    for part, keys in (("train", ["train/oblique", "train/tilted"]), ("val", ["val/itk"]), ("test", ["test/phantom"])):
        encode(run, [], tmp_path / part, part=part)
        some = PosteriorStore(tmp_path / part)
        assert some.keys == keys
        for key in keys:
            assert torch.equal(some[key]["mean"], store[key]["mean"])
    with pytest.raises(ValueError, match=r"--data\.split test would drop"):
        encode(run, [], tmp_path / "all", part="test")
    # A path of its own is encoded as reconstruct reads it: the same latents.
    encode(run, scans, tmp_path / "path")
    assert contents(tmp_path / "path") == contents(tmp_path / "all")
    for given in ({"series": "1"}, {"time": 0}, {"unit": "HU"}, {"on_gaps": "resample"}):
        with pytest.raises(ValueError, match=f"got --{next(iter(given))} with a split or the volumes of a run"):
            encode(run, [], tmp_path / "more", **given)
    # A split of a path is that of the run's settings, too.
    encode(run, scans, tmp_path / "again", part="train")
    assert PosteriorStore(tmp_path / "again").keys == ["train/oblique", "train/tilted"]


def test_phantoms_by_name(toy, tmp_path):
    result = encode(toy, "ct_phantoms", tmp_path / "store", limit=2)
    assert result.encoded == 2
    assert {len(store_item["input_size"]) for store_item in PosteriorStore(tmp_path / "store")} == {3}


def test_the_commands(toy, scans, tmp_path, capsys):
    own = shutil.copytree(toy, tmp_path / "own")
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    array = read_volume(scans / "oblique.nii.gz").array.copy()
    array[0, 0, 0, :3] = -3024
    write_volume(scan(affine_of("oblique")).with_array(array), scans / "oblique.nii.gz")
    for file in ("tilted.nii.gz", "itk.nrrd", "phantom.mha"):
        (scans / file).unlink()
    assert main(["encode", str(own), "-o", store, str(scans), "--memory", "20MB"]) == 0
    said = capsys.readouterr().out
    assert "3 volumes, 3 encoded, 0 kept" in said
    assert re.search(r"\d of 3 volumes have values outside of the model's window.*at most [\d.]+%", said)
    assert main(["encode", str(own), str(scans), "-o", store]) == 0
    assert "3 volumes, 0 encoded, 3 kept" in capsys.readouterr().out
    assert main(["calibrate", str(own), "--store", store]) == 0
    assert "measured on 3 volumes" in capsys.readouterr().out
    assert main(["decode", store, "-o", out]) == 0
    assert "3 files" in capsys.readouterr().out
    assert main(["reconstruct", str(own), str(scans), "-o", str(tmp_path / "expected"), "--measure", "false"]) == 0
    results = sorted((tmp_path / "expected").rglob("*.nii.gz"))
    assert len(results) == 3
    for path in results:
        # Latents of exact tiles are those of the whole, up to rounding.
        a, b = (nib.load(f).get_fdata() for f in (path, tmp_path / "out" / path.relative_to(tmp_path / "expected")))
        assert np.abs(a - b).max() <= 1


def test_mistakes_are_one_sentence(toy, scans, tmp_path, capsys):
    def refused(*argv):
        assert main([str(a) for a in argv]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    store = tmp_path / "store"
    assert "--data.path" in refused("encode", toy, scans, "-o", store, "--data.path", scans)
    assert "encoded whole" in refused("encode", toy, scans, "-o", store, "--data.image_size", 8)
    assert "not part of a run" in refused("encode", toy, "-o", store)
    assert "nowhere" in refused("encode", toy, tmp_path / "nowhere", "-o", store)
    assert "several volumes are named oblique" in refused("encode", toy, scans / "oblique.nii.gz", scans, "-o", store)
    assert "--store" in refused("calibrate", toy, "--data.path", scans)
    assert not store.exists()
    assert main(["encode", str(toy), str(scans), "-o", str(store)]) == 0
    capsys.readouterr()
    assert "omnivae reconstruct writes DICOM" in refused("decode", store, "-o", tmp_path / "out", "--format", "dicom")
    images = save_model(tmp_path / "images")
    assert "is a volume and the model takes images" in refused(
        "encode", images, scans / "itk.nrrd", "-o", tmp_path / "x"
    )
    assert "--memory, which is for volumes" in refused(
        "encode", images, "digits", "-o", tmp_path / "x", "--memory", "1GB"
    )
    assert "give one path" in refused("encode", images, "a", "b", "-o", tmp_path / "x")
