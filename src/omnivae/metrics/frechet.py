"""Fréchet distances between images, reconstructions and samples, in the features of a fixed network without any training.

An Inception network cannot be downloaded everywhere, sees only photographs in colour, and says little about others. An untrained
network with random weights is the alternative that Naeem et al. (Reliable Fidelity and Diversity Metrics for Generative Models,
2020) propose: here torchvision's VGG-11 convolutions from seed 0, averaged over positions and projected to 64 numbers. The
distances are comparable with each other on the same data and number of images, and with no published FID. A distance of
covariances grows with repeated images, so a bootstrap interval would lie above the number itself: there is none; repeat over
seeds instead.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from omnivae.metrics.inference import Inference
from omnivae.metrics.population import Estimate, Population
from omnivae.metrics.registry import metric

#: Numbers that an image becomes, the seed of the network, and the sides to which images are resized.
FEATURES, SEED, SIDES = 64, 0, (32, 64)
#: Samples drawn at once.
BATCH = 64

NETWORK = (
    f"Fréchet distance in {FEATURES} features of an untrained VGG-11 (seed {SEED}); comparable with no published FID"
)


def features(inference: Inference) -> dict[str, Tensor]:
    """Collect the features of each image and of its reconstruction, ``[B, 64]``, and its condition where it has one.

    Args:
        inference: the group.

    Raises:
        ValueError: for volumes, signals and text.
    """
    kept = {
        "x": embed(inference.x, inference.model.value_range),
        "reconstruction": embed(inference.reconstruction, inference.model.value_range),
    }
    return kept if inference.cond is None else kept | {"cond": inference.cond}


@metric(
    unit="",
    better="lower",
    meaning="Fréchet distance between images and their reconstructions, in features of an untrained VGG-11.",
    scope="population",
    collect=features,
)
def rfd(population: Population) -> Estimate:
    """Return the Fréchet distance between images and reconstructions (Heusel et al., GANs Trained by TTUR, 2017, eq. 6).

    ``|m_x - m_r|² + tr(C_x + C_r - 2 (C_x C_r)^{1/2})`` of means and covariances of the features.

    Args:
        population: the images.

    Returns:
        The distance.
    """
    population.demand("rfd", 2)
    rows = torch.stack([population.table(features, name) for name in ("x", "reconstruction")], 1)
    return Estimate(rows.double().numpy(), distance_of_pairs, population.noted(NETWORK), interval=False)


@metric(
    unit="",
    better="lower",
    meaning="Fréchet distance between images and as many draws from the prior, in features of an untrained VGG-11.",
    scope="population",
    collect=features,
)
def gfd(population: Population) -> Estimate:
    """Return the Fréchet distance between images and draws from the prior, one for each image, under its condition.

    Args:
        population: the images.

    Returns:
        The distance; of a perfect model it is not 0 but that of two finite sets, which falls with their size.
    """
    population.demand("gfd", 2)
    x = population.table(features, "x")
    model, device = population.model, population.device
    conds = population.table(features, "cond") if "cond" in population.names(features) else None
    generator = torch.Generator().manual_seed(population.seed)
    drawn = []
    for start in range(0, len(x), BATCH):
        n = min(BATCH, len(x) - start)
        cond = None if conds is None else conds[start : start + n].to(device)
        samples = model.sample(n, cond=cond, generator=generator)
        drawn.append(embed(samples.clamp(*model.value_range), model.value_range).cpu())
    rows = torch.stack([x, torch.cat(drawn)], 1)
    return Estimate(rows.double().numpy(), distance_of_pairs, population.noted(NETWORK), interval=False)


def distance_of_pairs(rows: np.ndarray) -> float:
    """Return the Fréchet distance between two sets of features.

    Args:
        rows: ``[N, 2, D]``, the two sets side by side.

    Returns:
        The distance, >= 0.

    Example:
        >>> rows = np.stack([np.eye(3), np.eye(3) + 2.0], 1)  # the same shape, moved by 2 along three axes
        >>> round(distance_of_pairs(rows), 6)
        12.0
    """
    means = rows.mean(0)
    first, second = (np.atleast_2d(np.cov(rows[:, i], rowvar=False)) for i in (0, 1))
    # tr (AB)^1/2 = tr (A^1/2 B A^1/2)^1/2, whose argument is symmetric: real eigenvalues, without a complex square root.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(max(0.0, np.square(means[0] - means[1]).sum() + np.trace(first) + np.trace(second) - 2 * cross))


@torch.no_grad()
def embed(x: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Return the features of images.

    Args:
        x: ``[B, C, H, W]`` in the value range; resized to a side of 32, or 64 where they are larger than 32.
        value_range: lowest and highest value.

    Returns:
        ``[B, 64]`` float32.

    Raises:
        ValueError: for anything but images.
    """
    if x.ndim != 4:
        raise ValueError(
            f"rfd and gfd are distances between images and got inputs with {x.ndim - 2} spatial axes: leave them out"
        )
    low, high = value_range
    side = SIDES[0] if max(x.shape[2:]) <= SIDES[0] else SIDES[1]
    x = nn.functional.interpolate(x.float(), (side, side), mode="bilinear", antialias=True)
    network = _network(x.shape[1]).to(x.device)
    with torch.autocast(x.device.type, enabled=False):
        return network(2 * (x - low) / (high - low) - 1)


@lru_cache(maxsize=4)
def _network(channels: int) -> nn.Module:
    from torchvision.models import vgg11

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layers = vgg11(weights=None).features
        layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
        for module in layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        projection = nn.Linear(512, FEATURES, bias=False)
        nn.init.orthogonal_(projection.weight)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), projection).eval().requires_grad_(False)
