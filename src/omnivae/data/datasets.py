"""Map-style datasets over a source: decode, augment, resize, binarise and scale into the value range."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from omnivae.data.cache import PixelCache, affordable, cache_bytes
from omnivae.data.condition import ConditionTable
from omnivae.data.config import Binarize
from omnivae.data.header import ALPHA, ReadOptions
from omnivae.data.pixels import (
    black_and_white,
    check_pixels,
    convert_channels,
    resize,
    resize_and_crop,
    to_unit,
)
from omnivae.data.sources import SPLITS, ImageSource, Split
from omnivae.types import Batch


@dataclass(frozen=True)
class Transform:
    """What happens to an image between its file and the model.

    Attributes:
        shape: channels, height and width of the result; for videos channels, frames, height and width.
        resize: whether to resize and crop to the height.
        channels: number of channels to convert to, None to keep.
        value_range: what black and white become.
        binarize: "none", "threshold" or "stochastic".
        flip: mirror half of the images.
        random_crop: crop at a random place instead of resizing.
        reading: how stored samples are to be understood.
    """

    shape: tuple[int, ...]
    resize: bool
    channels: int | None
    value_range: tuple[float, float]
    binarize: Binarize = "none"
    flip: bool = False
    random_crop: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)

    def in_range(self, value_range: tuple[float, float]) -> Transform:
        """Return the same with other values for black and white."""
        return replace(self, value_range=value_range)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that happens between file and tensor, ready for JSON."""
        values = asdict(self)
        values |= values.pop("reading")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class ImageDataset(Dataset):
    """One split of a data set; items are pure functions of (seed, epoch, index), whatever process loads them.

    Args:
        source: where images come from.
        indices: the images of this split, as numbers of the source, ``[N]``.
        split: "train", "val" or "test"; only training images change with the epoch.
        transform: what to do with them.
        seed: seed of augmentation and of stochastic binarisation.
        told: what a conditional model is told about each image of the source, or None.
        known: whether each image of this split has its label ``[N]``, or None where all have.
        labelled_share: share of a batch that has its label, where only some images have.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: np.ndarray,
        *,
        split: Split,
        transform: Transform,
        seed: int = 0,
        told: ConditionTable | None = None,
        known: np.ndarray | None = None,
        labelled_share: float = 0.5,
    ) -> None:
        self.source, self.indices, self.split, self.transform, self.seed = source, indices, split, transform, seed
        self.told, self.known, self.labelled_share = told, known, labelled_share
        self._epoch = 0
        self._side: int | None = None
        self._cache: PixelCache | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random crops, flips and binarisation the training images get."""
        self._epoch = epoch

    def set_resolution(self, side: int | None) -> None:
        """Choose the side of the square that the next images get; None for the transform's own."""
        self._side = side

    def keep_decoded(self, setting: bool | Literal["auto"], *, any_size: bool = False) -> bool:
        """Decode each image once: keep it, resized where that is the same in every epoch, in a file that all processes share.

        Args:
            setting: True, False, or "auto": where images are decoded from files, and all of them fit into a quarter of the
                free memory and disk.
            any_size: keep the images unresized, because they will be asked for in several sizes.

        Returns:
            Whether images are kept from now on.

        Raises:
            OSError: when ``setting`` is True and there is no room.
        """
        if setting is False or len(self) == 0 or (setting == "auto" and self.source.in_memory):
            return False
        t = self.transform
        resized = t.resize and not (t.random_crop and self.split == "train") and not any_size
        stored = {"sizes": self.source.sizes, "channels": self.source.channels, "dtypes": self.source.dtypes}
        rows = {
            name: values[self.indices] if len(values) > 1 else np.repeat(values, len(self), axis=0)
            for name, values in stored.items()
        }
        sizes = np.full((len(self), 2), t.shape[1]) if resized else rows["sizes"]
        # Resizing leaves 8-bit pictures what they are, and makes float32 of everything else.
        modes = self.source.modes
        alpha = np.zeros(1, dtype=bool) if modes is None else np.isin(modes, ALPHA)
        alpha = alpha[self.indices] if len(alpha) > 1 else alpha
        plain = (rows["dtypes"] == "uint8") & (np.isin(rows["channels"], (1, 3)) | alpha)
        same = ~np.asarray(resized) | plain | (rows["sizes"] == t.shape[1]).all(axis=1)
        dtypes = np.where(same, rows["dtypes"], "float32")
        shapes = np.concatenate([sizes, rows["channels"][:, None]], axis=1)
        if setting == "auto" and not affordable(int(cache_bytes(shapes, dtypes).sum())):
            return False
        self._cache, self._cache_resized = PixelCache(shapes, dtypes), resized
        return True

    def permutation(self, epoch: int) -> np.ndarray | None:
        """Return an order of these images that suits how they are stored (tar shards), or None where any order does.

        Args:
            epoch: every epoch has another one.

        Returns:
            Every number from 0 to ``len(self) - 1`` once; a function of seed and epoch. Where only some images have their label,
            ``len(self)`` numbers, evenly mixed, of which ``labelled_share`` are of those.
        """
        if self.known is not None:
            return mixed_order(self.known, self.labelled_share, seed=self.seed, epoch=epoch)
        order = self.source.permutation(self.seed, epoch)
        if order is None:
            return None
        place = np.full(len(self.source), -1)
        place[self.indices] = np.arange(len(self))
        mine = place[order]
        return mine[mine >= 0]

    @cached_property
    def keys(self) -> list[str]:
        """The stable name of each image: a path relative to the data folder, or ``dataset/split/index``."""
        return [self.source.key(int(i)) for i in self.indices]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Class indices ``[N]`` int64, -1 where a label is hidden; factor classes ``[N, F]`` float32; or None."""
        if self.source.labels is None:
            return None
        labels = self.source.labels[self.indices]
        return labels if self.known is None else np.where(self.known, labels, -1)

    @cached_property
    def factor_values(self) -> np.ndarray | None:
        """Values of the generating factors ``[N, F]`` (worlds), or None."""
        return self.source.factor_values(self.indices)

    def content_hash(self, index: int) -> str:
        """Return the SHA-256, in hexadecimal, of an item's image as it is stored."""
        return self.source.content_hash(int(self.indices[index]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        number = int(self.indices[index])
        key = self.source.key(number)
        item: dict[str, Any] = {"x": self._pixels(number, index, key), "key": key}
        return item | {name: values[0] for name, values in self._facts([index]).items()}

    def _facts(self, indices: list[int]) -> dict[str, Tensor]:
        """Return label ``[B]`` or ``[B, F]`` and condition ``[B, E]`` of items, what there is of them."""
        facts, place = {}, np.asarray(indices, dtype=np.int64)
        numbers, known = self.indices[place], None if self.known is None else self.known[place]
        if self.source.labels is not None:
            labels = self.source.labels[numbers]
            facts["label"] = torch.as_tensor(labels if known is None else np.where(known, labels, -1))
        if self.told is not None:
            facts["cond"] = self.told.rows(numbers, known)
        return facts

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return several items; a source that makes images quickest together is asked for them together."""
        t = self.transform
        drawn = self.split == "train" and (t.flip or t.random_crop)
        alone = drawn or t.resize or self._side is not None or t.binarize == "stochastic" or t.channels is not None
        numbers = self.indices[np.asarray(indices, dtype=np.int64)]
        images = None if alone or self._cache is not None else self.source.read_many(numbers)
        if images is None:
            return [self[i] for i in indices]
        black, white = check_pixels(images, self.source.key(int(numbers[0])), t.reading)
        x = torch.from_numpy(self._scaled(np.moveaxis(to_unit(images, black, white), 0, 1)))
        items = [{"x": x[i], "key": self.source.key(int(number))} for i, number in enumerate(numbers)]
        for name, values in self._facts(indices).items():
            for item, value in zip(items, values, strict=True):
                item[name] = value
        return items

    def _scaled(self, array: np.ndarray) -> np.ndarray:
        """Binarise by the middle where asked to, and put [0, 1] into the value range."""
        t = self.transform
        if t.binarize == "threshold":
            array = (array >= 0.5).astype(np.float32)
        low, high = t.value_range
        if (low, high) != (0.0, 1.0):
            array = array * np.float32(high - low) + np.float32(low)
        return np.ascontiguousarray(array)

    def _pixels(self, number: int, index: int, key: str) -> Tensor:
        t = self.transform
        training = self.split == "train"
        random = None
        if (training and (t.flip or t.random_crop)) or t.binarize == "stochastic":
            epoch = self._epoch if training else 0
            random = np.random.default_rng([self.seed, SPLITS.index(self.split), epoch, index])
        alpha = self.source.has_alpha(number)
        shape = t.shape if self._side is None else (t.shape[0], self._side, self._side)
        image, black, white = self._decoded(number, index, key, alpha)
        stored = image.shape[-1]
        if random is not None and training and t.random_crop:
            image = _random_crop(image, shape[1], random, alpha=alpha)
        elif t.resize or self._side is not None:
            image = resize_and_crop(image, shape[1], alpha=alpha)
        if t.channels in (1, 3) and stored <= 4 and image.ndim == 3:
            image = convert_channels(image, t.channels)
        array = to_unit(image, black, white)
        if array.shape != shape:
            height, width = array.shape[1:]
            raise ValueError(
                f"{key} decodes to {stored} channels of {height} x {width} pixels; expected {shape[0]} channels of "
                f"{shape[1]} x {shape[2]}, as its header or the first image said: repair or remove it, or set "
                "data.image_size and data.channels"
            )
        if random is not None and training and t.flip and random.random() < 0.5:
            array = array[..., ::-1]
        if t.binarize == "stochastic" and random is not None:
            array = (random.random(array.shape, dtype=np.float32) < array).astype(np.float32)
        return torch.from_numpy(self._scaled(array))

    def _decoded(self, number: int, index: int, key: str, alpha: bool) -> tuple[np.ndarray, float, float]:
        """Return an image, and what black and white are in it; from the cache where there is one."""
        t = self.transform
        cached = self._cache.get(index) if self._cache is not None else None
        if cached is not None:
            # Its pixels were checked before they were kept; resizing may have taken them a little beyond their range.
            black, white = black_and_white(self._stored_dtype(number), key, t.reading)
            return cached, black, white
        image = self.source.read(number)
        black, white = check_pixels(image, key, t.reading)
        if self._cache is not None:
            if self._cache_resized:
                image = resize_and_crop(image, t.shape[1], alpha=alpha)
            self._cache.put(index, image)
        return image, black, white

    def _stored_dtype(self, number: int) -> np.dtype:
        return np.dtype(str(self.source.dtypes[number if len(self.source.dtypes) > 1 else 0]))


def collate(items: list[dict[str, Any]]) -> Batch:
    """Stack items of an :class:`ImageDataset` into a batch.

    Args:
        items: what the dataset returned, at least one.

    Returns:
        ``x [B, C, *S]``, ``key`` as a list, and ``label [B]`` or ``[B, F]``, ``cond [B, E]``, ``spacing_mm [B, 3]``,
        ``mask [B, 1, *S]`` and ``followup [B, C, *S]`` where the items have them.

    Raises:
        ValueError: when the images differ in shape.
    """
    shapes = {tuple(item["x"].shape) for item in items}
    if len(shapes) > 1:
        raise ValueError(
            f"images of shapes {sorted(shapes)} cannot form a batch: set data.image_size and data.channels"
        )
    batch = Batch(x=torch.stack([item["x"] for item in items]), key=[item["key"] for item in items])
    if all("label" in item for item in items):
        batch["label"] = torch.stack([item["label"] for item in items])
    if all("cond" in item for item in items):
        batch["cond"] = torch.stack([item["cond"] for item in items])
    if all("spacing_mm" in item for item in items):
        batch["spacing_mm"] = torch.stack([item["spacing_mm"] for item in items])
    if all("mask" in item for item in items):
        batch["mask"] = torch.stack([item["mask"] for item in items])
    if all("followup" in item for item in items):
        batch["followup"] = torch.stack([item["followup"] for item in items])
    return batch


def mixed_order(known: np.ndarray, share: float, *, seed: int, epoch: int) -> np.ndarray:
    """Return an order in which a given share of every stretch of images has its label.

    Args:
        known: whether each image has its label, ``[N]``; some must have.
        share: of those, above 0, at most 1; 1 leaves the others out.
        seed: of the order.
        epoch: every epoch has another one.

    Returns:
        ``[N]`` indices; images with labels come as often as it takes.

    Example:
        >>> order = mixed_order(np.array([True, False, False, False]), 0.5, seed=0, epoch=0)
        >>> sorted(order.tolist()).count(0), len(order)
        (2, 4)
    """
    random = np.random.default_rng([seed, epoch])
    with_label, without = np.flatnonzero(known), np.flatnonzero(~known)
    place = np.arange(len(known))
    # Evenly spaced, so that every batch has its share.
    slots = np.floor((place + 1) * share).astype(np.int64) > np.floor(place * share).astype(np.int64)
    slots |= len(without) == 0
    order = np.empty(len(known), dtype=np.int64)
    for chosen, these in ((slots, with_label), (~slots, without)):
        turns = -(-int(chosen.sum()) // max(1, len(these)))
        drawn = [random.permutation(these) for _ in range(turns)]
        order[chosen] = np.concatenate(drawn)[: int(chosen.sum())] if drawn else []
    return order


def _random_crop(image: np.ndarray, side: int, random: np.random.Generator, *, alpha: bool) -> np.ndarray:
    height, width = image.shape[:2]
    short = min(height, width)
    if short < side:
        image = resize(
            image, (max(side, round(height * side / short)), max(side, round(width * side / short))), alpha=alpha
        )
        height, width = image.shape[:2]
    left = int(random.integers(width - side + 1))
    top = int(random.integers(height - side + 1))
    return image[top : top + side, left : left + side]
