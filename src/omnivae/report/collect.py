"""Chooses the images of a report and encodes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics import Inference, kl_per_dimension
from omnivae.metrics.codes import CodeCounts

#: Pixels that go through the model at once; bounds the memory for large images.
PIXELS_AT_ONCE = 2**20


class Chosen:
    """A part of a dataset.

    Args:
        dataset: a map-style dataset of dict items.
        indices: which items.
    """

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.dataset[self.indices[index]]


@dataclass(frozen=True)
class Encoded:
    """Latents of a part of a dataset; a dimension of a spatial latent is its channel.

    Attributes:
        means: posterior mode of each image, averaged over positions, ``[N, D]``.
        centre: mean of the aggregate posterior, ``[D]``.
        spread: its standard deviation, ``[D]``: variance of the modes plus mean posterior variance.
        kl: mean KL of each dimension in nats, or empty where it does not factorise.
        labels: class index of each image ``[N]``, the first factor where there are several, or ``None``.
        latent_shape: shape of the first image's latent.
        codes: how often each code was chosen; ``None`` where the latents are no codes.
    """

    means: np.ndarray
    centre: Tensor
    spread: Tensor
    kl: list[float]
    labels: np.ndarray | None
    latent_shape: tuple[int, ...]
    codes: CodeCounts | None = None


def choose(dataset: Any, count: int, *, seed: int) -> Chosen:
    """Return ``count`` items in random order, all where there are fewer.

    Args:
        dataset: a map-style dataset.
        count: number of items, >= 1.
        seed: seed of the choice.

    Returns:
        The items, read when asked for.

    Raises:
        ValueError: for an empty dataset.
    """
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; a report needs at least one image")
    return Chosen(dataset, np.random.default_rng(seed).permutation(len(dataset))[:count].tolist())


def batch_size_for(size: Sequence[int], *, at_most: int = 32) -> int:
    """Return how many images of a spatial size go through the model at once."""
    return max(1, min(at_most, PIXELS_AT_ONCE // math.prod(size)))


def same_size(items: Chosen, count: int) -> list[Mapping[str, Any]]:
    """Return ``count`` items of the first one's size, to stand side by side, with labels as varied as can be.

    Args:
        items: where to look.
        count: how many to return, fewer where there are no more.

    Returns:
        The items: one of each label first, then a second of each, and so on.
    """
    found: list[tuple[int, int, Mapping[str, Any]]] = []
    seen: dict[float | None, int] = {}
    for index in range(min(len(items), 4 * count)):
        item = items[index]
        if found and item["x"].shape != found[0][2]["x"].shape:
            continue
        label = _label(item)
        found.append((0 if label is None else seen.get(label, 0), index, item))
        seen[label] = seen.get(label, 0) + 1
    return [item for _, _, item in sorted(found, key=lambda entry: entry[:2])[:count]]


def stack(items: list[Mapping[str, Any]], name: str, device: torch.device) -> Tensor | None:
    """Return one field of the items as a batch, or ``None`` where they lack it."""
    if items[0].get(name) is None:
        return None
    return torch.stack([torch.as_tensor(item[name]) for item in items]).to(device)


@torch.no_grad()
def encode_all(model: Any, items: Chosen, device: torch.device) -> Encoded:
    """Encode items in batches of equal size.

    Args:
        model: a VAE in evaluation mode.
        items: what to encode.
        device: where the model is.

    Returns:
        Latents and their statistics, in the order of the items.
    """
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    kl, weights = [], []
    labels: list[Any] = [None] * len(items)
    latent_shape: tuple[int, ...] = ()
    codes: CodeCounts | None = None

    def take(group: list[tuple[int, Mapping[str, Any]]]) -> None:
        nonlocal latent_shape, codes
        members = [item for _, item in group]
        x = stack(members, "x", device)
        assert x is not None
        keys = [str(item["key"]) for item in members]
        inference = Inference(model, x, keys, cond=stack(members, "cond", device))
        mode = inference.posterior.mode().double().cpu()
        if getattr(inference.posterior, "indices", None) is not None:
            codes = CodeCounts.of(inference.posterior) if codes is None else codes
            codes.add_posterior(inference.posterior)
        logvar = getattr(inference.posterior, "logvar", None)
        variance = torch.zeros_like(mode) if logvar is None else logvar.double().exp().cpu()
        flat, noise = mode.unsqueeze(-1).flatten(2), variance.unsqueeze(-1).flatten(2)
        for (index, _), m, v in zip(group, flat, noise, strict=True):
            rows[index] = (m.mean(-1), (m.square() + v).mean(-1))
        if group[0][0] == 0:
            latent_shape = tuple(mode.shape[1:])
        of_batch = kl_per_dimension(inference)
        if of_batch is not None:
            kl.append(of_batch.cpu() * len(group))
            weights.append(len(group))

    waiting: dict[tuple[int, ...], list[tuple[int, Mapping[str, Any]]]] = {}
    for index in range(len(items)):
        item = items[index]
        labels[index] = _label(item)
        group = waiting.setdefault(tuple(item["x"].shape), [])
        group.append((index, item))
        if len(group) == batch_size_for(item["x"].shape[1:]):
            take(waiting.pop(tuple(item["x"].shape)))
    for group in waiting.values():
        take(group)

    means = torch.stack([rows[i][0] for i in range(len(items))])
    second = torch.stack([rows[i][1] for i in range(len(items))]).mean(0)
    centre = means.mean(0)
    return Encoded(
        means=means.numpy(),
        centre=centre,
        spread=(second - centre.square()).clamp(min=0).sqrt(),
        kl=(torch.stack(kl).sum(0) / sum(weights)).tolist() if kl else [],
        labels=None if any(label is None for label in labels) else np.asarray(labels),
        latent_shape=latent_shape,
        codes=codes,
    )


def _label(item: Mapping[str, Any]) -> float | None:
    label = item.get("label")
    return None if label is None else float(np.asarray(label).reshape(-1)[0])
