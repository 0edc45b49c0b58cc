import subprocess
import sys

import numpy as np
import pytest
import torch

from omnivae.data import DataConfig, collate, load_data


def stack(dataset, count=16):
    return torch.stack([dataset[i]["x"] for i in range(min(count, len(dataset)))])


def test_digits_values_and_labels():
    from sklearn.datasets import load_digits

    original = load_digits()
    splits = load_data(DataConfig("digits"), value_range=(0.0, 1.0))
    assert (splits.name, splits.channels, splits.image_size) == ("digits", 1, (8, 8))
    assert splits.native.counts == {"train": 1437, "val": 180, "test": 180}
    item = splits.test[5]
    number = int(item["key"].split("/")[1])
    np.testing.assert_allclose(item["x"][0].numpy(), original.images[number] / 16, atol=1e-7)
    assert item["label"] == original.target[number]
    large = load_data(DataConfig("digits", image_size=32, channels=3))
    assert large.train[0]["x"].shape == (3, 32, 32)
    assert large.train[0]["x"].abs().max() <= 1


def test_configured_value_range_wins():
    assert load_data(DataConfig("digits", value_range=(0.0, 1.0))).value_range == (0.0, 1.0)
    x = stack(load_data(DataConfig("digits")).train)
    assert (x.min(), x.max()) == (-1, 1)


@pytest.mark.parametrize("config", [DataConfig("digits"), DataConfig("mr_phantoms", volume={"patch_size": 16})])
def test_another_range_is_what_loading_with_it_gives(config, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path))
    if config.path == "mr_phantoms":
        monkeypatch.setattr("omnivae.data.volumes.dataset_phantoms.COUNTS", {"mr_phantoms": 3})
    splits, expected = load_data(config).in_range((0.0, 1.0)), load_data(config, value_range=(0.0, 1.0))
    assert (splits.value_range, splits.intensity) == (expected.value_range, expected.intensity)
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(splits, split)[1]["x"], getattr(expected, split)[1]["x"])


def test_photo_crops_depend_on_seed_epoch_and_index_only():
    a, b = (load_data(DataConfig("photos", image_size=32)).train for _ in range(2))
    assert len(a) == 1024
    first = stack(a)
    assert torch.equal(first, stack(b))
    assert not torch.equal(first[0], a[2]["x"])
    a.set_epoch(1)
    assert not torch.equal(first, stack(a))
    a.set_epoch(0)
    assert torch.equal(first, stack(a))
    other = load_data(DataConfig("photos", image_size=32), seed=1).train
    assert not torch.equal(first, stack(other))


def test_held_out_photo_crops_share_no_pixel():
    splits = load_data(DataConfig("photos", image_size=48))
    boxes = splits.train.source.boxes
    covered = np.zeros((2, 427, 640), dtype=int)
    for photo, left, top, right, bottom in boxes[splits.train.indices[:4]]:
        covered[photo, top:bottom, left:right] += 1
    for part in (splits.val, splits.test):
        assert len(part) >= 4
        for photo, left, top, right, bottom in boxes[part.indices]:
            assert (right - left, bottom - top) == (48, 48)
            covered[photo, top:bottom, left:right] += 1
    assert covered.max() == 1
    assert covered[:, :171].all()
    assert covered[:, 256:].all()
    before = stack(splits.val)
    splits.val.set_epoch(7)
    assert torch.equal(before, stack(splits.val))
    assert load_data(DataConfig("photos")).image_size == (64, 64)
    with pytest.raises(ValueError, match=r"crops of up to 142 pixels, got data\.image_size=143"):
        load_data(DataConfig("photos", image_size=143))


def test_flip_mirrors_about_half_of_the_training_images_only():
    plain, flipped = load_data(DataConfig("digits")), load_data(DataConfig("digits", flip=True))
    a, b = stack(plain.train, 200), stack(flipped.train, 200)
    same = [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    mirrored = [torch.equal(x.flip(-1), y) for x, y in zip(a, b, strict=True)]
    assert all(s or m for s, m in zip(same, mirrored, strict=True))
    assert 60 < sum(same) < 140
    assert torch.equal(stack(plain.val), stack(flipped.val))


def test_random_crop_enlarges_what_is_too_small():
    splits = load_data(DataConfig("digits", image_size=12, random_crop=True))
    assert stack(splits.train).shape == (16, 1, 12, 12)
    inside = load_data(DataConfig("digits", image_size=4, random_crop=True)).train
    whole = load_data(DataConfig("digits")).train
    crop, image = inside[0]["x"][0], whole[0]["x"][0]
    places = [(i, j) for i in range(5) for j in range(5)]
    assert any(torch.equal(image[i : i + 4, j : j + 4], crop) for i, j in places)


def test_binarisation():
    grey = stack(load_data(DataConfig("digits"), value_range=(0.0, 1.0)).train)
    threshold = stack(load_data(DataConfig("digits", binarize="threshold"), value_range=(0.0, 1.0)).train)
    assert torch.equal(threshold, (grey >= 0.5).float())
    signed = stack(load_data(DataConfig("digits", binarize="threshold")).train)
    assert set(signed.unique().tolist()) == {-1.0, 1.0}

    splits = load_data(DataConfig("digits", binarize="stochastic"), value_range=(0.0, 1.0))
    draws = []
    for epoch in range(200):
        splits.train.set_epoch(epoch)
        draws.append(stack(splits.train, 4))
    draws = torch.stack(draws)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.mean(0) - grey[:4]).abs().max() < 5 * (0.25 / 200) ** 0.5
    val = stack(splits.val)
    splits.val.set_epoch(3)
    assert torch.equal(val, stack(splits.val))


def test_collate():
    splits = load_data(DataConfig("digits"))
    batch = collate([splits.train[i] for i in range(3)])
    assert batch["x"].shape == (3, 1, 8, 8)
    assert batch["key"] == splits.train.keys[:3]
    assert batch["label"].tolist() == splits.train.labels[:3].tolist()
    assert "label" not in collate([load_data(DataConfig("photos", image_size=8)).train[0]])
    odd = {"x": torch.zeros(1, 4, 4), "key": "odd"}
    with pytest.raises(ValueError, match=r"cannot form a batch: set data\.image_size"):
        collate([splits.train[0], odd])


def test_import_is_light():
    heavy = "{'PIL', 'sklearn', 'pyarrow', 'rich', 'matplotlib', 'lightning', 'scipy'}"
    code = (
        f"import torch, sys; before = set(sys.modules); import omnivae.data; print({heavy} & set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
