"""Smoothness of interpolation: how pixels move while a code moves along the straight line between two images' codes.

Pairs are an image and the next one in the population's order (which is random); 256 at most.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.inference import Inference
from omnivae.metrics.population import Estimate, Population
from omnivae.metrics.registry import metric

#: Pairs of images, points on the line between them, and the step of the path length.
MAX_PAIRS, POINTS, EPSILON = 256, 11, 1e-2


def conditioned_codes(inference: Inference) -> dict[str, Tensor]:
    """Collect the posterior mode ``z``, the image's size, and the condition where there is one.

    Args:
        inference: the group.
    """
    x = inference.x
    size = torch.tensor(x.shape[2:], dtype=torch.float32).expand(len(x), -1)
    of = {"z": inference.posterior.mode(), "size": size}
    return of if inference.cond is None else of | {"cond": inference.cond}


@metric(
    unit="",
    better="lower",
    meaning="How unevenly pixels move along the line between two codes: 0 for a straight path, 4 for one that jumps to and fro.",
    scope="population",
    masks=True,
    collect=conditioned_codes,
)
def interpolation_roughness(population: Population) -> Estimate:
    """Return ``sum_k ||d_k+1 - d_k||² / sum_k (||d_k||² + ||d_k+1||²) / 2``, d_k the steps between 11 points of a line, decoded.

    Second differences over first, both summed over all pairs: 0 where pixels follow the code linearly (a linear decoder), 2 where
    successive steps have nothing to do with each other, 4 at most. It does not see how far the images are apart.

    Args:
        population: the images.

    Returns:
        Between 0 and 4.
    """
    rows = population.once(measured_paths)[:, :2].numpy()
    note = None if rows[:, 1].any() else "undefined: decoded images do not depend on the code"
    return Estimate(rows, ratio_of_sums, population.noted(_pairs(len(rows)), note))


@metric(
    unit="",
    better="lower",
    meaning="Squared change of a pixel for a unit of the way between two codes, at a random place: the path length on pixels.",
    scope="population",
    comparable="range",
    masks=True,
    collect=conditioned_codes,
)
def path_length(population: Population) -> Estimate:
    """Return ``E[d(G(z_t), G(z_t+e)) / e²]``, d the mean squared difference of pixels (Karras et al., StyleGAN, 2019, eq. 3).

    Their perceptual path length with pixels in the place of VGG's features, lines between codes of images in the place of
    those between samples, t uniform and e = 0.01.

    Args:
        population: the images.

    Returns:
        Squared pixel values.
    """
    rows = population.once(measured_paths)[:, 2].numpy()
    return Estimate(rows, remark=population.noted(_pairs(len(rows))))


def ratio_of_sums(rows: np.ndarray) -> float:
    """Return the ratio of two sums over pairs; NaN where the second is zero.

    Args:
        rows: ``[P, 2]``.
    """
    above, below = rows.sum(0)
    return float(above / below) if below > 0 else float("nan")


def measured_paths(population: Population) -> Tensor:
    """Decode the points of each pair's line, 11 evenly spaced ones and two that are 0.01 apart at a random place, and measure them.

    Args:
        population: the images.

    Returns:
        Sum of squared second differences, sum of squared first ones (each the mean of two neighbours), and squared change of a
        pixel for a unit of the way, ``[P, 3]`` float64.
    """
    population.demand("interpolation_roughness and path_length", 2)
    z = population.table(conditioned_codes, "z")
    size = population.table(conditioned_codes, "size")[0].int().tolist()
    has_cond = "cond" in population.names(conditioned_codes)
    cond = population.table(conditioned_codes, "cond") if has_cond else None
    random = torch.Generator().manual_seed(population.seed)
    measured = []
    for i in range(min(MAX_PAIRS, len(z) - 1)):
        start = torch.rand((), generator=random) * (1 - EPSILON)
        at = torch.cat([torch.linspace(0, 1, POINTS), torch.stack([start, start + EPSILON])])
        at = at.reshape(-1, *[1] * (z.ndim - 1))
        line = ((1 - at) * z[i] + at * z[i + 1]).to(population.device)
        # The first image's condition all the way: a condition is nothing to walk through.
        known = None if cond is None else cond[i].to(population.device).expand(len(line), -1)
        # Pictures of one pair at a time: those of all would be gigabytes.
        path = population.model.decode(line, known, size=size).double().cpu()
        first = path[:POINTS].diff(dim=0)
        steps = first.square().flatten(1).sum(1)
        bends = first.diff(dim=0).square().sum()
        slope = path[POINTS:].diff(dim=0).square().mean() / EPSILON**2
        measured.append(torch.stack([bends, (steps[1:] + steps[:-1]).sum() / 2, slope]))
    return torch.stack(measured)


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)} of images"
