"""Volumes in commands: what a model that was trained on patches is shown when it is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omnivae.data import DataConfig, DataSplits
from omnivae.data.config import VOLUMES
from omnivae.data.formats import holds_volumes
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.models import VAE

log = logging.getLogger(__name__)

#: Voxels of the part of a volume that goes through a model at once; of larger volumes the centre is shown.
MOST_VOXELS = 128**3


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


def with_whole_test(model: VAE, splits: DataSplits) -> DataSplits:
    """Return splits whose test volumes are shown as :func:`shown_whole` says; those of images as they are."""
    if not isinstance(splits.test, VolumeDataset):
        return splits
    return replace(splits, test=shown_whole(model, splits.test))


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
