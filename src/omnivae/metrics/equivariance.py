"""Equivariance: whether the code of a shifted, flipped, turned or shrunk image is the code, shifted, flipped, turned or shrunk.

The number is ``sqrt(sum ||E(T x) - T' E(x)||² / sum ||T' E(x) - mean||²)`` over the images: 0 where the encoder E commutes with
the transformation, 1 where the prediction is no better than the latent's mean.

A spatial latent is transformed as the image is: T' = T (the regulariser of Kouzelis et al., EQ-VAE, 2025, measured), the
mean is that of each channel of each image. A vector latent has no positions to move, and T' is the affine map that predicts best:
ridge regression fitted on one half of the images, the error taken on the other (Lenc & Vedaldi, Understanding image
representations by measuring their equivariance and equivalence, 2015, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnivae.metrics.inference import Inference
from omnivae.metrics.population import Collector, Estimate, Population
from omnivae.metrics.registry import metric
from omnivae.types import strides

#: A vector latent's image is shifted by this share of its side.
SHIFT = 1 / 8


def shifted(inference: Inference) -> dict[str, Tensor]:
    """Collect what :func:`equivariance_shift` compares."""
    stride = strides(inference.model.encoder, inference.x.ndim - 2)

    def move(x: Tensor) -> Tensor:
        by = max(1, round(SHIFT * x.shape[-1]))
        return torch.cat([x[..., :1].expand(*x.shape[:-1], by), x[..., :-by]], -1)

    def cut(x: Tensor, cells: tuple[int, ...]) -> Tensor:
        for axis, n in enumerate(cells, 2):
            x = x.narrow(axis, n, x.shape[axis] - n)
        return x

    return _compare(
        inference,
        "equivariance_shift",
        cells=3,
        spatial=(lambda x: cut(x, stride), lambda z: cut(z, (1,) * len(stride))),
        vector=move,
    )


def flipped(inference: Inference) -> dict[str, Tensor]:
    """Collect what :func:`equivariance_flip` compares."""

    def flip(x: Tensor) -> Tensor:
        return x.flip(-1)

    return _compare(inference, "equivariance_flip", cells=2, spatial=(flip, flip), vector=flip)


def turned(inference: Inference) -> dict[str, Tensor]:
    """Collect what :func:`equivariance_rotation` compares."""
    if inference.x.ndim < 4:
        raise ValueError("equivariance_rotation turns images in a plane, and signals have one axis; leave it out")

    def turn(x: Tensor) -> Tensor:
        return x.rot90(1, (-2, -1))

    if _is_vector(inference) and inference.x.shape[-1] != inference.x.shape[-2]:
        raise ValueError(
            "equivariance_rotation turns images by 90 degrees, and this model's one canvas is not square; leave it out"
        )
    return _compare(inference, "equivariance_rotation", cells=2, spatial=(turn, turn), vector=turn)


def shrunk(inference: Inference) -> dict[str, Tensor]:
    """Collect what :func:`equivariance_scale` compares."""

    def centre(x: Tensor) -> Tensor:
        small, padding = halve(x), []
        for full, half in zip(reversed(x.shape[2:]), reversed(small.shape[2:]), strict=True):
            padding += [(full - half) // 2, full - half - (full - half) // 2]
        return F.pad(small, padding, mode="replicate")

    return _compare(inference, "equivariance_scale", cells=4, multiple=2, spatial=(halve, halve), vector=centre)


@metric(
    unit="",
    better="lower",
    meaning="Error of predicting a shifted image's code from the image's: 0 where the encoder commutes with shifts.",
    scope="population",
    masks=True,
    collect=shifted,
)
def equivariance_shift(population: Population) -> Estimate:
    """Return the equivariance error under a shift.

    A spatial latent's image is cut by one latent cell (the encoder's stride) at the front of every axis, and its code compared
    with the code cut alike; a vector latent's image is shifted along its last axis by an eighth of it, the edge repeated.

    Args:
        population: the images.

    Returns:
        A ratio, 0 or more.
    """
    return _estimate(population, shifted)


@metric(
    unit="",
    better="lower",
    meaning="Error of predicting a mirrored image's code from the image's: 0 where the encoder commutes with flips.",
    scope="population",
    masks=True,
    collect=flipped,
)
def equivariance_flip(population: Population) -> Estimate:
    """Return the equivariance error under a flip of the last axis.

    Args:
        population: the images.

    Returns:
        A ratio, 0 or more.
    """
    return _estimate(population, flipped)


@metric(
    unit="",
    better="lower",
    meaning="Error of predicting the code of an image turned by 90 degrees: 0 where the encoder commutes with rotations.",
    scope="population",
    masks=True,
    collect=turned,
)
def equivariance_rotation(population: Population) -> Estimate:
    """Return the equivariance error under a turn by 90 degrees in the plane of the last two axes, which is exact on any grid.

    Args:
        population: the images.

    Returns:
        A ratio, 0 or more.

    Raises:
        ValueError: for signals, which have one axis only.
    """
    return _estimate(population, turned)


@metric(
    unit="",
    better="lower",
    meaning="Error of predicting the code of an image at half the size: 0 where the encoder commutes with scaling.",
    scope="population",
    masks=True,
    collect=shrunk,
)
def equivariance_scale(population: Population) -> Estimate:
    """Return the equivariance error under halving the size by averaging 2 pixels along each axis.

    A spatial latent is averaged alike. A vector latent's image becomes small in the middle of its canvas, the edge repeated.

    Args:
        population: the images.

    Returns:
        A ratio, 0 or more.
    """
    return _estimate(population, shrunk)


def halve(x: Tensor) -> Tensor:
    """Return the means of 2 neighbours along each spatial axis, ``[B, C, *S / 2]``; an odd last one is left out.

    Args:
        x: ``[B, C, *S]``.
    """
    pool: dict[int, Callable[[Tensor, int], Tensor]] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
    return pool[x.ndim](x, 2)


def relative_error(rows: np.ndarray) -> float:
    """Return the root of the error's sum over the spread's sum; NaN where the latent does not vary at all.

    Args:
        rows: squared error and squared spread of each image, ``[N, 2]``.
    """
    error, spread = rows.sum(0)
    return float(np.sqrt(error / spread)) if spread > 0 else float("nan")


# -- inside


def _is_vector(inference: Inference) -> bool:
    return inference.posterior.mode().ndim == 2


def _compare(
    inference: Inference,
    name: str,
    *,
    cells: int,
    multiple: int = 1,
    spatial: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    vector: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return codes before and after for a vector latent, squared error and spread of each image for a spatial one."""
    model, x, cond = inference.model, inference.x, inference.cond
    if _is_vector(inference):
        return {"before": inference.posterior.mode(), "after": _code(model, vector(x), cond)}
    # Whole cells only (of the halved image too): padding is no part of the question.
    stride = strides(model.encoder, x.ndim - 2)
    whole = [n // (multiple * s) * multiple * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if any(n < cells * s for n, s in zip(whole, stride, strict=True)):
        raise ValueError(
            f"{name} needs images of at least {_times([cells * s for s in stride])} pixels ({cells} latent cells), got "
            f"{_times(x.shape[2:])}; leave it out"
        )
    for axis, n in enumerate(whole, 2):
        x = x.narrow(axis, 0, n)
    move_image, move_code = spatial
    expected = move_code(_code(model, x, cond)).double()
    found = _code(model, move_image(x), cond).double()
    if found.shape != expected.shape:
        raise ValueError(
            f"{name} compares latents position by position, and this model's do not follow the image: a transformed "
            f"image has a latent of shape {tuple(found.shape[1:])}, expected {tuple(expected.shape[1:])}; leave it out"
        )
    positions = tuple(range(2, expected.ndim))
    spread = (expected - expected.mean(positions, keepdim=True)).square().flatten(1).sum(1)
    return {"error": (found - expected).square().flatten(1).sum(1), "spread": spread}


def _code(model: Any, x: Tensor, cond: Tensor | None) -> Tensor:
    return model.encode(x.contiguous(), cond).mode()


def _estimate(population: Population, collector: Callable[[Inference], dict[str, Tensor]]) -> Estimate:
    if "error" in population.names(collector):
        rows = np.stack([population.table(collector, name).double().numpy() for name in ("error", "spread")], -1)
        note = None if rows[:, 1].any() else "undefined: every position of a latent has the same value"
        return Estimate(rows, relative_error, population.noted(note))
    return _affine(population, collector)


def _affine(population: Population, collector: Collector) -> Estimate:
    from sklearn.linear_model import RidgeCV

    population.demand("equivariance of a vector latent", 20)
    before, after = (population.table(collector, name).double().numpy() for name in ("before", "after"))
    half = len(before) // 2
    scale = before[:half].std(0)
    before = (before - before[:half].mean(0)) / np.where(scale > 0, scale, 1.0)
    fitted = RidgeCV(np.logspace(-4, 4, 17)).fit(before[:half], after[:half])
    error = np.square(after[half:] - fitted.predict(before[half:]).reshape(after[half:].shape)).sum(1)
    spread = np.square(after[half:] - after[:half].mean(0)).sum(1)
    note = f"the affine map is fitted on {half:,} images, the error is of {len(after) - half:,} others"
    return Estimate(np.stack([error, spread], -1), relative_error, population.noted(note))


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
