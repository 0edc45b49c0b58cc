"""Images to encode: every one on its own terms, at its own size where the model takes it, never augmented."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from omnivae.data import DataConfig
from omnivae.data.attributes import tell_images
from omnivae.data.condition import ConditionTable
from omnivae.data.datasets import ImageDataset, Transform
from omnivae.data.embedded import DEFAULT_PHOTO_SIZE
from omnivae.data.formats import find
from omnivae.data.header import Header, ReadOptions
from omnivae.data.loading import split_images
from omnivae.data.sources import ImageSource, PhotoCropSource
from omnivae.distributions import DiagonalGaussian
from omnivae.jobs.conditions import needed_condition
from omnivae.models import VAE

log = logging.getLogger(__name__)

Part = Literal["all", "train", "val", "test"]


@dataclass(frozen=True)
class EncodedBatch:
    """Posteriors of images of one shape, on the CPU.

    Attributes:
        numbers: numbers of the images in their list.
        content: SHA-256 of each image as it is stored.
        cond: what the model was told about each image, ``[B, E]``, or None.
        file: what the file of each image says about itself, see :func:`describe_file`.
        mean: ``[B, C, *S]`` float32.
        logvar: ``[B, C, *S]`` float32.
        input_size: spatial size of the images before padding.
    """

    numbers: list[int]
    content: list[str]
    cond: Tensor | None
    file: list[dict[str, Any] | None]
    mean: Tensor
    logvar: Tensor
    input_size: tuple[int, ...]


class ImageList(Dataset):
    """Images that one model is to encode; an item is ``x``, ``number``, ``content`` and ``file``, a function of the file alone.

    Args:
        source: where images come from.
        indices: which of them, ``[N]``.
        transform: what is done to them; its height and width count only where it resizes.
        told: what a conditional model is told about each image of the source, or None.
    """

    what = "images"

    def __init__(
        self, source: ImageSource, indices: np.ndarray, transform: Transform, told: ConditionTable | None = None
    ) -> None:
        self.source, self.transform, self.told = source, transform, told
        self.skipped: set[int] = set()  # what cannot be read is left out of the source already
        keys = [source.key(int(i)) for i in indices]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.indices, self.keys = np.asarray(indices)[order], [keys[i] for i in order]

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, i: int) -> tuple[int, int]:
        """Return height and width of the tensor of image ``i``."""
        if self.transform.resize:
            _, tall, wide = self.transform.shape
            return tall, wide
        sizes = self.source.sizes
        height, width = sizes[0] if len(sizes) == 1 else sizes[self.indices[i]]
        return int(height), int(width)

    def label(self, i: int) -> Any:
        """Return class name, class number or factor values of image ``i``, ready for JSON, or None."""
        if self.source.labels is None:
            return None
        label = self.source.labels[self.indices[i]].tolist()
        return self.source.classes[label] if self.source.classes is not None else label

    def cond(self, i: int) -> list[float] | None:
        """Return what a conditional model is told about image ``i``, ``E`` numbers, or None."""
        return None if self.told is None else self.told.rows(self.indices[i : i + 1])[0].tolist()

    def content_hash(self, i: int) -> str:
        """Return the SHA-256 of image ``i`` as it is stored."""
        return self.source.content_hash(int(self.indices[i]))

    def __getitem__(self, i: int) -> dict[str, Any]:
        transform = replace(self.transform, shape=(self.transform.shape[0], *self.size(i)))
        one = ImageDataset(self.source, self.indices[i : i + 1], split="test", transform=transform)
        header = self.source.header(int(self.indices[i]))
        item = {"x": one[0]["x"], "number": i, "content": self.content_hash(i), "file": describe_file(header)}
        return item if self.told is None else item | {"cond": self.told.rows(self.indices[i : i + 1])[0]}

    def describe(self) -> dict[str, Any]:
        """Return everything that happens between file and tensor, ready for JSON."""
        values = self.transform.to_dict()
        if not self.transform.resize:
            values["shape"] = [self.transform.shape[0], None, None]
        return values


def images_to_encode(model: VAE, config: DataConfig, *, part: Part = "all", native: bool) -> ImageList:
    """List the images that a model is to encode, and check that it can.

    Args:
        model: the model.
        config: where they are, and how they are prepared.
        part: which split; "all" for every image.
        native: keep each image's own size.

    Returns:
        The images, sorted by key.

    Raises:
        ValueError: when an image's channels or size do not fit the model; names it.
    """
    if model.dim != 2:
        raise ValueError(
            "this model takes volumes or clips, which go into a store first: `omnivae encode MODEL SCANS --output STORE`, then "
            "`omnivae calibrate MODEL --store STORE`"
        )
    # Decoding everything once before everything is decoded would cost as much as encoding on a GPU; a file that turns out
    # to be damaged stops the run, which goes on where it was. To leave damaged files out, they must be known before.
    verify = "headers" if config.on_error == "stop" else config.verify
    config = replace(config, image_size=None if native else config.image_size, verify=verify)
    found = find(config)
    source = found.source
    if part == "all":
        indices = np.unique(np.concatenate(list(found.splits.values())))
    else:
        indices = split_images(found, replace(config, limit=None))[part]
    side = config.image_size or (DEFAULT_PHOTO_SIZE if isinstance(source, PhotoCropSource) else None)
    binarize = config.binarize
    if binarize == "stochastic":
        log.info("images are binarised by threshold, so that a latent is a function of its image")
        binarize = "threshold"
    transform = Transform(
        shape=(model.in_channels, side or 0, side or 0),
        resize=side is not None,
        channels=config.channels,
        value_range=model.value_range,
        binarize=binarize,
        reading=ReadOptions.of(config),
    )
    known = needed_condition(model)
    told = None if known is None else tell_images(source, config.conditions, indices, known)
    images = ImageList(source, indices, transform, told)
    if config.limit is not None and config.limit < len(images):
        # The order of the splits, mixed by hash, so that a few images stand for all.
        mixed = sorted(range(len(images)), key=lambda i: hashlib.sha256(images.keys[i].encode()).digest())
        images = ImageList(source, images.indices[mixed[: config.limit]], transform, told)
    if not len(images):
        raise ValueError(f"{config.path} has no images in the split {part!r}")
    _check(model, images, config)
    return images


def _check(model: VAE, images: ImageList, config: DataConfig) -> None:
    if config.channels not in (None, model.in_channels):
        raise ValueError(
            f"got data.channels={config.channels}; the model takes {model.in_channels}: leave it out, or convert the images"
        )
    stored = np.broadcast_to(images.source.channels, len(images.source))[images.indices]
    if config.channels is None:
        unfit, remedy = np.flatnonzero(stored != model.in_channels), "set data.channels to convert it, or leave it out"
    else:
        cannot = images.source.not_convertible(config.channels)
        unfit, remedy = np.flatnonzero(np.isin(images.indices, cannot)), "leave it out"
    if len(unfit):
        i = int(unfit[0])
        raise ValueError(f"{images.keys[i]} has {stored[i]} channels and the model takes {model.in_channels}: {remedy}")
    seen: set[tuple[int, int]] = set()
    for i in range(len(images)):
        size = images.size(i)
        if size not in seen:
            seen.add(size)
            try:
                model.padded_size(size)
            except ValueError as error:
                raise ValueError(f"{images.keys[i]}: {error}") from error


def not_gaussian(model: VAE, kind: str) -> str:
    """Return what is said to a model whose posterior a store cannot hold."""
    return (
        f"the posterior of this {type(model).__name__} is a {kind}; a posterior store holds the mean and log-variance of a "
        "diagonal Gaussian: use a model with a gaussian posterior"
    )


def plan_batches(images: ImageList, numbers: list[int], batch_size: int) -> list[list[int]]:
    """Group images of one size into batches, in an order that depends on nothing but the images.

    Args:
        images: all images.
        numbers: those to encode.
        batch_size: images at once.

    Returns:
        Numbers in lists of at most ``batch_size``.
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}; expected 1 or more")
    groups: dict[tuple[int, int], list[int]] = {}
    for i in sorted(numbers):
        groups.setdefault(images.size(i), []).append(i)
    return [
        group[start : start + batch_size]
        for _, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


@torch.inference_mode()
def encode_batches(
    model: VAE, images: ImageList, batches: list[list[int]], *, num_workers: int = 0
) -> Iterator[EncodedBatch]:
    """Encode batch after batch; nothing of a batch is kept when the next one comes.

    Args:
        model: in evaluation mode, on the device to use.
        images: the images.
        batches: numbers of images of one size each, see :func:`plan_batches`.
        num_workers: processes that read and decode images; 0 does so in this one.

    Yields:
        Posteriors on the CPU.

    Raises:
        ValueError: when an image cannot be decoded, or the model's posterior is not a Gaussian.
    """
    if num_workers < 0:
        raise ValueError(f"got num_workers={num_workers}; expected 0 or more")
    device = next(model.parameters()).device
    loader = DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        cond = batch.get("cond")
        x = batch["x"].to(device, non_blocking=True)
        posterior = model.encode(x) if cond is None else model.encode(x, cond.to(device))
        if not isinstance(posterior, DiagonalGaussian):
            raise ValueError(not_gaussian(model, type(posterior).__name__))
        size = posterior.input_size
        assert size is not None, "encode records the size of its images"
        # Copies: a view of the head's output would keep all of that alive for as long as the latent waits to be written.
        mean, logvar = (
            t.to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
            for t in (posterior.mean, posterior.logvar)
        )
        yield EncodedBatch(batch["number"], batch["content"], cond, batch["file"], mean, logvar, size)


def describe_file(header: Header | None) -> dict[str, Any] | None:
    """Return what it takes to write another file like one, ready for JSON; without its size, and without defaults.

    Args:
        header: of the file; None for an image without one.
    """
    if header is None:
        return None
    values = {
        field.name: getattr(header, field.name)
        for field in fields(Header)
        if field.name == "channels" or getattr(header, field.name) != field.default
    }
    for name in ("height", "width"):
        del values[name]
    if header.resolution is not None:
        values["resolution"] = list(header.resolution)
    if header.icc is not None:
        values["icc"] = base64.b64encode(header.icc).decode()
    return values


def file_like(description: dict[str, Any], size: tuple[int, ...]) -> Header:
    """Return the header that :func:`describe_file` described.

    Args:
        description: of the file.
        size: height and width.
    """
    values = dict(description)
    if "icc" in values:
        values["icc"] = base64.b64decode(values["icc"])
    if "resolution" in values:
        values["resolution"] = tuple(values["resolution"])
    return Header(height=size[0], width=size[1], **values)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in ("number", "content", "file")}
    return batch | {name: torch.stack([item[name] for item in items]) for name in ("x", "cond") if name in items[0]}
