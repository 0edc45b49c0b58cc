"""Volumes in commands: what a model that was trained on patches is shown when it is measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Subset

from omnivae.data import DataConfig, DataSplits
from omnivae.data.cache import SHARE, free_memory
from omnivae.data.config import VOLUMES
from omnivae.data.formats import holds_volumes
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.metrics.registry import GROUPS, measurable
from omnivae.models import VAE, Tiled

log = logging.getLogger(__name__)

#: Voxels of a volume up to which it goes through a model at once.
MOST_VOXELS = 128**3
#: Patches that a report shows and measures at least, and the voxels up to which there are more.
REPORT_PATCHES, REPORT_VOXELS = 8, 2**20
#: Metrics for which samples of the whole input are decoded.
DENSITY = ("elbo", "nll", "bits_per_dim", "likelihood_regret")


def shown_whole(model: VAE, dataset: VolumeDataset) -> VolumeDataset:
    """Return a data set as a model is measured on it: whole volumes where the model takes any size.

    A model with a vector latent sees the fixed patches of the size that it was built for.

    Args:
        model: the model.
        dataset: volumes, cut in any way.

    Returns:
        The data set.
    """
    return dataset.fixed() if model.image_size is not None else dataset.whole()


def centres(dataset: Any) -> Any:
    """Return whole volumes with those of more than 128 x 128 x 128 voxels cut to their centre, which is logged.

    Args:
        dataset: whole volumes; anything else is returned as it is.
    """
    if not isinstance(dataset, VolumeDataset) or dataset.transform.cutting != "whole" or not _larger(dataset):
        return dataset
    log.warning(
        "%d of %d volumes have more than %d voxels: their centre is taken", _larger(dataset), len(dataset), MOST_VOXELS
    )
    return dataset.whole(most_voxels=MOST_VOXELS)


def in_tiles(model: VAE, dataset: Any, metrics: Sequence[str]) -> VAE | Tiled:
    """Return a model that computes the largest volumes of a data set in a quarter of the free memory.

    Volumes of more than 128 x 128 x 128 voxels are computed exactly, tile by tile (:class:`omnivae.Tiled`): the figures are
    those of the model itself, to rounding.

    Args:
        model: the model.
        dataset: what it is measured on.
        metrics: what is measured.

    Returns:
        The model, or the model in tiles.

    Raises:
        ValueError: for metrics that need many samples of a whole volume.
    """
    if not isinstance(dataset, VolumeDataset) or dataset.transform.cutting != "whole" or not _larger(dataset):
        return model
    dense = [name for name in metrics if name in DENSITY]
    if dense:
        raise ValueError(
            f"got the metric {dense[0]} and volumes of up to {int(dataset.source.sizes.prod(axis=1).max()):,} voxels, of which "
            f"whole samples would be decoded: leave it out, or choose from {', '.join(usual_metrics(model))}"
        )
    memory = int(SHARE * free_memory())
    log.info("%d of %d volumes are computed in tiles, in %.1f GB", _larger(dataset), len(dataset), memory / 1e9)
    return Tiled(model.eval(), memory=memory)


def _larger(dataset: VolumeDataset) -> int:
    return int((dataset.source.sizes[dataset.volumes].prod(axis=1) > MOST_VOXELS).sum())


def for_report(dataset: Any) -> Any:
    """Return what a run's report is about: of volumes a few fixed patches, evenly chosen; of images all of them.

    Args:
        dataset: the test images.

    Returns:
        A data set.
    """
    if not isinstance(dataset, VolumeDataset):
        return dataset
    if dataset.transform.cutting == "whole":
        return Subset(centres(dataset), range(min(len(dataset), REPORT_PATCHES)))
    voxels = math.prod(dataset.transform.shape[1:])
    count = min(len(dataset), max(REPORT_PATCHES, REPORT_VOXELS // voxels))
    return Subset(dataset, sorted({round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)}))


def usual_metrics(model: VAE) -> tuple[str, ...]:
    """Return what is measured of volumes unless something else is asked for.

    Without multi-scale similarity, for which most volumes have too few slices, and without the ELBO, an expectation over many
    decoded samples. Of CT also the errors in HU, in all and in each display window.

    Args:
        model: the model.
    """
    hu = model.statistics.get("intensity", {}).get("unit") == "HU"
    names = ("psnr", "ssim", "mse", "l1", "perplexity", "code_usage")
    return (*measurable(names, model), *(("mae_hu", *GROUPS["windows"]) if hu else ()))


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
