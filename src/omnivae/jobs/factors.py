"""Where an evaluation's factors come from: the process of a world, or columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnivae.data import DataConfig, DataSplits, ImageDataset
from omnivae.data.formats import find
from omnivae.data.sources import WorldSource
from omnivae.metrics.factors import NUM_ROWS


class WorldProcess:
    """The process of a world, whose images are prepared as those of a data set.

    Args:
        dataset: of the world.
        num_rows: images that a score draws.
    """

    def __init__(self, dataset: ImageDataset, *, num_rows: int = NUM_ROWS) -> None:
        assert isinstance(dataset.source, WorldSource)
        self._dataset, self.num_rows = dataset, num_rows
        self.world = dataset.source.world
        self.names, self.factor_sizes = self.world.names, self.world.factor_sizes

    def observe(self, factors: np.ndarray) -> Tensor:
        """See :class:`omnivae.metrics.factors.Process`."""
        whole = self._dataset
        chosen = ImageDataset(
            whole.source, self.world.index(factors), split="test", transform=whole.transform, seed=whole.seed
        )
        return torch.stack([item["x"] for item in chosen.__getitems__(list(range(len(chosen))))])


def process_of(splits: DataSplits, model: Any, *, num_rows: int = NUM_ROWS) -> WorldProcess | None:
    """Return the process that made the images, or ``None`` where it is not known.

    A model that is told more than the image cannot encode what a process draws, so that there is none for it.

    Args:
        splits: the data.
        model: the model.
        num_rows: images that a score draws.
    """
    told = splits.test.told is not None
    return (
        WorldProcess(splits.test, num_rows=num_rows)
        if isinstance(splits.test.source, WorldSource) and not told
        else None
    )


def read_factors(splits: DataSplits, config: DataConfig, columns: Sequence[str]) -> None:
    """Make numeric columns of a table the labels of its images.

    Args:
        splits: the data; its labels become ``[N, F]`` float32.
        config: how they were read.
        columns: names.

    Raises:
        ValueError: for a column that is not there or holds something else than numbers.
    """
    source = find(replace(config, cond=tuple(columns))).source
    values = []
    for name in columns:
        if name not in source.attributes:
            raise ValueError(
                f"--factors names {name!r}, and {splits.name} has no such column: factors are numeric columns of a table (CSV, "
                "TSV, Parquet), or those of a world (--world dsprites, shapes3d or moving_sprites)"
            )
        try:
            column = np.array([float(value) for value in source.attributes[name]], dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"--factors names {name!r}, which holds something else than numbers: name numeric columns only"
            ) from None
        values.append(column)
    table = np.stack(values, axis=1)
    for part in (splits.train, splits.val, splits.test):
        part.source.labels = table
        part.__dict__.pop("labels", None)
