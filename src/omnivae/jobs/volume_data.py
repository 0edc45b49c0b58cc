"""Volumes in commands: what a model that was trained on patches is shown when it is measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Subset

from omnivae.data import DataConfig, DataSplits
from omnivae.data.config import VOLUMES
from omnivae.data.formats import holds_volumes
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.models import VAE

log = logging.getLogger(__name__)

#: Voxels of the part of a volume that goes through a model at once; of larger volumes the centre is shown.
MOST_VOXELS = 128**3
#: Patches that a report shows and measures at least, and the voxels up to which there are more.
REPORT_PATCHES, REPORT_VOXELS = 8, 2**20


def shown_whole(model: VAE, dataset: VolumeDataset) -> VolumeDataset:
    """Return a data set as a model is measured on it: whole volumes, where the model takes any size.

    Volumes of more than 128 x 128 x 128 voxels are cut to their centre, which is logged and written into the evaluation's card;
    a model with a vector latent sees the fixed patches of the size that it was built for.

    Args:
        model: the model.
        dataset: volumes, cut in any way.

    Returns:
        The data set.
    """
    if model.image_size is not None:
        return dataset.fixed()
    larger = [v for v in map(int, dataset.volumes) if dataset.source.sizes[v].prod() > MOST_VOXELS]
    if larger:
        log.warning(
            "%d of %d volumes have more than %d voxels: their centre is measured",
            len(larger),
            len(dataset.volumes),
            MOST_VOXELS,
        )
    return dataset.whole(most_voxels=MOST_VOXELS if larger else None)


def for_report(dataset: Any) -> Any:
    """Return what a run's report is about: of volumes a few fixed patches, evenly chosen; of images all of them.

    Args:
        dataset: the test images.

    Returns:
        A data set.
    """
    if not isinstance(dataset, VolumeDataset):
        return dataset
    voxels = math.prod(dataset.transform.shape[1:])
    count = min(len(dataset), max(REPORT_PATCHES, REPORT_VOXELS // voxels))
    return Subset(dataset, sorted({round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)}))


def shape_of_stacks(splits: DataSplits) -> dict[str, Any]:
    """Return the arguments by which recipes of stacks and volumes call the size of a patch.

    Args:
        splits: the data.
    """
    facts: dict[str, Any] = {
        "spatial_dims": len(splits.image_size),
        "in_shape": [splits.channels, *splits.image_size],
        "out_channels": splits.channels,
    }
    if len(splits.image_size) == 3:
        depth, *area = splits.image_size
        facts |= {"in_stack_depth": depth, "out_stack_depth": depth, "input_spatial_size": area}
    return facts


def prepared_like(statistics: Mapping[str, Any], path: str) -> DataConfig | None:
    """Return how to read volumes for a model that says how it sees intensities but not how its data was prepared.

    Args:
        statistics: of the model.
        path: of the data.

    Returns:
        The data section; None for a model without such a statement, and for images.
    """
    contract = statistics.get("intensity")
    if contract is None or not (path in VOLUMES or holds_volumes(DataConfig(path))):
        return None
    return DataConfig(path, volume=contract_settings(contract))


def contract_settings(contract: Mapping[str, Any]) -> VolumeConfig:
    """Return the settings of volumes that a model's intensity contract asks for.

    Args:
        contract: ``statistics["intensity"]``.

    Example:
        >>> contract_settings({"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS"}).window
        (-1000.0, 1000.0)
    """
    given: dict[str, Any] = {"unit": contract.get("unit", "auto"), "orientation": contract.get("orientation", "stored")}
    for ours, theirs in (("window", "window"), ("percentiles", "percentiles"), ("deviations", "zscore")):
        if contract.get(theirs) is not None:
            given |= {ours: contract[theirs], "intensity": theirs}
    if contract.get("spacing") is not None:
        given["spacing"] = tuple(contract["spacing"])
    return VolumeConfig(**given)
