import errno
import logging
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from omnivae.data import DataConfig, load_data


def write(path, size=(8, 6), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_many(root, count, **options):
    for i in range(count):
        write(root / f"{i:03d}.png", seed=i, **options)


def keys(splits):
    return {name: set(getattr(splits, name).keys) for name in ("train", "val", "test")}


def test_split_is_deterministic_exact_and_disjoint(tmp_path):
    write_many(tmp_path, 40)
    splits = load_data(DataConfig(str(tmp_path), val_fraction=0.2, test_fraction=0.1))
    parts = keys(splits)
    assert {name: len(part) for name, part in parts.items()} == {"train": 28, "val": 8, "test": 4}
    assert parts["train"] | parts["val"] | parts["test"] == {f"{i:03d}.png" for i in range(40)}
    again = load_data(DataConfig(str(tmp_path), val_fraction=0.2, test_fraction=0.1))
    assert again.train.keys == splits.train.keys
    other = load_data(DataConfig(str(tmp_path), val_fraction=0.2, test_fraction=0.1, split_seed=1))
    assert keys(other)["val"] != parts["val"]
    few = load_data(DataConfig(str(tmp_path), val_fraction=0.2, test_fraction=0.1, limit=3))
    assert few.train.keys == splits.train.keys[:3]
    assert few.native.counts == {"train": 3, "val": 3, "test": 3}


@pytest.mark.parametrize("count", [3, 4, 5])
def test_small_folders_have_an_image_in_each_split(tmp_path, count):
    write_many(tmp_path, count)
    parts = keys(load_data(DataConfig(str(tmp_path), val_fraction=0.49, test_fraction=0.49)))
    assert min(len(part) for part in parts.values()) >= 1
    assert sum(len(part) for part in parts.values()) == count


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_serve_in_all_splits(tmp_path, count, caplog):
    write_many(tmp_path, count)
    with caplog.at_level(logging.WARNING):
        parts = keys(load_data(DataConfig(str(tmp_path))))
    assert len(parts["train"]) == count
    assert parts["train"] == parts["val"] == parts["test"]
    assert f"too few training images to split ({count}): val and test use the same ones" in caplog.text


def test_a_single_file(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    assert load_data(DataConfig(str(tmp_path / "a.png"))).train.keys == ["a.png"]
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"a\.txt is text, and images are needed here"):
        load_data(DataConfig(str(tmp_path / "a.txt")))
    (tmp_path / "a.mp3").write_text("a")
    with pytest.raises(ValueError, match=r"a\.mp3 is not an image file \(expected \.png"):
        load_data(DataConfig(str(tmp_path / "a.mp3")))


def test_class_folders_become_labels(tmp_path):
    for name in ("cat", "ant", "bee"):
        write_many(tmp_path / name, 4)
    splits = load_data(DataConfig(str(tmp_path)))
    assert splits.classes == ["ant", "bee", "cat"]
    for i, key in enumerate(splits.train.keys):
        assert splits.classes[splits.train.labels[i]] == key.split("/")[0]
        assert splits.train[i]["label"].dtype == torch.int64
        assert splits.train[i]["label"] == splits.train.labels[i]
    write(tmp_path / "loose.png")
    unlabelled = load_data(DataConfig(str(tmp_path)))
    assert unlabelled.classes is None
    assert unlabelled.train.labels is None
    assert "label" not in unlabelled.train[0]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders_are_used(tmp_path, name):
    for split, count in (("train", 10), (name, 3)):
        for label in ("x", "y"):
            write_many(tmp_path / split / label, count)
    splits = load_data(DataConfig(str(tmp_path)))
    assert len(splits.val) == 6
    assert all(key.startswith(f"{name}/") for key in splits.val.keys)
    assert (len(splits.train), len(splits.test)) == (18, 2)
    assert all(key.startswith("train/") for key in splits.train.keys + splits.test.keys)
    assert splits.classes == ["x", "y"]


def test_images_beside_split_folders_are_reported(tmp_path, caplog):
    for part in ("train", "test", "other"):
        write_many(tmp_path / part, 5)
    with caplog.at_level(logging.WARNING):
        splits = load_data(DataConfig(str(tmp_path)))
    assert "5 images outside of them are not used, e.g. other/000.png" in caplog.text
    assert not any("other" in key for part in keys(splits).values() for key in part)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "TEST"), ("train", "testing")])
def test_split_folders_by_other_words_are_no_classes(tmp_path, names):
    for folder, count in zip(names, (10, 4), strict=True):
        for kind in ("cat", "dog"):
            write_many(tmp_path / folder / kind, count // 2)
    splits = load_data(DataConfig(str(tmp_path)))
    assert splits.classes == ["cat", "dog"]
    assert splits.official_test
    assert {key.split("/")[0] for key in splits.test.keys} == {names[1]}
    assert len(splits.test) == 4
    assert {key.split("/")[0] for key in splits.train.keys + splits.val.keys} == {names[0]}


def test_two_training_folders_are_refused(tmp_path):
    for folder in ("train", "Training", "test"):
        write_many(tmp_path / folder, 2)
    with pytest.raises(ValueError, match=r"both Training/ and train/ as training split"):
        load_data(DataConfig(str(tmp_path)))


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    write_many(tmp_path / "open", 4)
    write_many(tmp_path / "closed", 4)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"closed cannot be listed \(Permission denied\)"):
        load_data(DataConfig(str(tmp_path)))


def test_a_name_that_is_no_text_is_shown(tmp_path):
    write_many(tmp_path, 4)
    try:
        os.rename(tmp_path / "000.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system refuses such names itself")
    with pytest.raises(ValueError, match=r"no valid UTF-8 \(caf\\xe9\.png\): rename it"):
        load_data(DataConfig(str(tmp_path)))


def test_a_folder_train_among_others_is_a_class(tmp_path):
    for name in ("train", "bus"):
        write_many(tmp_path / name, 3)
    assert load_data(DataConfig(str(tmp_path))).classes == ["bus", "train"]


def test_two_validation_folders_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        write_many(tmp_path / name, 3)
    with pytest.raises(ValueError, match=r"both val/ and valid/ as validation split: rename or remove one"):
        load_data(DataConfig(str(tmp_path)))


def test_held_out_folders_without_a_train_folder_are_refused(tmp_path):
    for name in ("test", "val"):
        write_many(tmp_path / name, 3)
    with pytest.raises(ValueError, match=r"has test and val but no train folder: add it, or give data\.path one"):
        load_data(DataConfig(str(tmp_path)))
    assert load_data(DataConfig(str(tmp_path / "val"))).native.counts == {"train": 1, "val": 1, "test": 1}


def test_sixteen_bit_colour_is_read_in_full(tmp_path, caplog):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)  # 1 x 1, 16 bits, RGB
    row = b"\0" + struct.pack(">HHH", 65535, 0, 32769)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    with caplog.at_level(logging.WARNING):
        splits = load_data(DataConfig(str(tmp_path)), value_range=(0.0, 1.0))
    assert splits.train[0]["x"].flatten().tolist() == pytest.approx([1.0, 0.0, 32769 / 65535], abs=1e-7)
    assert (splits.native.bit_depth, splits.native.dtypes) == (16, {"uint16": 1})
    assert "8 bits" not in caplog.text


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*gone.*digits, photos, dsprites"):
        load_data(DataConfig(str(tmp_path / "gone")))
    with pytest.raises(FileNotFoundError, match="did you mean 'photos'"):
        load_data(DataConfig("photo"))
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"the folder .*empty is empty: looked for \.png, \.jpg"):
        load_data(DataConfig(str(tmp_path / "empty")))


def test_folder_without_an_image_says_what_is_there(tmp_path):
    for name in ("a.txt", "b.txt", "c.wav", "d", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"no image in .*looked for \.png, .*found 4 other files \(2 \.txt, 1 \.wav, 1 no suffix\)"
    ):
        load_data(DataConfig(str(tmp_path)))


def test_mixed_channels_name_counts(tmp_path):
    write_many(tmp_path, 5)
    write(tmp_path / "grey.png", mode="L")
    write(tmp_path / "grey2.png", mode="L")
    with pytest.raises(ValueError, match=r"5 images have 3 channels, 2 have 1: set data\.channels to 1 or 3"):
        load_data(DataConfig(str(tmp_path)))
    splits = load_data(DataConfig(str(tmp_path), channels=1))
    assert splits.channels == 1
    assert {splits.train[i]["x"].shape for i in range(len(splits.train))} == {(1, 6, 8)}
    assert splits.native.channels == {3: 5, 1: 2}


def test_mixed_sizes_need_image_size(tmp_path):
    write(tmp_path / "a.png", size=(20, 30))
    write(tmp_path / "b.png", size=(50, 40))
    write(tmp_path / "c.png", size=(25, 35))
    with pytest.raises(
        ValueError,
        match=r"3 different sizes, 30 to 40 pixels high and 20 to 50 wide: set data\.image_size .*e\.g\. 16",
    ):
        load_data(DataConfig(str(tmp_path)))
    splits = load_data(DataConfig(str(tmp_path), image_size=16))
    assert splits.image_size == (16, 16)
    assert splits.train[0]["x"].shape == (3, 16, 16)
    native = splits.native
    assert (native.min_size, native.median_size, native.max_size) == ((30, 20), (35, 25), (40, 50))


def test_damaged_files_are_named_at_once_or_when_read(tmp_path):
    write_many(tmp_path, 4, size=(64, 64))
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"1 of 5 images is not usable: .*bad\.jpg is damaged or not an image"):
        load_data(DataConfig(str(tmp_path)))
    (tmp_path / "bad.jpg").unlink()
    path = tmp_path / "002.png"
    pixels = bytearray(path.read_bytes())
    pixels[3000] ^= 255
    path.write_bytes(pixels)
    with pytest.raises(ValueError, match=r"1 of 4 images is not usable: .*002\.png is damaged and cannot be decoded"):
        load_data(DataConfig(str(tmp_path)))
    splits = load_data(DataConfig(str(tmp_path), verify="headers"))
    items = [(part, i) for part in (splits.train, splits.val, splits.test) for i in range(len(part))]
    part, i = next((part, i) for part, i in items if part.keys[i] == "002.png")
    with pytest.raises(ValueError, match=r"002\.png is damaged and cannot be decoded"):
        part[i]


def test_one_pixel_images(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.png", size=(1, 1))
    splits = load_data(DataConfig(str(tmp_path)))
    assert splits.image_size == (1, 1)
    assert splits.train[0]["x"].shape == (3, 1, 1)


def test_links_are_followed_but_not_in_circles(tmp_path):
    for i in range(3):
        write(tmp_path / "train" / f"{i}.png")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "up").symlink_to(tmp_path)
    splits = load_data(DataConfig(str(tmp_path)))
    assert sorted(keys(splits)["val"]) == ["val/0.png", "val/1.png", "val/2.png"]
