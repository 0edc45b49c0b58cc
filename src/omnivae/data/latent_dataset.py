"""Data sets of fresh samples of stored posteriors: what a model of latents trains on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from omnivae.data.latents import PosteriorStore
from omnivae.distributions import whiten

log = logging.getLogger(__name__)


class LatentDataset(Dataset):
    """Samples of the posteriors in a store, fresh in each epoch: what a model of latents trains on.

    A sample is a function of (seed, epoch, key) alone, whatever process draws it and in whatever order.

    Args:
        store: the posteriors.
        seed: another seed gives other samples.
        whiten: give whitened latents: ``True`` or "channel" for each channel's mean and std, "scale" for one factor.
        statistics: figures to whiten with, such as ``model.statistics["latent"]``; the store's own by default, which
            ``omnivae calibrate MODEL --store STORE`` saves with the model.
        mode: give the means instead of samples.
        crop: give a part of this spatial size of each latent, from a place that is drawn afresh in each epoch; with ``mode`` the
            middle. Only the part is read.
        shape: take only the latents of this spatial size.
        mixed: give latents of different sizes, for batches of one or a ``collate_fn`` of your own.

    Raises:
        ValueError: for latents of different sizes unless one of the last three arguments says what to do, latents that are
            smaller than the crop, and a shape that no latent has.

    Example:
        ``for epoch in range(n): dataset.set_epoch(epoch); ...`` as with a sampler of torch.
    """

    def __init__(
        self,
        store: PosteriorStore,
        *,
        seed: int = 0,
        whiten: bool | Literal["channel", "scale"] = False,
        statistics: Mapping[str, Any] | None = None,
        mode: bool = False,
        crop: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        mixed: bool = False,
    ) -> None:
        if whiten not in (True, False, "channel", "scale"):
            raise ValueError(f"got whiten={whiten!r}; expected True, False, 'channel' or 'scale'")
        if (crop is not None) + (shape is not None) + mixed > 1:
            raise ValueError("got several of crop, shape and mixed; give one of them")
        self.store, self.seed, self.mode = store, int(seed), mode
        self.kind: Literal["channel", "scale"] | None = None
        if whiten:
            self.kind = "scale" if whiten == "scale" else "channel"
            self.statistics = store.statistics() if statistics is None else statistics
        self.crop = None if crop is None else tuple(int(n) for n in crop)
        self.numbers = _chosen(store, self.crop, None if shape is None else tuple(int(n) for n in shape), mixed)
        # Shared memory: loading processes that outlive an epoch see the next one too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.numbers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose samples are drawn.

        Args:
            epoch: its number.
        """
        self._epoch[0] = epoch

    def __getitem__(self, index: int | str) -> dict[str, Any]:
        """Return one sample.

        Args:
            index: its number in this data set, or its key.

        Returns:
            ``z [C, *S]``, ``key`` and, where the images have one, ``label``; of volumes ``spacing [3]`` of the voxels that the
            model saw; of a part ``start``, its first position in the latent.
        """
        i = self.store.number(index) if isinstance(index, str) else int(self.numbers[index])
        store, epoch = self.store, int(self._epoch)
        key, label, spacing = store.keys[i], store.label(i), store.spacing(i)
        item: dict[str, Any] = {"key": key}
        box: tuple[slice, ...] = ()
        if self.crop is not None:
            start = self._start(store.latent_shape(i)[1:], key, epoch)
            box = tuple(slice(a, a + n) for a, n in zip(start, self.crop, strict=True))
            item["start"] = torch.tensor(start)
        z, logvar = store.posterior(i, box)
        if not self.mode:
            z = draw(z, logvar, key=key, seed=self.seed, epoch=epoch)
        if self.kind is not None:
            z = whiten(z, self.statistics, axis=0, kind=self.kind)
        item = {"z": z, **item}
        if label is not None:
            item["label"] = torch.as_tensor(label)
        return item if spacing is None else item | {"spacing": spacing}

    def _start(self, size: Sequence[int], key: str, epoch: int) -> list[int]:
        assert self.crop is not None
        free = [n - m for n, m in zip(size, self.crop, strict=True)]
        if self.mode:
            return [n // 2 for n in free]
        generator = _generator(self.seed, epoch, key, "crop")
        return [int(torch.randint(n + 1, (), generator=generator)) for n in free]


def draw(mean: Tensor, logvar: Tensor, *, key: str, seed: int, epoch: int = 0) -> Tensor:
    """Draw z = mean + exp(logvar / 2) * eps with noise that belongs to the image: a function of (seed, epoch, key).

    Args:
        mean: ``[C, *S]``.
        logvar: ``[C, *S]``.
        key: name of the image.
        seed: of the draw.
        epoch: another epoch gives another draw.

    Returns:
        ``[C, *S]``.
    """
    noise = torch.randn(mean.shape, generator=_generator(seed, epoch, key), dtype=mean.dtype)
    return mean + torch.exp(0.5 * logvar) * noise


# -- inside


def _generator(*about: int | str) -> torch.Generator:
    digest = hashlib.sha256(json.dumps(about).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _chosen(
    store: PosteriorStore, crop: tuple[int, ...] | None, shape: tuple[int, ...] | None, mixed: bool
) -> np.ndarray:
    """Return the numbers of the entries that a data set gives."""
    sizes = store.sizes()
    if mixed or not sizes:
        return np.arange(len(store))
    if crop is not None:
        axes = len(next(iter(sizes)))
        if len(crop) != axes or min(crop, default=0) < 1:
            raise ValueError(
                f"got crop={crop}; the latents have {axes} spatial axes: give so many lengths of at least 1"
            )
        least = tuple(min(size[axis] for size in sizes) for axis in range(axes))
        if any(n > m for n, m in zip(crop, least, strict=True)):
            small = [i for size, numbers in sizes.items() if any(map(int.__gt__, crop, size)) for i in numbers]
            raise ValueError(
                f"got crop={crop}, and {len(small)} of {len(store)} latents are smaller, e.g. {store.keys[small[0]]} of "
                f"{_times(store.latent_shape(int(small[0]))[1:])}: give at most crop={least}"
            )
        return np.arange(len(store))
    if shape is not None:
        if shape not in sizes:
            known = ", ".join(f"{size} ({len(numbers)})" for size, numbers in list(sizes.items())[:5])
            more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
            raise ValueError(f"got shape={shape}, which no latent of {store.path} has; there are {known}{more}")
        if len(sizes) > 1:
            log.info(
                "%d of %d latents have the shape %s; the others are left out", len(sizes[shape]), len(store), shape
            )
        return sizes[shape]
    if len(sizes) > 1:
        common = max(sizes, key=lambda size: len(sizes[size]))
        least = tuple(min(lengths) for lengths in zip(*sizes, strict=True))
        first, last = min(sizes), max(sizes)
        raise ValueError(
            f"{store.path} holds latents of {len(sizes)} sizes, such as {_times(first)} and {_times(last)}, which make no batch: "
            f"give crop={least} for parts of one size, shape={common} for the {len(sizes[common])} latents of that size, or "
            "mixed=True for batches of one"
        )
    return np.arange(len(store))


def _times(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)
