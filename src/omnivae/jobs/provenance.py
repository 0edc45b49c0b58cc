"""What an evaluation's card says about the model and the images: hashes, names, and how the images were prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnivae.data import DataSplits
from omnivae.jobs.config import RunConfig, read_yaml
from omnivae.metrics import Provenance
from omnivae.models.storage import find_model, model_hash

#: Parts of a transform that only training images go through.
AUGMENTATION = ("flip", "random_crop")


def provenance_of(model: str | Path, splits: DataSplits, split: str) -> Provenance:
    """Return the provenance of an evaluation.

    Args:
        model: a model directory or a run.
        splits: the data.
        split: which part of it is evaluated; "all" for everything.

    Returns:
        Names and hashes, without any path of this machine.
    """
    directory = find_model(model)
    transform = splits.test.transform
    preprocessing: dict[str, Any] = {k: v for k, v in transform.to_dict().items() if k not in AUGMENTATION}
    if transform.binarize == "stochastic":
        preprocessing["seed"] = splits.test.seed
    return Provenance(
        model_hash=model_hash(directory),
        recipe=_recipe(directory),
        data=splits.name,
        split=split,
        preprocessing=preprocessing,
    )


def _recipe(directory: Path) -> str | None:
    file = directory.parent / "config.yaml"
    if directory.name != "model" or not file.is_file():
        return None
    name = RunConfig.from_dict(read_yaml(file)).model.get("recipe")
    return None if name is None else str(name)
