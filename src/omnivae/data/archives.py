"""Readers of packed data sets: MNIST's idx files (LeCun, Cortes, Burges) and CIFAR-10 (Krizhevsky, 2009)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from omnivae.data.config import DataConfig
from omnivae.data.naming import to_classes
from omnivae.data.parquet import open_row_groups, read_columns
from omnivae.data.sources import ArraySource, Found
from omnivae.data.stored import Collection, NumberedKeys, collect
from omnivae.data.tables import kind_of, open_table

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip

_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_CIFAR10_ROW = 1 + 3 * 32 * 32


def is_mnist(folder: Path) -> bool:
    """Return whether a folder holds MNIST's training images as an idx file."""
    return folder.is_dir() and _find_idx(folder, "train-images", "idx3-ubyte") is not None


def is_cifar10(folder: Path) -> bool:
    """Return whether a folder holds CIFAR-10: its binary files, or Parquet in a folder that is called so."""
    if not folder.is_dir():
        return False
    called = folder.resolve().name.lower().replace("-", "").replace("_", "")
    return (folder / "data_batch_1.bin").is_file() or ("cifar10" in called and any(folder.glob("train*.parquet")))


def read_mnist(folder: Path, *, fashion: bool | None = None) -> Found:
    """Read the four idx files of MNIST (or a data set in its layout), gzipped or plain.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``.
        fashion: whether the classes are Fashion-MNIST's (Xiao, Rasul and Vollgraf, 2017); None to tell by the folder's name.

    Returns:
        All images; the official training and test splits.

    Raises:
        FileNotFoundError: when one of the files is missing.
        ValueError: when a file is not idx, is truncated, or images and labels differ in number.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        x, y = _read_idx(folder, f"{part}-images", _IDX_IMAGES), _read_idx(folder, f"{part}-labels", _IDX_LABELS)
        if len(x) != len(y):
            raise ValueError(f"{folder} has {len(x)} {part} images but {len(y)} labels: fetch the files again")
        images.append(x)
        labels.append(y)
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(f"{folder}: training images are {images[0].shape[1:]} but test images {images[1].shape[1:]}")
    if fashion is None:
        fashion = "fashion" in folder.resolve().name.lower()
    first = len(images[0])
    all_labels, classes = to_classes(
        np.concatenate(labels).tolist(), f"{folder}: labels", FASHION_CLASSES if fashion else None
    )
    prefix = "fashion-mnist" if fashion else "mnist"
    source = ArraySource(
        folder.resolve().name,
        np.concatenate(images),
        labels=all_labels,
        classes=classes,
        key_starts={f"{prefix}/train": 0, f"{prefix}/test": first},
    )
    return Found(source, {"train": np.arange(first), "test": np.arange(first, len(source))})


def read_cifar10(folder: Path, config: DataConfig) -> Found:
    """Read CIFAR-10: its binary version, or Parquet files with columns ``image {bytes, path}`` and ``label``.

    Args:
        folder: holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or ``train*.parquet`` and
            ``test*.parquet``; may hold ``classes.txt``.
        config: says how encoded images are checked.

    Returns:
        All images; the official training and test splits.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a file is damaged.
    """
    names = folder / "classes.txt"
    classes = names.read_text(encoding="utf-8").split("\n") if names.is_file() else CIFAR10_CLASSES
    classes = [name.strip() for name in classes if name.strip()]
    if (folder / "data_batch_1.bin").is_file():
        return _read_cifar10_binary(folder, classes)
    paths, labels, first = [], [], 0
    for part in ("train", "test"):
        found = sorted(folder.glob(f"{part}*.parquet"))
        if not found:
            raise FileNotFoundError(
                f"no {part}*.parquet in {folder}: CIFAR-10 needs a train and a test file (or data_batch_1.bin to 5 and "
                "test_batch.bin)"
            )
        for path in found:
            labels += _read_labels(path)
            paths.append(path)
        first = len(labels) if part == "train" else first
    if first in (0, len(labels)):
        raise ValueError(f"{folder} has {first} training and {len(labels) - first} test images; expected some of each")
    numbers, classes = to_classes(labels, f"{folder}: labels", classes)
    blobs = open_row_groups(paths, "image")
    keys = NumberedKeys({"cifar10/train": 0, "cifar10/test": first}, len(labels))
    splits = np.repeat(["train", "test"], [first, len(labels) - first])
    return collect(Collection(folder.resolve().name, blobs, keys, splits, numbers, classes, containers=paths), config)


def _read_labels(path: Path) -> list[int]:
    try:
        columns = open_table(path).columns
        if kind_of(columns["image"]) != "struct":
            raise KeyError(f"image is {columns['image']}")
        return read_columns(path, ["label"])["label"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a Parquet file with columns image {{bytes, path}} and label ({str(error).splitlines()[0]})"
        ) from error


def _read_cifar10_binary(folder: Path, classes: list[str]) -> Found:
    """Read rows of one label and 3 x 32 x 32 bytes each, plane by plane."""
    parts = []
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in {folder}: CIFAR-10 needs data_batch_1.bin to 5 and test_batch.bin")
        size = path.stat().st_size
        if size == 0 or size % _CIFAR10_ROW:
            raise ValueError(
                f"{path} has {size} bytes; expected images of {_CIFAR10_ROW} each: it is truncated, fetch it again"
            )
        parts.append(np.fromfile(path, dtype=np.uint8).reshape(-1, _CIFAR10_ROW))
    rows, first = np.concatenate(parts), sum(map(len, parts[:-1]))
    labels, classes = to_classes(rows[:, 0].tolist(), f"{folder}: labels", classes)
    source = ArraySource(
        folder.resolve().name,
        rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
        labels=labels,
        classes=classes,
        key_starts={"cifar10/train": 0, "cifar10/test": first},
    )
    return Found(source, {"train": np.arange(first), "test": np.arange(first, len(source))})


def _find_idx(folder: Path, stem: str, kind: str) -> Path | None:
    names = [f"{stem}{separator}{kind}{suffix}" for separator in "-." for suffix in (".gz", "")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx(folder: Path, stem: str, magic: int) -> np.ndarray:
    kind = "idx3-ubyte" if magic == _IDX_IMAGES else "idx1-ubyte"
    path = _find_idx(folder, stem, kind)
    if path is None:
        raise FileNotFoundError(f"no {stem}-{kind} or {stem}-{kind}.gz in {folder}: MNIST needs four idx files")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}): fetch it again") from error
    dimensions = 3 if magic == _IDX_IMAGES else 1
    offset = 4 + 4 * dimensions
    found = int.from_bytes(data[:4], "big")
    if len(data) < offset or found != magic:
        raise ValueError(
            f"{path} starts with {found}; expected the magic number {magic} of an {kind} file: fetch it again"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, dtype=">i4", count=dimensions, offset=4))
    if min(shape) < 1 or len(data) - offset != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(
            f"{path} holds {len(data) - offset} bytes of data; its header says {' x '.join(map(str, shape))}: it is "
            "truncated, fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=offset).reshape(shape)
