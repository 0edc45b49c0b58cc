"""Hugging Face data sets: folders that ``save_to_disk`` wrote, local image folders, and data sets of the hub by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.component import suggestion
from omnivae.data.config import DataConfig
from omnivae.data.naming import SPLIT_WORDS, to_classes
from omnivae.data.sources import Found, Split
from omnivae.data.stored import Collection, NumberedKeys, collect

PREFIX = "hf://"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:\w[\w.-]*)?")
_LABELS = ("label", "labels", "class")


@dataclass(frozen=True)
class DatasetBlobs:
    """The encoded images of a data set's parts, one after the other; Arrow files stay on disk and are mapped.

    Args:
        parts: data sets whose image column is not decoded.
        column: its name.
        starts: number of the first image of each part, and the total.
    """

    parts: list[Any]
    column: str
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> bytes | Path:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[part])
        value = self.parts[part][row][self.column]
        if value is not None and value["bytes"]:
            return value["bytes"]
        if value is not None and value["path"]:
            return Path(value["path"])
        raise ValueError(f"row {row} of the column {self.column!r} is empty: repair or remove it")


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` wrote a folder with ``save_to_disk``."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def is_hub_name(path: str) -> bool:
    """Return whether a path is written as a data set of the hub: ``hf://user/name`` or ``hf://user/name:configuration``."""
    return path.startswith(PREFIX)


def read_huggingface(config: DataConfig) -> Found:
    """Read a data set through ``datasets``.

    Args:
        config: ``path`` is a folder, or ``user/name`` on the hub (``hf://user/name``, optionally ``:configuration``).

    Returns:
        All images, and the splits that the data set has.

    Raises:
        ImportError: when ``datasets`` is not installed.
        FileNotFoundError: when there is no such folder, or a hub name is given without ``data.download``.
        ConnectionError: when the hub cannot be reached.
        ValueError: when the data set has no column of images, or several.
    """
    folder = Path(config.path).expanduser()
    if not is_hub_name(config.path) and folder.exists():
        parts, name = _local(folder), folder.resolve().name
    else:
        parts, name = _from_hub(config), config.path.removeprefix(PREFIX)
    splits = _map_splits(list(parts), config.path)
    parts = {split: part for split, part in parts.items() if len(part)}
    if not parts:
        raise ValueError(f"{config.path} has no rows")
    first = next(iter(parts.values()))
    column = _image_column(first.features, config)
    label = _label_column(first.features, config)
    datasets = _datasets()
    plain = [part.cast_column(column, datasets.Image(decode=False)) for part in parts.values()]
    starts = np.cumsum([0, *map(len, plain)])
    blobs = DatasetBlobs([part.select_columns([column]) for part in plain], column, starts)
    labels, classes = None, None
    if label is not None:
        values = [value for part in plain for value in part.with_format(None)[label][:]]
        labels, classes = to_classes(
            values, f"{config.path}: labels in {label!r}", getattr(first.features[label], "names", None)
        )
    told = [name for name in config.conditions if name not in ("label", "factors")]
    for name in told:
        if name not in first.features:
            raise ValueError(
                f"{config.path} has no column {name!r}{suggestion(name, first.features)}; it has "
                f"{', '.join(first.features)}: correct data.cond"
            )
    attributes = {name: [value for part in plain for value in part.with_format(None)[name][:]] for name in told}
    keys = NumberedKeys(dict(zip(parts, starts[:-1].tolist(), strict=True)), len(blobs))
    of_each = np.repeat(np.array([splits[name] for name in parts]), np.diff(starts))
    files = [Path(file["filename"]) for part in parts.values() for file in part.cache_files]
    collection = Collection(name, blobs, keys, of_each, labels, classes, containers=files, attributes=attributes)
    return collect(collection, config)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face data sets need the package datasets: install it with pip install 'omnivae[hub]'"
        ) from error
    return datasets


def _local(folder: Path) -> dict[str, Any]:
    datasets = _datasets()
    try:
        found = datasets.load_from_disk(str(folder)) if is_saved(folder) else datasets.load_dataset(str(folder))
    except Exception as error:  # datasets raises its own, Arrow's and the file system's errors
        raise ValueError(
            f"datasets cannot read {folder} ({_first_line(error)}): save it again with save_to_disk"
        ) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _from_hub(config: DataConfig) -> dict[str, Any]:
    name = config.path.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise FileNotFoundError(
            f"no folder {config.path}, and it is not the name of a data set of the hub (user/name, or user/name:configuration)"
        )
    if not config.download:
        raise FileNotFoundError(
            f"{name} lies on the Hugging Face hub: fetch it with data.download true, or give data.path a folder that "
            "datasets' save_to_disk wrote"
        )
    datasets = _datasets()
    repository, _, configuration = name.partition(":")
    try:
        return dict(datasets.load_dataset(repository, configuration or None))
    except Exception as error:  # the hub's client, requests and datasets each have errors of their own
        raise ConnectionError(
            f"the data set {name} could not be had from the Hugging Face hub ({_first_line(error)}): check its name and the "
            "network, or give data.path a folder that datasets' save_to_disk wrote"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _map_splits(names: list[str], where: str) -> dict[str, Split]:
    splits = {name: SPLIT_WORDS.get(name.lower()) for name in names}
    unknown = [name for name, split in splits.items() if split is None]
    if unknown and len(names) == 1:
        return {names[0]: "train"}
    if unknown or "train" not in splits.values():
        raise ValueError(
            f"{where} has the splits {', '.join(names)}; expected train, and validation and test or neither: save those that "
            "are to be used with save_to_disk"
        )
    return splits  # type: ignore[return-value]


def _image_column(features: Any, config: DataConfig) -> str:
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    described = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    if config.image_column is not None:
        if config.image_column not in images:
            raise ValueError(
                f"{config.path} has no column of images {config.image_column!r}{suggestion(config.image_column, images)}; it has "
                f"{described}: correct data.image_column"
            )
        return config.image_column
    if len(images) == 1:
        return images[0]
    if images:
        raise ValueError(
            f"{config.path} has several columns of images ({', '.join(images)}): set data.image_column to one"
        )
    raise ValueError(f"{config.path} has no column of images; it has {described}: cast one to datasets.Image()")


def _label_column(features: Any, config: DataConfig) -> str | None:
    if config.label_column is not None:
        if config.label_column not in features:
            raise ValueError(
                f"{config.path} has no column {config.label_column!r}{suggestion(config.label_column, features)}; it has "
                f"{', '.join(features)}: correct data.label_column"
            )
        return config.label_column
    return next((name for name in _LABELS if name in features), None)
