import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omnivae.data import DataConfig, load_data


def idx(array):
    magic = 2051 if array.ndim == 3 else 2049
    return magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def folder(parent, name):
    (parent / name).mkdir()
    return parent / name


def write_mnist(folder, *, zipped=True, train=20, test=6):
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        data = idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def write_cifar10(folder, *, counts=(("train-0", 6), ("train-1", 4), ("test", 5))):
    for part, count in counts:
        rows = []
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), 10 * i, dtype=np.uint8)).save(file, "PNG")
            rows.append({"image": {"bytes": file.getvalue(), "path": f"{i}.png"}, "label": i})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_recognised_and_split(tmp_path, zipped):
    arrays = write_mnist(tmp_path, zipped=zipped)
    splits = load_data(DataConfig(str(tmp_path)), value_range=(0.0, 1.0))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 2, 6)
    assert sorted(splits.test.keys) == [f"mnist/test/{i:05d}" for i in range(6)]
    assert all(key.startswith("mnist/train/") for key in splits.train.keys + splits.val.keys)
    i = splits.test.keys.index("mnist/test/00003")
    item = splits.test[i]
    assert item["label"] == 3
    assert np.array_equal((item["x"][0] * 255).round().byte().numpy(), arrays["t10k-images-idx3-ubyte"][3])


def test_truncated_idx(tmp_path):
    write_mnist(tmp_path, zipped=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte holds 15679 bytes.*20 x 28 x 28: it is truncated"):
        load_data(DataConfig(str(tmp_path)))


def test_truncated_gzip(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is truncated or not gzip"):
        load_data(DataConfig(str(tmp_path)))


def test_wrong_magic_and_counts(tmp_path):
    write_mnist(tmp_path, zipped=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    right = labels.read_bytes()
    labels.write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes())
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte starts with 2051; expected the magic number 2049"):
        load_data(DataConfig(str(tmp_path)))
    labels.write_bytes(idx(np.zeros(19, dtype=np.uint8)))
    with pytest.raises(ValueError, match="20 train images but 19 labels"):
        load_data(DataConfig(str(tmp_path)))
    labels.write_bytes(right)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in"):
        load_data(DataConfig(str(tmp_path)))


def test_cifar10_is_recognised_and_split(tmp_path):
    tmp_path = folder(tmp_path, "cifar10")
    write_cifar10(tmp_path)
    splits = load_data(DataConfig(str(tmp_path)), value_range=(0.0, 1.0))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 1, 5)
    assert splits.classes[:2] == ["airplane", "automobile"]
    i = splits.test.keys.index("cifar10/test/00004")
    assert splits.test[i]["label"] == 4
    assert (splits.test[i]["x"] * 255).round().eq(40).all()
    numbered = dict(zip(splits.train.keys + splits.val.keys, [*splits.train.labels, *splits.val.labels], strict=True))
    assert numbered["cifar10/train/00006"] == 0  # first of the second file
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghij") + "\n")
    assert load_data(DataConfig(str(tmp_path))).classes == list("abcdefghij")


def test_cifar10_errors(tmp_path):
    tmp_path = folder(tmp_path, "cifar10")
    with pytest.raises(FileNotFoundError, match=r"no train\*\.parquet in"):
        load_data(DataConfig(str(tmp_path), format="cifar10"))
    write_cifar10(tmp_path, counts=(("train", 3),))
    with pytest.raises(FileNotFoundError, match=r"no test\*\.parquet in"):
        load_data(DataConfig(str(tmp_path)))
    (tmp_path / "test.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"test\.parquet is not a Parquet file with columns image"):
        load_data(DataConfig(str(tmp_path)))
    pq.write_table(pa.table({"pixels": [1, 2]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet is not a Parquet file with columns image"):
        load_data(DataConfig(str(tmp_path)))


def test_every_image_of_cifar10_is_checked(tmp_path):
    tmp_path = folder(tmp_path, "cifar10")
    write_cifar10(tmp_path)
    rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:-20]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"1 of 15 images is not usable: cifar10/test/00003 is damaged"):
        load_data(DataConfig(str(tmp_path)))


def test_binary_cifar10_by_path(tmp_path):
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = random.integers(0, 256, (3, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        rows.tofile(tmp_path / name)
    splits = load_data(DataConfig(str(tmp_path)), value_range=(0.0, 1.0))
    assert (len(splits.train) + len(splits.val), len(splits.test), splits.image_size, splits.channels) == (
        15,
        3,
        (32, 32),
        3,
    )
    number = int(splits.test.keys[0].rsplit("/", 1)[1])
    assert np.array_equal((splits.test[0]["x"] * 255).round().byte().numpy(), rows[number, 1:].reshape(3, 32, 32))
    (tmp_path / "data_batch_4.bin").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match=r"data_batch_4\.bin has 5000 bytes; expected images of 3073 each"):
        load_data(DataConfig(str(tmp_path)))
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no data_batch_4\.bin"):
        load_data(DataConfig(str(tmp_path)))


def test_fashion_mnist_is_told_by_its_folder_or_its_format(tmp_path):
    for name, form, classes in (
        ("fashion-mnist", "auto", "T-shirt/top"),
        ("digits-of-mine", "auto", "0"),
        ("unlabelled", "fashion-mnist", "T-shirt/top"),
        ("FashionMNIST", "mnist", "0"),
    ):
        write_mnist(folder(tmp_path, name))
        assert load_data(DataConfig(str(tmp_path / name), format=form)).classes[0] == classes
