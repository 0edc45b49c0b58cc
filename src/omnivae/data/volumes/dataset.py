"""Volumes as a data set of patches: random ones for training, fixed ones for validation, whole volumes for evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from omnivae.data.datasets import ImageDataset
from omnivae.data.sources import SPLITS, Split
from omnivae.data.volumes.dataset_patches import cut, fixed_corners, random_corner
from omnivae.data.volumes.dataset_source import Intensity, VolumeSource

Cutting = Literal["random", "fixed", "whole"]


@dataclass(frozen=True)
class VolumeTransform:
    """What happens to a volume between its file and the model.

    Attributes:
        shape: channels and size of an item; of whole volumes of several sizes, channels and three zeros.
        intensity: what values become.
        cutting: "random" patches, "fixed" ones, or "whole" volumes.
        patches_per_volume: of the random ones in an epoch; of the fixed ones at most.
        foreground: share of the random patches whose centre lies in the foreground.
        flip_axes: along which random patches are mirrored.
        level: resolution level.
        most_voxels: of whole volumes; of larger ones the central part is taken, and the rest is not seen.
    """

    shape: tuple[int, ...]
    intensity: Intensity
    cutting: Cutting
    patches_per_volume: int
    foreground: float
    flip_axes: tuple[int, ...] = ()
    level: int = 0
    most_voxels: int | None = None
    binarize: str = "none"

    def in_range(self, value_range: tuple[float, float]) -> VolumeTransform:
        """Return the same with other values for the ends of the intensity range."""
        return replace(self, intensity=replace(self.intensity, range=value_range))

    def to_dict(self) -> dict[str, Any]:
        """Return everything that happens between file and tensor to what is evaluated, ready for JSON."""
        shape = list(self.shape) if any(self.shape[1:]) else [self.shape[0], None, None, None]
        facts = {"shape": shape, "cutting": self.cutting, "intensity": self.intensity.to_dict(), "level": self.level}
        facts |= {"patches_per_volume": self.patches_per_volume} if self.cutting == "fixed" else {}
        return facts | ({"central_voxels_at_most": self.most_voxels} if self.most_voxels is not None else {})


class VolumeDataset(ImageDataset):
    """One split of a data set of volumes; items are pure functions of (seed, epoch, index), whatever process cuts them.

    An item has ``x [C, I, J, K]``, its ``key`` and ``spacing_mm [3]``, the voxel size (micrometres on a stage).

    Args:
        source: the volumes.
        volumes: those of this split, as numbers of the source, ``[V]``.
        split: "train", "val" or "test".
        transform: how items are cut and scaled.
        seed: of the random patches.
    """

    source: VolumeSource
    transform: VolumeTransform  # type: ignore[assignment]

    def __init__(
        self,
        source: VolumeSource,
        volumes: np.ndarray,
        *,
        split: Split,
        transform: VolumeTransform,
        seed: int = 0,
    ) -> None:
        patch = transform.shape[1:]
        self.corners: list[tuple[int, ...] | None]
        if transform.cutting == "random":
            indices = np.repeat(volumes, transform.patches_per_volume)
            self.corners = [None] * len(indices)
        elif transform.cutting == "fixed":
            places = [
                fixed_corners(source.facts(v).size, patch, source.prepared[v].blocks, transform.patches_per_volume)
                for v in map(int, volumes)
            ]
            indices = np.repeat(volumes, [len(p) for p in places])
            self.corners = [tuple(int(c) for c in corner) for p in places for corner in p]
        else:
            indices = np.asarray(volumes)
            self.corners = [
                tuple((n - p) // 2 for n, p in zip(size, _central(size, transform.most_voxels), strict=True))
                for size in (source.facts(int(v)).size for v in volumes)
            ]
        super().__init__(source, indices, split=split, transform=transform, seed=seed)  # type: ignore[arg-type]
        self.volumes = np.asarray(volumes)

    def whole(self, volumes: np.ndarray | None = None, *, most_voxels: int | None = None) -> VolumeDataset:
        """Return whole volumes instead of patches.

        Args:
            volumes: numbers of the source ``[V]``; those of this split by default.
            most_voxels: of larger volumes the central part of so many voxels is taken; None takes all of every volume.

        Returns:
            A data set of which an item is a volume of its own size.
        """
        transform = replace(
            self.transform, cutting="whole", shape=(self.transform.shape[0], 0, 0, 0), most_voxels=most_voxels
        )
        chosen = self.volumes if volumes is None else volumes
        return type(self)(self.source, chosen, split="test", transform=transform, seed=self.seed)

    def fixed(self, volumes: np.ndarray | None = None) -> VolumeDataset:
        """Return fixed patches, the same in every epoch.

        Args:
            volumes: numbers of the source ``[V]``; those of this split by default.
        """
        chosen = self.volumes if volumes is None else volumes
        return type(self)(
            self.source, chosen, split="test", transform=replace(self.transform, cutting="fixed"), seed=self.seed
        )

    def keep_decoded(self, setting: bool | Literal["auto"], *, any_size: bool = False) -> bool:
        """Return whether volumes are kept decoded: they were, or were not, when they were prepared."""
        return any(self.source.prepared[int(v)].file is not None for v in self.volumes)

    def set_resolution(self, side: int | None) -> None:
        """Refuse: patches have one size."""
        raise ValueError("patches of volumes have one size: leave data.resolutions out")

    @cached_property
    def keys(self) -> list[str]:
        """The name of each item: the volume's, with the first voxel of a fixed patch or the number of a random one."""
        return [self.name_of(i) for i in range(len(self))]

    def name_of(self, index: int) -> str:
        """Return the name of an item.

        Args:
            index: of the item.
        """
        key = self.source.key(int(self.indices[index]))
        if self.transform.cutting == "whole":
            return key
        corner = self.corners[index]
        if corner is None:
            return f"{key}#{index % self.transform.patches_per_volume}"
        return f"{key}@{','.join(map(str, corner))}"

    def place(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return where an item is cut: its first voxel, its size, and the axes of ``[C, I, J, K]`` along which it is mirrored.

        Args:
            index: of the item, 0 or more.
        """
        number, t = int(self.indices[index]), self.transform
        size, corner, flips = self.source.facts(number).size, self.corners[index], tuple[int, ...]()
        patch = _central(size, t.most_voxels) if t.cutting == "whole" else t.shape[1:]
        if corner is None:
            random = np.random.default_rng([self.seed, SPLITS.index(self.split), self._epoch, index])
            flips = tuple(axis + 1 for axis in t.flip_axes if random.random() < 0.5)
            blocks = self.source.prepared[number].blocks
            corner = random_corner(size, patch, blocks, foreground=t.foreground, random=random)
        return corner, patch, flips

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        index %= len(self)
        number, t = int(self.indices[index]), self.transform
        facts, values = self.source.facts(number), self.source.values(number)
        corner, patch, flips = self.place(index)
        low, _ = t.intensity.ends(facts)
        x = t.intensity.scaled(cut(values, corner, patch, low), facts)
        if flips:
            x = np.ascontiguousarray(np.flip(x, flips))
        return {
            "x": torch.from_numpy(x),
            "key": self.name_of(index),
            "spacing_mm": torch.tensor(facts.spacing, dtype=torch.float32),
        }

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return several items."""
        return [self[i] for i in indices]


def _central(size: tuple[int, ...], most_voxels: int | None) -> tuple[int, ...]:
    """Return a size of at most so many voxels: the longest axes are cut to a common length."""
    if most_voxels is None or math.prod(size) <= most_voxels:
        return size
    low, high = 1, max(size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if math.prod(min(n, middle) for n in size) <= most_voxels else (low, middle - 1)
    return tuple(min(n, low) for n in size)
