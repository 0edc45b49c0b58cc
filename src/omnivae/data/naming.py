"""Names that data sets give to their parts: splits by file, folder or column, and classes by number or name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnivae.data.sources import SPLITS, Split

#: Every word for a split -> the split.
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_MOST_NUMBERED_CLASSES = 100_000


def split_of(path: str) -> Split | None:
    """Return the split that a file's name or folder says it belongs to, or None.

    Args:
        path: relative to the data set's folder, with forward slashes.

    Returns:
        The split.

    Raises:
        ValueError: when it names two.

    Example:
        >>> split_of("imagenet-train-000.tar"), split_of("validation/7.tar"), split_of("trains.tar")
        ('train', 'val', None)
    """
    words = (word for part in path.lower().split("/") for word in re.split(r"[-_. ]", part))
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(found) > 1:
        raise ValueError(f"{path} names two splits ({' and '.join(sorted(found))}): rename it")
    return next(iter(found), None)


def split_files(paths: Sequence[str], where: str) -> list[Split]:
    """Return the split of each file of a data set.

    Args:
        paths: relative to its folder.
        where: the folder, for errors.

    Returns:
        One split for each; all are "train" where no name says otherwise.

    Raises:
        ValueError: when only some names say it, or no file is for training.
    """
    splits = [split_of(path) for path in paths]
    if not any(splits):
        return ["train"] * len(paths)
    silent = [path for path, split in zip(paths, splits, strict=True) if split is None]
    if silent:
        raise ValueError(
            f"{where}: some files are named after splits, but {', '.join(silent[:3])}{' ...' if len(silent) > 3 else ''} not: "
            "put train, val or test into every name, or into none"
        )
    if "train" not in splits:
        raise ValueError(
            f"{where} has files for {' and '.join(sorted(set(map(str, splits))))} but none for training: add them"
        )
    return splits  # type: ignore[return-value]


def members_by_split(splits: Sequence[Split] | np.ndarray) -> dict[Split, np.ndarray]:
    """Return the numbers of the images of each split that occurs.

    Args:
        splits: the split of each image.

    Returns:
        Split to indices.
    """
    names = np.asarray(splits)
    parts: dict[Split, np.ndarray] = {split: np.flatnonzero(names == split) for split in SPLITS}
    return {split: part for split, part in parts.items() if len(part)}


def to_classes(values: Sequence[Any], where: str, names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Turn labels into class numbers.

    Args:
        values: an integer or a name for each image.
        where: what they are, for errors.
        names: names of the classes, where the data set states them.

    Returns:
        Class indices ``[N]`` int64, and the classes' names. Integers from 0 on stay as they are; anything else is numbered
        in sorted order.

    Raises:
        ValueError: for labels that are missing, or neither whole numbers nor names.

    Example:
        >>> to_classes(["dog", "cat", "dog"], "labels")
        (array([1, 0, 1]), ['cat', 'dog'])
    """
    missing = [i for i, value in enumerate(values) if value is None or value == ""]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(values)} rows have no label, e.g. row {missing[0]}: add or remove them"
        )
    numbers = all(isinstance(value, (int, np.integer)) for value in values)
    if not numbers and not all(isinstance(value, str) for value in values):
        odd = next(value for value in values if not isinstance(value, (int, np.integer, str)))
        raise ValueError(f"{where}: got the label {odd!r}; expected whole numbers or names, or no data.label_column")
    if numbers:
        array = np.array(values, dtype=np.int64)
        if names is not None and len(array) and (array.min() < 0 or array.max() >= len(names)):
            raise ValueError(f"{where} run from {array.min()} to {array.max()} but there are {len(names)} classes")
        if names is not None or (len(array) and array.min() >= 0 and array.max() < _MOST_NUMBERED_CLASSES):
            return array, list(names) if names is not None else [str(i) for i in range(int(array.max()) + 1)]
    distinct = sorted(set(values))
    number = {value: i for i, value in enumerate(distinct)}
    return np.array([number[value] for value in values], dtype=np.int64), [str(value) for value in distinct]
