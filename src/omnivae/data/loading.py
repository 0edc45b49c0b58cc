"""From a configuration to three datasets: find the reader, check the images against each other, split them."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from omnivae.data.attributes import few_labels, tell_images
from omnivae.data.condition import Condition
from omnivae.data.config import DataConfig, check_value_range
from omnivae.data.datasets import ImageDataset, Transform
from omnivae.data.embedded import DEFAULT_PHOTO_SIZE
from omnivae.data.formats import find, holds_volumes
from omnivae.data.header import ALPHA, ReadOptions
from omnivae.data.sources import SPLITS, Found, ImageSource, PhotoCropSource, Split, WorldSource
from omnivae.data.video import VideoSource
from omnivae.data.volume_config import VolumeConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSummary:
    """What the data is before anything is done to it.

    Attributes:
        counts: number of images in each split.
        min_size: smallest height and smallest width in pixels; of volumes the smallest size along each of three axes.
        median_size: median height and width.
        max_size: largest height and largest width.
        channels: number of images with each channel count.
        bit_depth: bits of a stored sample (the largest among the images).
        dtypes: number of images with each type of stored samples.
        modes: number of images with each colour mode (see :class:`omnivae.data.Header`); empty where none is stored.
    """

    counts: dict[str, int]
    min_size: tuple[int, ...]
    median_size: tuple[int, ...]
    max_size: tuple[int, ...]
    channels: dict[int, int]
    bit_depth: int
    dtypes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSplits:
    """The three splits of a data set, and what they have in common.

    Attributes:
        train: training images.
        val: validation images.
        test: test images.
        name: name of the data set.
        channels: channels of an image tensor.
        image_size: height and width of an image tensor, for videos the number of frames before them; of volumes a patch's size.
        value_range: what black and white are.
        classes: names of the classes, or None.
        native: what the data is before anything is done to it.
        official_test: whether the test images are the data's own, not carved from its training images.
        skipped: name of and reason for each image that is left out (``data.on_error`` skip).
        condition: what ``data.cond`` comes to, or None.
        intensity: of volumes, which values become the ends of the range and in which unit, ready for JSON; None for images.
    """

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    name: str
    channels: int
    image_size: tuple[int, ...]
    value_range: tuple[float, float]
    classes: list[str] | None
    native: DataSummary
    official_test: bool
    skipped: list[tuple[str, str]] = field(default_factory=list)
    condition: Condition | None = None
    intensity: dict[str, Any] | None = None

    def in_range(self, value_range: tuple[float, float]) -> DataSplits:
        """Return the same data with another range of values; nothing is read again.

        Args:
            value_range: what black and white become.

        Raises:
            ValueError: for no range.
        """
        value_range = check_value_range(value_range, volumes=self.intensity is not None)

        def changed(dataset: ImageDataset) -> ImageDataset:
            other = copy.copy(dataset)
            other.transform = dataset.transform.in_range(value_range)
            return other

        intensity = None if self.intensity is None else {**self.intensity, "range": list(value_range)}
        parts = {split: changed(getattr(self, split)) for split in SPLITS}
        return replace(self, **parts, value_range=value_range, intensity=intensity)  # type: ignore[arg-type]

    @property
    def alpha(self) -> bool:
        """Whether the last channel of an image tensor is alpha."""
        return self.channels in (2, 4) and bool(self.native.modes) and set(self.native.modes) <= set(ALPHA)


def load_data(
    config: DataConfig,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
    condition: Condition | None = None,
) -> DataSplits:
    """Read a data set and split it into training, validation and test images.

    Splits that the data defines are used: folders train/val/test, the official test images of MNIST and CIFAR-10. A
    missing one is carved from the training images by the SHA-256 rank of each image's name, so that it does not depend
    on the machine, nor, to within a rank, on other images coming and going.

    Args:
        config: what to read.
        value_range: what black and white become, unless ``config.value_range`` says so.
        seed: seed of augmentation and of stochastic binarisation.
        condition: what a trained model was told about its images; measured on the training images of this data by default.

    Returns:
        The three datasets, in a fixed mixed order.

    Raises:
        FileNotFoundError: when ``config.path`` does not exist.
        ValueError: when it holds no images, damaged ones, or ones that differ in size or channels without a setting
            that unites them, or without the labels and attributes that ``config.cond`` names.

    Example:
        >>> splits = load_data(DataConfig("digits"))
        >>> len(splits.train), len(splits.val), splits.image_size, splits.train[0]["x"].shape
        (1437, 180, (8, 8), torch.Size([1, 8, 8]))
    """
    volumes = holds_volumes(config)
    value_range = check_value_range(config.value_range or value_range, volumes=volumes)
    if volumes:
        from omnivae.data.volumes.dataset_loading import load_volumes

        return load_volumes(config, value_range=value_range, seed=seed)
    if config.volume != VolumeConfig():
        raise ValueError(
            f"got settings of data.volume and {config.path} holds no volumes: leave them out, or set data.format to volumes"
        )
    found = find(config)
    source = found.source
    channels = _common_channels(source, config.channels)
    photos = isinstance(source, PhotoCropSource)
    side = config.image_size or (
        config.resolutions[0] if config.resolutions else DEFAULT_PHOTO_SIZE if photos else None
    )
    if isinstance(source, VideoSource):
        # Its frames come in the size and the channels that were asked for.
        _refuse_for_videos(source, replace(config, image_size=None, channels=None))
        side = None
    elif source.sizes.shape[1] > 2:
        _refuse_for_videos(source, config)
    size = (side, side) if side is not None else _common_size(source)

    rounded = int(np.sum(source.dtypes == "float64")) * (len(source) if len(source.dtypes) == 1 else 1)
    if rounded:
        logger.warning("%d images hold samples of 64-bit floats, which models see rounded to 32 bits", rounded)
    indices = split_images(found, config)
    told = tell_images(source, config.conditions, indices["train"], condition) if config.conditions else None
    known = None
    if config.labels_per_class is not None:
        known = few_labels(source.labels, indices["train"], config.labels_per_class, source.classes or ())
    datasets: dict[str, ImageDataset] = {}
    for split in SPLITS:
        transform = Transform(
            shape=(channels, *size),
            resize=side is not None,
            channels=config.channels,
            value_range=value_range,
            binarize=config.binarize,
            flip=config.flip,
            random_crop=config.random_crop or photos,
            reading=ReadOptions.of(config),
        )
        datasets[split] = ImageDataset(
            source,
            indices[split],
            split=split,
            transform=transform,
            seed=seed,
            told=told,
            known=known if split == "train" else None,
            labelled_share=config.labelled_share,
        )
    return DataSplits(
        train=datasets["train"],
        val=datasets["val"],
        test=datasets["test"],
        name=source.name,
        channels=channels,
        image_size=size,
        value_range=value_range,
        classes=source.classes,
        native=_summarise(source, {split: len(datasets[split]) for split in SPLITS}),
        official_test="test" in found.splits,
        skipped=list(found.skipped),
        condition=None if told is None else told.condition,
    )


def _common_channels(source: ImageSource, channels: int | None) -> int:
    if channels is not None:
        bad = source.not_convertible(channels)
        if len(bad):
            first = int(bad[0])
            has = int(source.channels[first if len(source.channels) > 1 else 0])
            remedy = "leave data.channels out to keep what is stored"
            if channels in (1, 3):
                remedy += "; only grey and RGB images are converted, with or without alpha"
            raise ValueError(
                f"data.channels is {channels} and {len(bad)} of {len(source)} images cannot be turned into that, e.g. "
                f"{source.key(first)} with {has} channels: {remedy}"
            )
        return channels
    counts = Counter(source.channels.tolist()).most_common()
    if len(counts) > 1:
        (first_channels, first_count), *others = counts
        said = f"{first_count} images have {first_channels} channels" + "".join(f", {n} have {c}" for c, n in others)
        raise ValueError(f"{said}: set data.channels to 1 or 3")
    return counts[0][0]


def _common_size(source: ImageSource) -> tuple[int, ...]:
    sizes = np.unique(source.sizes, axis=0)
    if len(sizes) > 1:
        low, high = source.sizes.min(axis=0), source.sizes.max(axis=0)
        raise ValueError(
            f"the images have {len(sizes)} different sizes, {low[0]} to {high[0]} pixels high and {low[1]} to "
            f"{high[1]} wide: set data.image_size to the side of the square to use, e.g. {_suggested_side(low)}"
        )
    return tuple(int(n) for n in sizes[0])


def _refuse_for_videos(source: ImageSource, config: DataConfig) -> None:
    asked = {
        "image_size": config.image_size is not None,
        "resolutions": bool(config.resolutions),
        "random_crop": config.random_crop,
        "channels": config.channels not in (None, int(source.channels[0])),
    }
    wrong = [name for name, is_asked in asked.items() if is_asked]
    if wrong:
        frames, height, width = source.sizes[0]
        raise ValueError(
            f"got data.{wrong[0]}={getattr(config, wrong[0])} and {source.name}, whose videos of {frames} frames of "
            f"{height} x {width} pixels are used as they are: leave data.{wrong[0]} out"
        )


def _suggested_side(smallest: np.ndarray) -> int:
    """Return the largest power of two up to the smallest side, at most 256."""
    return min(256, 1 << (int(smallest.min()).bit_length() - 1))


def split_images(found: Found, config: DataConfig) -> dict[Split, np.ndarray]:
    """Return the images of each split, in hash order and limited.

    Args:
        found: what a reader found.
        config: fractions, seed and limit.

    Returns:
        Numbers of images of the source, for train, val and test.
    """
    source = found.source
    order: dict[Split, np.ndarray]
    if isinstance(source, VideoSource):
        return _split_clips(source, found, config)
    if isinstance(source, WorldSource):
        # Hashing three quarters of a million names would take longer than many a training.
        order = {"train": np.random.default_rng(config.split_seed).permutation(len(source))}
    elif isinstance(source, PhotoCropSource):
        order = dict(found.splits)
    else:
        order = {name: _by_hash(source, part, config.split_seed) for name, part in found.splits.items()}
    fractions: dict[Split, float] = {"val": config.val_fraction, "test": config.test_fraction}
    missing = {name: fraction for name, fraction in fractions.items() if name not in order}
    parts = order | _carve(order["train"], missing)
    return {name: _as_stored(source, parts[name][: config.limit], config.split_seed) for name in SPLITS}


def _split_clips(source: VideoSource, found: Found, config: DataConfig) -> dict[Split, np.ndarray]:
    """Return the clips of each split: those of one file stay together, and of one or two files those side by side do."""
    of_clip = source.file_of_clip
    fractions: dict[Split, float] = {"val": config.val_fraction, "test": config.test_fraction}
    missing = {name: fraction for name, fraction in fractions.items() if name not in found.splits}
    if not missing or len(np.unique(of_clip[found.splits["train"]])) <= 2:
        parts = found.splits | _carve(found.splits["train"], missing)
    else:
        order = {
            name: _by_hash(source, _first_of_each(of_clip, part), config.split_seed)
            for name, part in found.splits.items()
        }
        files = order | _carve(order["train"], missing)
        parts = {name: np.flatnonzero(np.isin(of_clip, of_clip[part])) for name, part in files.items()}
    mixed = {name: _by_hash(source, part, config.split_seed) for name, part in parts.items()}
    return {name: mixed[name][: config.limit] for name in SPLITS}


def _first_of_each(groups: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return the first member of each group."""
    return part[np.unique(groups[part], return_index=True)[1]]


def _as_stored(source: ImageSource, part: np.ndarray, seed: int) -> np.ndarray:
    """Return images in a mixed order in which they are quickly read, where any order is not."""
    order = source.permutation(seed, 0)
    if order is None:
        return part
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return part[np.argsort(place[part])]


def _carve(train: np.ndarray, fractions: dict[Split, float]) -> dict[Split, np.ndarray]:
    """Cut splits from the beginning of the training images; return them and what is left."""
    if not fractions:
        return {}
    if len(train) <= 2:
        logger.warning(
            "too few training images to split (%d): %s use the same ones", len(train), " and ".join(fractions)
        )
        return dict.fromkeys(fractions, train)
    counts = {name: max(1, round(len(train) * fraction)) for name, fraction in fractions.items()}
    while sum(counts.values()) >= len(train):
        counts[max(counts, key=lambda name: counts[name])] -= 1
    parts: dict[Split, np.ndarray] = {}
    start = 0
    for name, count in counts.items():
        parts[name] = train[start : start + count]
        start += count
    parts["train"] = train[start:]
    return parts


def _by_hash(source: ImageSource, indices: np.ndarray, seed: int) -> np.ndarray:
    digests = [hashlib.sha256(f"{seed}:{source.key(int(i))}".encode()).digest() for i in indices]
    return indices[sorted(range(len(indices)), key=digests.__getitem__)]


def _summarise(source: ImageSource, counts: dict[str, int]) -> DataSummary:
    sizes = source.sizes[:, -2:]  # of a video: of its frames

    def count(values: np.ndarray) -> dict[Any, int]:
        return {values[0].item(): len(source)} if len(values) == 1 else dict(Counter(values.tolist()))

    def pair(values: np.ndarray) -> tuple[int, int]:
        return int(values[0]), int(values[1])

    return DataSummary(
        counts=counts,
        min_size=pair(sizes.min(axis=0)),
        median_size=pair(np.median(sizes, axis=0)),
        max_size=pair(sizes.max(axis=0)),
        channels=count(source.channels),
        bit_depth=source.bit_depth,
        dtypes=count(source.dtypes),
        modes={} if source.modes is None else count(source.modes),
    )
