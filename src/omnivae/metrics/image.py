"""Distances between a reconstruction and its image, one number an image.

Where an image has a mask, only the pixels inside it count. ``psnr``, ``ssim`` and ``ms_ssim`` are relative to the data
range; ``mse`` and ``l1`` are in its unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from omnivae import similarity
from omnivae.metrics.registry import metric


@metric(
    unit="dB",
    better="higher",
    meaning="Peak signal-to-noise ratio of the reconstruction: 10 log10(range² / MSE).",
    masks=True,
)
def psnr(reconstruction: Tensor, x: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, ``10 log10(data_range² / MSE)``.

    Equal to scikit-image's ``peak_signal_noise_ratio(x, reconstruction, data_range=data_range)`` and to torchmetrics'
    ``peak_signal_noise_ratio(..., reduction="none", dim=(1, 2, 3))``.

    Args:
        reconstruction: images ``[B, C, *S]``.
        x: what they should be.
        data_range: highest minus lowest possible value, > 0: 1 for [0, 1], 2 for [-1, 1], 255 or 65535 for stored integers.
        mask: 1 where a pixel counts, ``[B, 1, *S]``.

    Returns:
        ``[B]`` in dB, float64; infinite where the two images are identical.

    Example:
        >>> import torch
        >>> psnr(torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2), data_range=1.0).round(decimals=4)
        tensor([20.], dtype=torch.float64)
    """
    return 20 * math.log10(data_range) - 10 * mse(reconstruction, x, data_range=data_range, mask=mask).log10()


@metric(unit="", better="higher", meaning="Structural similarity of the reconstruction; 1 is identical.", masks=True)
def ssim(reconstruction: Tensor, x: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Return the structural similarity of each image (Wang et al., Image quality assessment, 2004).

    Equal to torchmetrics' ``structural_similarity_index_measure(..., data_range=data_range, reduction="none")``: Gaussian
    window of 11 pixels and sigma 1.5, averaged over the whole image, which is mirrored at its border. scikit-image's
    ``structural_similarity(..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`` leaves a border of 5 pixels
    out of the average; inside it the two maps are equal, see :func:`omnivae.similarity.ssim_map`.

    Args:
        reconstruction: images ``[B, C, *S]`` with two or three spatial axes.
        x: what they should be.
        data_range: highest minus lowest possible value, > 0.
        mask: 1 where a pixel counts, ``[B, 1, *S]``: the map is averaged there. A window at the mask's edge still sees its
            neighbours outside.

    Returns:
        ``[B]``; see :func:`omnivae.similarity.ssim` for images smaller than the window.
    """
    if mask is None:
        return similarity.ssim(reconstruction, x, data_range=data_range)
    return _mean(similarity.ssim_map(reconstruction, x, data_range=data_range).double(), mask)


def _missing_scales(shape: Sequence[int]) -> str | None:
    scales, all_scales = similarity.num_scales(min(shape[1:])), len(similarity.SCALE_WEIGHTS)
    if scales == all_scales:
        return None
    return f"smaller than 176 pixels and measured at {max(1, scales)} of {all_scales} scales"


@metric(
    unit="",
    better="higher",
    meaning="Structural similarity averaged over up to five scales; 1 is identical.",
    remark=_missing_scales,
)
def ms_ssim(reconstruction: Tensor, x: Tensor, *, data_range: float) -> Tensor:
    """Return the multi-scale structural similarity of each image (Wang et al., 2003).

    Equal to torchmetrics' ``multiscale_structural_similarity_index_measure(..., normalize="relu")`` from 176 pixels on.

    Args:
        reconstruction: images ``[B, C, *S]`` with two or three spatial axes.
        x: what they should be.
        data_range: highest minus lowest possible value, > 0.

    Returns:
        ``[B]``; see :func:`omnivae.similarity.ms_ssim` for images too small for five scales.
    """
    return similarity.ms_ssim(reconstruction, x, data_range=data_range)


@metric(
    unit="",
    better="lower",
    meaning="Mean squared error of the pixel values, in the model's value range.",
    comparable="range",
    masks=True,
)
def mse(reconstruction: Tensor, x: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each image, in the value range's own unit.

    Args:
        reconstruction: images ``[B, C, *S]``.
        x: what they should be.
        data_range: highest minus lowest possible value; the error is not divided by it.
        mask: 1 where a pixel counts, ``[B, 1, *S]``.

    Returns:
        ``[B]`` float64.
    """
    return _mean((reconstruction.double() - x.double()).square(), mask)


@metric(
    unit="",
    better="lower",
    meaning="Mean absolute error of the pixel values, in the model's value range.",
    comparable="range",
    masks=True,
)
def l1(reconstruction: Tensor, x: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Return the mean absolute error of each image, in the value range's own unit.

    Args:
        reconstruction: images ``[B, C, *S]``.
        x: what they should be.
        data_range: highest minus lowest possible value; the error is not divided by it.
        mask: 1 where a pixel counts, ``[B, 1, *S]``.

    Returns:
        ``[B]`` float64.
    """
    return _mean((reconstruction.double() - x.double()).abs(), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of each image over channels and positions inside its mask, ``[B]``."""
    if mask is None:
        return values.flatten(1).mean(1)
    inside = mask.to(values.dtype).expand_as(values)
    return (values * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)
