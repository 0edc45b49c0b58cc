"""Distances between the reconstruction and its target: L1, MSE and MS-SSIM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from omnivae.distributions import at_least_float32
from omnivae.losses.base import Loss, Weight, event_size, target_of
from omnivae.similarity import ms_ssim
from omnivae.types import Batch, VAEOutput


class L1(Loss):
    """Absolute error: sum over the image (or mean over its elements), mean over the batch.

    Args:
        weight: factor in the total.
        per_element: divide by the number of pixel values.
    """

    name = "l1"
    needs = frozenset({"pixels"})

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        return self.reduce(_sum(_error(output, batch).abs(), batch), event_size(batch["x"]))


class MSE(Loss):
    """Squared error: sum over the image (or mean over its elements), mean over the batch.

    Args:
        weight: factor in the total.
        per_element: divide by the number of pixel values.
    """

    name = "mse"
    needs = frozenset({"pixels"})

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        return self.reduce(_sum(_error(output, batch).square(), batch), event_size(batch["x"]))


class MSSSIM(Loss):
    """``1 - MS-SSIM`` (Wang et al., Multi-scale structural similarity, 2003): one number an image, mean over the batch.

    Images too small for five scales use as many as fit, see :func:`omnivae.similarity.ms_ssim`.

    Args:
        weight: factor in the total.
        value_range: lowest and highest pixel value; the trainer fills in the model's where it is ``None``.
    """

    name = "ms_ssim"
    needs = frozenset({"pixels"})

    def __init__(self, weight: Weight = 1.0, value_range: Sequence[float] | None = None) -> None:
        super().__init__(weight)
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        if self.value_range is None:
            raise ValueError(
                "ms_ssim needs to know the value range: build it with MSSSIM(value_range=(-1, 1)) or (0, 1)"
            )
        low, high = self.value_range
        if "mask" in batch:
            raise ValueError(
                "ms_ssim compares whole images and cannot leave masked pixels out; use l1 or mse with a mask"
            )
        return (1.0 - ms_ssim(output.reconstruction, target_of(batch, output), data_range=high - low)).mean()


def _error(output: VAEOutput, batch: Batch) -> Tensor:
    return at_least_float32(output.reconstruction) - at_least_float32(target_of(batch, output))


def _sum(error: Tensor, batch: Batch) -> Tensor:
    mask = batch.get("mask")
    return (error if mask is None else error * mask).flatten(1).sum(1)
