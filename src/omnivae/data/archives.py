"""Readers of packed data sets: MNIST's idx files (LeCun, Cortes, Burges) and CIFAR-10 in Parquet (Krizhevsky, 2009)."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.images import read_header
from omnivae.data.sources import ArraySource, EncodedSource, Found

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_IDX_IMAGES, _IDX_LABELS = 2051, 2049


def is_mnist(folder: Path) -> bool:
    """Return whether a folder holds MNIST's training images as an idx file."""
    return _find_idx(folder, "train-images", "idx3-ubyte") is not None


def is_cifar10(folder: Path) -> bool:
    """Return whether a folder holds Parquet files named as CIFAR-10's."""
    return any(folder.glob("train*.parquet"))


def read_mnist(folder: Path) -> Found:
    """Read the four idx files of MNIST (or a data set in its layout), gzipped or plain.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``.

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
    first = len(images[0])
    all_labels = np.concatenate(labels).astype(np.int64)
    source = ArraySource(
        folder.resolve().name,
        np.concatenate(images),
        labels=all_labels,
        classes=[str(i) for i in range(int(all_labels.max()) + 1)],
        key_starts={"mnist/train": 0, "mnist/test": first},
    )
    return Found(source, {"train": np.arange(first), "test": np.arange(first, len(source))})


def read_cifar10(folder: Path) -> Found:
    """Read CIFAR-10 from Parquet files with columns ``image {bytes, path}`` and ``label``.

    Args:
        folder: holds ``train*.parquet`` and ``test*.parquet``, and may hold ``classes.txt``.

    Returns:
        All images; the official training and test splits.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a file is not Parquet or lacks the columns.
    """
    import pyarrow as pa

    files, labels = [], []
    for part in ("train", "test"):
        paths = sorted(folder.glob(f"{part}*.parquet"))
        if not paths:
            raise FileNotFoundError(f"no {part}*.parquet in {folder}: CIFAR-10 needs a train and a test file")
        for path in paths:
            column, numbers = _read_table(path)
            files.append((part, column))
            labels.append(numbers)
    first = sum(len(array) for part, array in files if part == "train")
    array = pa.chunked_array([chunk for _, column in files for chunk in column.chunks])
    if first == 0 or first == len(array):
        raise ValueError(f"{folder} has {first} training and {len(array) - first} test images; expected some of each")
    header = read_header(io.BytesIO(array[0].as_py()), "cifar10/train/00000")
    names = folder / "classes.txt"
    classes = names.read_text(encoding="utf-8").split("\n") if names.is_file() else CIFAR10_CLASSES
    classes = [name.strip() for name in classes if name.strip()]
    all_labels = np.concatenate(labels).astype(np.int64)
    if all_labels.min() < 0 or all_labels.max() >= len(classes):
        raise ValueError(
            f"{folder}: labels run from {all_labels.min()} to {all_labels.max()} but there are {len(classes)} classes"
        )
    source = EncodedSource(
        folder.resolve().name,
        array,
        size=(header.height, header.width),
        channels=header.channels,
        labels=all_labels,
        classes=classes,
        key_starts={"cifar10/train": 0, "cifar10/test": first},
    )
    return Found(source, {"train": np.arange(first), "test": np.arange(first, len(source))})


def _read_table(path: Path) -> tuple[Any, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["image", "label"])
        column = pa.chunked_array([chunk.field("bytes") for chunk in table["image"].chunks], type=pa.binary())
        labels = table["label"].to_numpy()
    except (pa.ArrowException, KeyError, AttributeError, OSError) as error:
        raise ValueError(
            f"{path} is not a Parquet file with columns image {{bytes, path}} and label ({str(error).splitlines()[0]})"
        ) from error
    if column.null_count or table["label"].null_count:
        raise ValueError(
            f"{path} has {column.null_count} rows without image bytes and {table['label'].null_count} without label"
        )
    return column, labels


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
