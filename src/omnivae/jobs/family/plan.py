"""What a comparison of recipes trains: the same images, steps, batches and seeds for each of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from omnivae.data import DataConfig
from omnivae.jobs.config import RunConfig
from omnivae.recipes import MEMBERS, RECIPES
from omnivae.recipes.family import members
from omnivae.training import TrainingConfig

#: What is measured where a model and the data have it.
METRICS = (
    "elbo", "nll", "kl", "psnr", "ssim", "active_units", "mutual_information", "mig", "sap", "dci_disentanglement",
    "rfd", "gfd",
)  # fmt: skip
#: Learning rate of a recipe whose paper names none.
LEARNING_RATE = 1e-3
#: What a comparison that is continued may ask for beside what it has.
LATER = ("recipes", "seeds", "metrics", "images", "num_samples_nll")


@dataclass(frozen=True)
class Plan:
    """A comparison of recipes.

    Args:
        data: the images.
        recipes: names, at least two.
        seeds: one run of each recipe for each; of weights, order and noise. The split of the data is always the same.
        steps: optimiser steps of each run.
        batch_size: images in a step.
        learning_rate: of every run; each paper's own, or 1e-3, where it is not given.
        latent_dim: of every recipe that has one; each recipe's own where it is not given.
        channels: of every recipe that has them.
        metrics: names of metrics; those that a model or the data do not have are left blank and named.
        images: at most so many test images.
        num_samples_nll: K of the importance-weighted bound.

    Raises:
        ValueError: for fewer than two recipes, an unknown one, a repeated one, no seed or a number below one.
    """

    data: DataConfig
    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float | None = None
    latent_dim: int | None = None
    channels: tuple[int, ...] | None = None
    metrics: tuple[str, ...] = field(default=METRICS)
    images: int = 1000
    num_samples_nll: int = 100

    def __post_init__(self) -> None:
        members(self.recipes)
        for name, values in (("recipes", self.recipes), ("seeds", self.seeds)):
            repeated = sorted({str(v) for v in values if list(values).count(v) > 1})
            if repeated:
                raise ValueError(f"got {name} {', '.join(repeated)} more than once; expected each once")
        if len(self.recipes) < 2:
            raise ValueError(f"got recipes {list(self.recipes)}; expected two or more to compare")
        if not self.seeds:
            raise ValueError("got no seeds; expected one or more, such as 0 1 2")
        for name in ("steps", "batch_size", "images", "num_samples_nll"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}; expected at least 1")

    def config(self, recipe: str, seed: int) -> RunConfig:
        """Return the configuration of one run.

        Args:
            recipe: its name.
            seed: of weights, order and noise.

        Returns:
            The recipe's own objective, on the common images for the common number of steps.
        """
        known = MEMBERS[recipe]
        parameters = inspect.signature(RECIPES[recipe]).parameters
        wanted = {"latent_dim": self.latent_dim, "channels": None if self.channels is None else list(self.channels)}
        model = {k: v for k, v in wanted.items() if v is not None and k in parameters}
        own = known.training.get("learning_rate", LEARNING_RATE)
        training = TrainingConfig(
            batch_size=self.batch_size,
            learning_rate=own if self.learning_rate is None else self.learning_rate,
            max_steps=self.steps,
            seed=seed,
            checkpoint_every=max(1, min(500, self.steps // 4)),
            log_every=max(1, self.steps // 100),
        )
        losses = {name: dict(arguments) for name, arguments in known.losses.items()}
        return RunConfig({"recipe": recipe, **model}, replace(self.data, **known.data), losses, training)

    def ignored(self) -> list[str]:
        """Return a sentence for each common setting that a recipe does not have."""
        sentences = []
        for name in ("latent_dim", "channels"):
            without = [r for r in self.recipes if name not in inspect.signature(RECIPES[r]).parameters]
            if getattr(self, name) is not None and without:
                sentences.append(f"{', '.join(without)}: no {name}, so the recipe's own network was used")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for ``family.json``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def differing(old: dict[str, Any], new: dict[str, Any], allowed: Sequence[str] = LATER) -> list[str]:
    """Return what two plans disagree on, apart from what may be added later.

    Args:
        old: the plan of a directory.
        new: what is asked for.
        allowed: fields that may differ.

    Returns:
        ``"steps: 100 there, 200 asked"``, one for each field.
    """
    names = [name for name in new if name not in allowed and old.get(name) != new[name]]
    return [f"{name}: {old.get(name)} there, {new[name]} asked" for name in names]
