"""Continuing a run on other images, or with another configuration, says what changed and refuses unless told."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from omnivae.data import DataConfig, load_data
from omnivae.jobs.config import RunConfig
from omnivae.jobs.manifest import MANIFEST, data_changes, write_manifest
from omnivae.jobs.train import train
from omnivae.training import TrainingConfig


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        save(tmp_path / "images" / f"{i:02d}.png", i)
    return tmp_path / "images"


def splits_of(folder):
    return load_data(DataConfig(str(folder)))


def config(folder, **training):
    settings = {"batch_size": 4, "max_steps": 3, "precision": "32", "checkpoint_every": 1}
    model = {"recipe": "conv_vae", "latent_dim": 2, "channels": [4], "norm": "none"}
    losses = {"nll": {"weight": 1.0}, "kl": {"weight": 1.0}}
    return RunConfig(model, DataConfig(str(folder)), losses, TrainingConfig(**settings | training))


def test_the_same_images_have_not_changed(folder, tmp_path):
    write_manifest(tmp_path, splits_of(folder))
    assert data_changes(tmp_path, splits_of(folder)) == []


def test_the_list_is_the_same_bytes_for_the_same_images(folder, tmp_path):
    write_manifest(tmp_path, splits_of(folder))
    first = (tmp_path / MANIFEST).read_bytes()
    write_manifest(tmp_path, splits_of(folder))
    assert (tmp_path / MANIFEST).read_bytes() == first
    assert len(gzip.decompress(first).decode().splitlines()) == 20


@pytest.mark.parametrize("name", ["line\nbreak.png", "line\u2028separator.png", "next\x85line.png", "tab\tstop.png"])
def test_names_with_line_breaks_are_entries_like_any_other(folder, tmp_path, name):
    save(folder / name, 50)
    write_manifest(tmp_path, splits_of(folder))
    assert data_changes(tmp_path, splits_of(folder)) == []
    (folder / name).unlink()
    assert any(change.startswith("1 images gone, such as") for change in data_changes(tmp_path, splits_of(folder)))


def test_what_was_added_changed_and_removed_is_named(folder, tmp_path):
    write_manifest(tmp_path, splits_of(folder))
    save(folder / "new.png", 99)
    save(folder / "03.png", 98)
    (folder / "07.png").unlink()
    changes = data_changes(tmp_path, splits_of(folder))
    assert "1 images added, such as new.png" in changes
    assert "1 images gone, such as 07.png" in changes
    assert "1 images changed, such as 03.png" in changes


def test_a_copy_of_the_images_counts_as_the_same(folder, tmp_path):
    import shutil

    write_manifest(tmp_path, splits_of(folder))
    shutil.copytree(folder, tmp_path / "elsewhere" / "images")
    assert data_changes(tmp_path, splits_of(tmp_path / "elsewhere" / "images")) == []


def test_an_edit_in_the_middle_of_a_large_file_of_the_same_size_is_beyond_a_fingerprint(tmp_path):
    # Stated as it is: the two ends and the size are looked at. The end of a PNG holds a checksum of the pixels before it.
    from omnivae.data.sources import file_fingerprint

    path = tmp_path / "large.bin"
    path.write_bytes(bytes(200_000))
    before = file_fingerprint(path)
    path.write_bytes(bytes(100_000) + b"x" + bytes(99_999))
    assert file_fingerprint(path) == before
    path.write_bytes(bytes(199_999) + b"x")
    assert file_fingerprint(path) != before


def test_a_damaged_list_is_named(folder, tmp_path):
    write_manifest(tmp_path, splits_of(folder))
    (tmp_path / MANIFEST).write_bytes((tmp_path / MANIFEST).read_bytes()[:30])
    with pytest.raises(ValueError, match=r"data\.tsv\.gz is damaged"):
        data_changes(tmp_path, splits_of(folder))


def test_a_run_refuses_other_images_unless_told(folder, tmp_path, caplog):
    train(config(folder), tmp_path / "run", progress=False, report=False)
    save(folder / "new.png", 99)
    with pytest.raises(ValueError, match=r"1 images added, such as new\.png.*--accept_changes true"):
        train(config(folder, max_steps=5), tmp_path / "run", progress=False, report=False)
    with caplog.at_level("WARNING", logger="omnivae"):
        result = train(config(folder, max_steps=5), tmp_path / "run", progress=False, report=False, accept_changes=True)
    assert result.step == 5
    assert any("1 images added" in message for message in caplog.messages)
    # What is there now is what the next continuation is compared with.
    assert train(config(folder, max_steps=6), tmp_path / "run", progress=False, report=False).step == 6


def test_a_run_refuses_another_configuration_unless_told(folder, tmp_path, caplog):
    train(config(folder), tmp_path / "run", progress=False, report=False)
    changed = config(folder, max_steps=5, learning_rate=5e-4)
    with pytest.raises(
        FileExistsError, match=r"training\.learning_rate: 0\.0001 there, 0\.0005 asked.*--accept_changes true"
    ):
        train(changed, tmp_path / "run", progress=False, report=False)
    with caplog.at_level("WARNING", logger="omnivae"):
        assert train(changed, tmp_path / "run", progress=False, report=False, accept_changes=True).step == 5
    assert any("learning_rate" in message for message in caplog.messages)


def test_a_run_from_before_an_option_existed_continues(folder, tmp_path):
    import yaml

    train(config(folder), tmp_path / "run", progress=False, report=False)
    path = tmp_path / "run" / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["data"]["clip"], old["training"]["accumulate"], old["losses"]["nll"]
    old["losses"] = {"nll": {"weight": 1.0}, **old["losses"]}
    path.write_text(yaml.safe_dump(old))
    assert train(config(folder, max_steps=4), tmp_path / "run", progress=False, report=False).step == 4


def test_what_cannot_change_a_result_may_differ(folder, tmp_path):
    train(config(folder), tmp_path / "run", progress=False, report=False)
    other = config(folder, max_steps=4, on_nonfinite="skip", log_every=2)
    other.data = DataConfig(str(folder), cache=False, verify="headers", num_workers=0)
    assert train(other, tmp_path / "run", progress=False, report=False).step == 4


def test_another_model_is_refused_even_then(folder, tmp_path):
    train(config(folder), tmp_path / "run", progress=False, report=False)
    changed = config(folder, max_steps=5)
    changed.model["latent_dim"] = 3
    with pytest.raises(FileExistsError, match=r"a run of another model \(model\.latent_dim: 2 there, 3 asked\)"):
        train(changed, tmp_path / "run", progress=False, report=False, accept_changes=True)


def test_files_that_were_left_out_are_listed_at_the_end(folder, tmp_path, caplog):
    (folder / "05.png").write_bytes(b"no picture")
    leaving_out = replace(config(folder), data=DataConfig(str(folder), on_error="skip"))
    with caplog.at_level("WARNING", logger="omnivae"):
        train(leaving_out, tmp_path / "run", progress=False, report=False)
    assert "1 files could not be read and were left out of this run" in caplog.messages[-1]
    ((name, reason),) = [line.split("\t") for line in (tmp_path / "run" / "skipped.tsv").read_text().splitlines()]
    assert name.endswith("05.png")
    assert reason


def test_a_place_that_cannot_be_written_to_is_named(folder):
    with pytest.raises(OSError, match="cannot write /proc/run/"):
        train(config(folder), "/proc/run", progress=False, report=False)
