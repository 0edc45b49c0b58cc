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
