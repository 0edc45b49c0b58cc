"""The training order as a pure function of (seed, epoch), and the data loader that uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import DataLoader, Sampler

from omnivae.data.datasets import ImageDataset, collate

_SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}


class EpochSampler(Sampler[int]):
    """Every index once in an order that depends on the seed and the epoch only, so a run can resume anywhere.

    Its length is that of a whole epoch, also when it starts in the middle of one.

    Args:
        dataset: what is sampled; its ``set_epoch``, if it has one, is called along.
        seed: seed of the order.
        shuffle: False gives 0, 1, 2, ... in every epoch.

    Example:
        >>> sampler = EpochSampler(range(4), seed=0)
        >>> whole = list(sampler)
        >>> sampler.set_epoch(0, start=3)
        >>> list(sampler) == whole[3:]
        True
    """

    def __init__(self, dataset: Sized, *, seed: int = 0, shuffle: bool = True) -> None:
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Choose the epoch, and how many of its samples have been used already.

        Args:
            epoch: number of the epoch, from 0.
            start: samples to leave out at its beginning. None means 0 for another epoch than the present one and no
                change for the same, so that a trainer that announces every epoch does not undo a resume.

        Raises:
            ValueError: when ``start`` is not a number of samples of an epoch.
        """
        if start is None:
            start = self.start if epoch == self.epoch else 0
        if not 0 <= start <= len(self.dataset):
            raise ValueError(f"got start={start}; expected 0 to {len(self.dataset)}, the number of images")
        self.epoch, self.start = epoch, start
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(count) if self.shuffle else np.arange(count)
        return iter(order[self.start :].tolist())


def make_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader of batches in the order of an :class:`EpochSampler` (``loader.sampler``).

    Args:
        dataset: one split.
        batch_size: images in a batch.
        shuffle: a new order in each epoch, for training; otherwise the dataset's own.
        seed: seed of the order.
        num_workers: processes that load images; what they load does not depend on their number.
        drop_last: leave out an incomplete last batch.
        pin_memory: page-locked memory, for faster copies to a GPU.

    Returns:
        The loader; call ``loader.sampler.set_epoch(epoch)`` before each epoch (Lightning does).

    Raises:
        ValueError: when there are fewer images than a training batch, or one that drops the last, needs.
    """
    if batch_size < 1:
        raise ValueError(f"got a batch size of {batch_size}; expected 1 or more")
    if batch_size > len(dataset) and (shuffle or drop_last):
        raise ValueError(
            f"batch of {batch_size} is larger than the {len(dataset)} {_SPLIT_WORDS[dataset.split]} images: set "
            f"training.batch_size to {len(dataset)} or less"
        )
    if num_workers > 0:
        dataset.share_epoch()
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(dataset, seed=seed, shuffle=shuffle),
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
