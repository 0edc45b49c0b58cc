import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omnivae.data import DataConfig, collate, load_data
from omnivae.data.shards import expand_braces, shard_permutation
from omnivae.training.order import EpochView, StepOrder


def png(value, size=8, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, dtype=np.uint8)).save(file, form)
    return file.getvalue()


def write_tar(path, members, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder, *, shards=3, images=4, prefix="part"):
    """Shard s holds images 10 s, 10 s + 1, ... as grey values, the same number as text, and s as entry of a JSON file."""
    for s in range(shards):
        members = []
        for i in range(images):
            value = 10 * s + i
            members += [(f"{i:04d}.png", png(value)), (f"{i:04d}.cls", str(i).encode())]
            members.append((f"{i:04d}.json", json.dumps({"shard": f"s{s}", "half": 0.5}).encode()))
        write_tar(folder / f"{prefix}-{s:03d}.tar", members)
    return folder


def values(dataset):
    return [round(float(item["x"].mean()) * 255) for item in (dataset[i] for i in range(len(dataset)))]


def test_samples_are_read_where_they_lie(tmp_path):
    splits = load_data(DataConfig(str(write_shards(tmp_path))), value_range=(0.0, 1.0))
    parts = [splits.train, splits.val, splits.test]
    assert sum(map(len, parts)) == 12
    for part in parts:
        for key, value, label in zip(part.keys, values(part), part.labels, strict=True):
            assert key == f"part-{value // 10:03d}/{value % 10:04d}.png"
            assert label == value % 10
    assert splits.classes == ["0", "1", "2", "3"]


def test_labels_from_json(tmp_path):
    write_shards(tmp_path)
    splits = load_data(DataConfig(str(tmp_path), label_column="shard"))
    assert splits.classes == ["s0", "s1", "s2"]
    assert all(
        key.startswith(f"part-00{label}") for key, label in zip(splits.train.keys, splits.train.labels, strict=True)
    )
    with pytest.raises(ValueError, match=r"part-000/0000\.png: its \.json has no entry 'shart' \(it has shard, half\)"):
        load_data(DataConfig(str(tmp_path), label_column="shart"))
    with pytest.raises(ValueError, match=r"got the label 0\.5; expected whole numbers or names"):
        load_data(DataConfig(str(tmp_path), label_column="half"))


def test_splits_by_file_name_or_folder(tmp_path):
    for name in ("imagenet-train-0.tar", "imagenet-train-1.tar", "imagenet-val-0.tar"):
        write_tar(tmp_path / "names" / name, [(f"{i}.png", png(i)) for i in range(5)])
    splits = load_data(DataConfig(str(tmp_path / "names")))
    assert {key.split("/")[0] for key in splits.val.keys} == {"imagenet-val-0"}
    assert len(splits.train) + len(splits.test) == 10
    for name in ("train/0.tar", "validation/0.tar", "test/0.tar"):
        write_tar(tmp_path / "folders" / name, [(f"{i}.png", png(i)) for i in range(5)])
    splits = load_data(DataConfig(str(tmp_path / "folders")))
    assert sorted(splits.test.keys) == [f"test/0/{i}.png" for i in range(5)]
    write_tar(tmp_path / "folders" / "more.tar", [("0.png", png(0))])
    with pytest.raises(ValueError, match=r"some files are named after splits, but more\.tar not"):
        load_data(DataConfig(str(tmp_path / "folders")))


def test_patterns(tmp_path):
    write_shards(tmp_path)
    for pattern, count in (
        ("part-{000..001}.tar", 8),
        ("part-{000,002}.tar", 8),
        ("part-*.tar", 12),
        ("part-001.tar", 4),
    ):
        splits = load_data(DataConfig(str(tmp_path / pattern)))
        assert len(splits.train) + len(splits.val) + len(splits.test) == count
    with pytest.raises(
        FileNotFoundError, match=r"no such tar shards: .*part-003\.tar, .*part-004\.tar; correct data\.path"
    ):
        load_data(DataConfig(str(tmp_path / "part-{002..004}.tar")))
    with pytest.raises(FileNotFoundError, match=r"no such tar shards: .*none-\*\.tar"):
        load_data(DataConfig(str(tmp_path / "none-*.tar")))


def test_braces():
    assert expand_braces("a-{1..3}") == ["a-1", "a-2", "a-3"]
    assert expand_braces("{a,b}-{09..10}") == ["a-09", "a-10", "b-09", "b-10"]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_long_names(tmp_path, form):
    folder = "/".join(["folder" * 3] * 6)
    path = write_tar(tmp_path / "a.tar", [(f"./{folder}/{i:03d}.png", png(i)) for i in range(5)], form)
    splits = load_data(DataConfig(str(path)), value_range=(0.0, 1.0))
    for part in (splits.train, splits.val, splits.test):
        assert part.keys == [f"a/{folder}/{value:03d}.png" for value in values(part)]


def test_names_that_point_elsewhere_name_nothing_outside(tmp_path):
    names = ["../../up.png", "/absolute.png", "a/../../b.png", "in.png", "x.png"]
    splits = load_data(DataConfig(str(write_tar(tmp_path / "a.tar", [(name, png(i)) for i, name in enumerate(names)]))))
    keys = splits.train.keys + splits.val.keys + splits.test.keys
    assert sorted(keys) == ["a/absolute.png", "a/b.png", "a/in.png", "a/up.png", "a/x.png"]


def test_hidden_members_are_left_out_and_capitals_read(tmp_path):
    members = [("._0.png", b"fork of a resource"), ("README", b"text")]
    path = write_tar(tmp_path / "a.tar", [*members, *((f"{i}.PNG", png(i)) for i in range(4))])
    assert len(load_data(DataConfig(str(path))).train) == 2


@pytest.mark.parametrize("cut", [0.2, 0.45, 0.7])  # the last fifth is padding
def test_truncated_shards_are_named(tmp_path, cut):
    path = write_shards(tmp_path, images=10) / "part-001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(ValueError, match=r"part-001\.tar is (damaged or )?truncated"):
        load_data(DataConfig(str(tmp_path)))


def test_a_shard_cut_between_two_members_is_named(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("0.png", png(0)), ("1.png", png(1)), ("2.png", png(2))])
    with tarfile.open(path) as tar:
        end = tar.getmember("2.png").offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=rf"a\.tar is damaged or truncated at byte {end}"):
        load_data(DataConfig(str(path)))


def test_a_damaged_header_in_the_middle_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("1.png", png(1)), ("2.png", png(2))])
    with tarfile.open(path) as tar:
        offset = tar.getmember("1.png").offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar is damaged or truncated"):
        load_data(DataConfig(str(path)))


def test_what_is_no_plain_shard_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", png(0))])
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed.*decompress it"):
        load_data(DataConfig(str(packed)))
    with pytest.raises(ValueError, match="expected data on this machine"):
        load_data(DataConfig("https://host/a-{0..1}.tar"))
    (tmp_path / "b.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"b\.tar is truncated or not a tar file"):
        load_data(DataConfig(str(tmp_path / "b.tar")))


def test_samples_that_cannot_be_used(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.png", png(1))])
    with pytest.raises(ValueError, match=r"a\.tar has two members 0\.png: every sample needs a name of its own"):
        load_data(DataConfig(str(path)))
    path = write_tar(tmp_path / "b.tar", [("0.png", png(0)), ("0.mask.png", png(1))])
    with pytest.raises(ValueError, match=r"the sample 0 has several images \(mask\.png, png\): set data\.image_column"):
        load_data(DataConfig(str(path)))
    path = write_tar(tmp_path / "c.tar", [("0.png", png(0)), ("1.txt", b"a caption")])
    with pytest.raises(ValueError, match=r"1 of 2 samples have no image, e\.g\. 1 \(txt\)"):
        load_data(DataConfig(str(path)))
    path = write_tar(tmp_path / "d.tar", [("0.txt", b"a"), ("1.txt", b"b")])
    with pytest.raises(ValueError, match=r"d\.tar holds no image \(.*\); it holds 2 \.txt"):
        load_data(DataConfig(str(path)))
    path = write_tar(tmp_path / "e.tar", [("0.png", png(0)), ("0.cls", b"1"), ("1.png", png(0))])
    with pytest.raises(ValueError, match=r"1 of 2 samples have no label cls, e\.g\. e/1\.png"):
        load_data(DataConfig(str(path)))


def test_the_suffix_of_the_image_can_be_said(tmp_path):
    path = write_tar(
        tmp_path / "b.tar", [m for i in range(4) for m in ((f"{i}.png", png(i)), (f"{i}.mask.png", png(9)))]
    )
    splits = load_data(DataConfig(str(path), image_column="mask.png"), value_range=(0.0, 1.0))
    assert values(splits.train) == [9, 9]


def test_a_damaged_image_is_named_or_left_out(tmp_path):
    write_tar(tmp_path / "a.tar", [*((f"{i}.png", png(i)) for i in range(5)), ("bad.png", png(7)[:-30])])
    with pytest.raises(ValueError, match=r"1 of 6 images is not usable: a/bad\.png is damaged"):
        load_data(DataConfig(str(tmp_path)))
    splits = load_data(DataConfig(str(tmp_path), on_error="skip"))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 5
    assert [name for name, _ in splits.skipped] == ["a/bad.png"]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), max_size=12),
    seed=st.integers(0, 100),
    epoch=st.integers(0, 5),
    window=st.integers(1, 6),
)
def test_every_image_once_and_only_a_window_of_shards_at_a_time(sizes, seed, epoch, window):
    order = shard_permutation(sizes, seed=seed, epoch=epoch, window=window)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert np.array_equal(order, shard_permutation(sizes, seed=seed, epoch=epoch, window=window))
    shard = np.repeat(np.arange(len(sizes)), sizes)[order]
    spans = [np.flatnonzero(shard == s) for s in range(len(sizes)) if sizes[s]]
    for place in range(len(order)):
        assert sum(span[0] <= place <= span[-1] for span in spans) <= window


def test_orders_differ_and_mix():
    sizes = [100] * 8
    first, second = (shard_permutation(sizes, seed=0, epoch=epoch) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, shard_permutation(sizes, seed=1, epoch=0))
    assert len(set((first[:40] // 100).tolist())) == 4
    with pytest.raises(ValueError, match="got window=0"):
        shard_permutation([1], seed=0, epoch=0, window=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch_without_overlap(tmp_path, world_size):
    train = load_data(DataConfig(str(write_shards(tmp_path, shards=9, images=7)))).train
    assert train.permutation(0) is not None
    seen = []
    for rank in range(world_size):
        batches = StepOrder(len(train), 2, 8, seed=0, rank=rank, world_size=world_size, permutation=train.permutation)
        seen += [index for batch in batches for epoch, index in batch if epoch == 0]
    per_epoch = len(train) // (2 * world_size) * 2 * world_size
    assert len(seen) == len(set(seen)) == min(per_epoch, 16 * world_size)


def test_validation_images_lie_together_but_are_the_same_ones(tmp_path):
    train_on = DataConfig(str(write_shards(tmp_path, shards=9, images=7)), val_fraction=0.4)
    first, limited = load_data(train_on), load_data(DataConfig(**{**vars(train_on), "limit": 10}))
    assert set(limited.val.keys) < set(first.val.keys)
    shards = [key.split("/")[0] for key in first.val.keys]
    runs = [max(i for i, s in enumerate(shards) if s == name) - shards.index(name) for name in set(shards)]
    assert max(runs) < len(shards) // 2 + 4  # each shard is done within a window, not all along


def test_loading_processes_open_the_shards_themselves(tmp_path):
    train = load_data(DataConfig(str(write_shards(tmp_path)))).train
    expected = [train[i]["x"] for i in range(len(train))]  # this process has shards open
    assert train.source.collection.blobs._open
    sent = pickle.loads(pickle.dumps(train))  # as to a process that was spawned
    assert not sent.source.collection.blobs._open
    assert all(torch.equal(sent[i]["x"], x) for i, x in enumerate(expected))
    order = StepOrder(len(train), 2, 4, seed=0, permutation=train.permutation)
    loader = torch.utils.data.DataLoader(
        EpochView(train), batch_sampler=order, collate_fn=collate, num_workers=2, multiprocessing_context="fork"
    )
    for batch, numbers in zip(loader, order, strict=True):
        assert batch["key"] == [train.keys[i] for _, i in numbers]
        assert torch.equal(batch["x"], torch.stack([expected[i] for _, i in numbers]))


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("omnivae.data.shards._OPEN_FILES", 3)
    splits = load_data(DataConfig(str(write_shards(tmp_path, shards=8))), value_range=(0.0, 1.0))
    assert sorted(v for part in (splits.train, splits.val, splits.test) for v in values(part)) == sorted(
        10 * s + i for s in range(8) for i in range(4)
    )
    assert len(splits.train.source.collection.blobs._open) == 3
