"""The order in which images are seen: a pure function of (seed, step), so that a run can continue anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

#: Epoch, index, and the side of the square to load where the run has several.
Key = tuple[int, int] | tuple[int, int, int]


class StepOrder(Sampler[list[Key]]):
    """Batches of (epoch, index) for a whole run; every epoch is a fresh permutation, its incomplete last batch left out.

    Args:
        num_images: size of the data set.
        batch_size: images for each batch and process.
        num_batches: batches of the whole run.
        seed: of the permutations.
        start: batches already seen.
        rank: this process.
        world_size: number of processes; each takes its own slice of the joint batch.
        permutation: epoch to an order of all images that suits how they are stored (tar shards), or to None for any order;
            a function of the epoch alone, the same in every process.
        resolutions: sides of the squares to train on; each batch has one, all equally often, in an order drawn by the seed
            and the same in every process. The keys are then (epoch, index, side).

    Raises:
        ValueError: when the joint batch is larger than the data.

    Example:
        >>> order = list(StepOrder(5, 2, 3, seed=0))
        >>> [len(batch) for batch in order], sorted({epoch for batch in order for epoch, _ in batch})
        ([2, 2, 2], [0, 1])
        >>> list(StepOrder(5, 2, 3, seed=0, start=2)) == order[2:]
        True
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        num_batches: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        permutation: Callable[[int], Sequence[int] | None] | None = None,
        resolutions: Sequence[int] = (),
    ) -> None:
        joint = batch_size * world_size
        if joint > num_images:
            raise ValueError(
                f"a batch of {joint} is larger than the {num_images} training images; "
                f"set training.batch_size to {max(1, num_images // world_size) * world_size} or less"
            )
        self.num_images, self.batch_size, self.num_batches = num_images, batch_size, num_batches
        self.seed, self.start, self.rank, self.world_size = seed, start, rank, world_size
        self.permutation, self.resolutions = permutation, tuple(resolutions)

    @property
    def batches_per_epoch(self) -> int:
        """Complete joint batches in one pass over the data."""
        return self.num_images // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        # The whole run, also when starting in the middle: Lightning counts the batches already seen itself.
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, list[int]()
        for batch in range(self.start, self.num_batches):
            if batch // self.batches_per_epoch != epoch:
                epoch = batch // self.batches_per_epoch
                order = self._order(epoch)
            first = (batch % self.batches_per_epoch * self.world_size + self.rank) * self.batch_size
            side = (self._resolution(batch),) if self.resolutions else ()
            yield [(epoch, index, *side) for index in order[first : first + self.batch_size]]

    def _resolution(self, batch: int) -> int:
        # Rounds in which each side comes once: as many batches of each, whatever the length of the run.
        turn, place = divmod(batch, len(self.resolutions))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return self.resolutions[int(torch.randperm(len(self.resolutions), generator=generator)[place])]

    def _order(self, epoch: int) -> list[int]:
        stored = self.permutation(epoch) if self.permutation is not None else None
        if stored is not None:
            return [int(index) for index in stored]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_images, generator=generator).tolist()


class ValidationOrder(Sampler[list[int]]):
    """Batches of indices of which every process takes its share, so that the shares together are one pass over the data.

    The batches are the same for any number of processes. All processes take equally many, as collective operations
    demand: where they do not come out even, some repeat a batch, which does not count.

    Args:
        num_images: size of the data set.
        batch_size: images for each batch.
        rank: this process.
        world_size: number of processes.

    Example:
        >>> shares = [ValidationOrder(5, 2, rank=rank, world_size=2) for rank in range(2)]
        >>> [list(share) for share in shares]
        [[[0, 1], [4]], [[2, 3], [0, 1]]]
        >>> [[share.counts(i) for i in range(2)] for share in shares]
        [[True, True], [True, False]]
    """

    def __init__(self, num_images: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.num_images, self.batch_size, self.rank, self.world_size = num_images, batch_size, rank, world_size
        self.num_batches = math.ceil(num_images / batch_size)

    def number(self, batch: int) -> int:
        """Return the number among the batches of all processes of this process's ``batch``."""
        return batch * self.world_size + self.rank

    def counts(self, batch: int) -> bool:
        """Return whether this process's ``batch`` is no repetition."""
        return self.number(batch) < self.num_batches

    def __len__(self) -> int:
        return math.ceil(self.num_batches / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            first = self.number(batch) % self.num_batches * self.batch_size
            yield list(range(first, min(first + self.batch_size, self.num_images)))


class UnreadableData(ValueError):
    """An image could not be loaded in the middle of a run; says which one, also from a loading process."""

    _MARK = "unreadable image "

    @classmethod
    def of(cls, name: str, error: BaseException) -> UnreadableData:
        """Return the exception for an image.

        Args:
            name: its key.
            error: what reading it raised.

        Returns:
            The exception, whose text survives the way out of a loading process.
        """
        return cls(cls._MARK + json.dumps([name, " ".join(str(error).split()) or type(error).__name__]))

    def parts(self) -> tuple[str, str]:
        """Return the image's name and what was wrong with it."""
        # A loading process wraps the text into its traceback; the mark comes last.
        line = str(self).strip().rsplit(self._MARK, 1)[-1]
        name, reason = json.loads(line)
        return str(name), str(reason)


class EpochView(Dataset[Any]):
    """A data set indexed by (epoch, index), so that augmentation depends on the epoch in every worker process.

    Args:
        dataset: map-style data set with ``set_epoch``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        """Return a batch, made together where the data set can and the batch is of one epoch."""
        together = getattr(self.dataset, "__getitems__", None)
        if together is None or len({(key[0], *key[2:]) for key in keys}) > 1 or len(keys[0]) > 2:
            return [self[key] for key in keys]
        try:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(keys[0][0])
            return list(together([key[1] for key in keys]))
        except (ValueError, OSError, EOFError):
            # One by one, to say which of them it is.
            return [self[key] for key in keys]

    def __getitem__(self, key: Key) -> Any:
        epoch, index, *side = key
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        if side:
            self.dataset.set_resolution(side[0])
        try:
            return self.dataset[index]
        except (ValueError, OSError, EOFError) as error:
            keys = getattr(self.dataset, "keys", None)
            name = keys[index] if keys is not None else f"image {index}"
            raise UnreadableData.of(str(name), error) from error

    def __len__(self) -> int:
        return len(self.dataset)
