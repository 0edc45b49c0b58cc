"""Distances between a reconstruction and its image, one number an image."""

from __future__ import annotations

from torch import Tensor

from omnivae import similarity
from omnivae.metrics.registry import metric


@metric(unit="dB", better="higher", meaning="Peak signal-to-noise ratio of the reconstruction: 10 log10(range² / MSE).")
def psnr(reconstruction: Tensor, x: Tensor, *, data_range: float) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, ``10 log10(data_range² / MSE)``.

    Args:
        reconstruction: images ``[B, C, *S]``.
        x: what they should be.
        data_range: highest minus lowest possible value.

    Returns:
        ``[B]`` in dB, float64; infinite where the two images are identical.

    Example:
        >>> import torch
        >>> psnr(torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2), data_range=1.0).round(decimals=4)
        tensor([20.], dtype=torch.float64)
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(
        reconstruction.double(),
        x.double(),
        data_range=data_range,
        reduction="none",
        dim=tuple(range(1, x.ndim)),
    )
    return value.reshape(len(x))


@metric(unit="", better="higher", meaning="Structural similarity of the reconstruction; 1 is identical.")
def ssim(reconstruction: Tensor, x: Tensor, *, data_range: float) -> Tensor:
    """Return the structural similarity of each image (Wang et al., Image quality assessment, 2004).

    Args:
        reconstruction: images ``[B, C, *S]`` with two or three spatial axes.
        x: what they should be.
        data_range: highest minus lowest possible value.

    Returns:
        ``[B]``; see :func:`omnivae.similarity.ssim` for images smaller than the window.
    """
    return similarity.ssim(reconstruction, x, data_range=data_range)


@metric(unit="", better="higher", meaning="Structural similarity averaged over up to five scales; 1 is identical.")
def ms_ssim(reconstruction: Tensor, x: Tensor, *, data_range: float) -> Tensor:
    """Return the multi-scale structural similarity of each image (Wang et al., 2003).

    Args:
        reconstruction: images ``[B, C, *S]`` with two or three spatial axes.
        x: what they should be.
        data_range: highest minus lowest possible value.

    Returns:
        ``[B]``; see :func:`omnivae.similarity.ms_ssim` for images too small for five scales.
    """
    return similarity.ms_ssim(reconstruction, x, data_range=data_range)


@metric(unit="", better="lower", meaning="Mean squared error of the pixel values, in the model's value range.")
def mse(reconstruction: Tensor, x: Tensor, *, data_range: float) -> Tensor:
    """Return the mean squared error of each image, in the value range's own unit.

    Args:
        reconstruction: images ``[B, C, *S]``.
        x: what they should be.
        data_range: highest minus lowest possible value; the error is not divided by it.

    Returns:
        ``[B]`` float64.
    """
    return (reconstruction.double() - x.double()).square().flatten(1).mean(1)


@metric(unit="", better="lower", meaning="Mean absolute error of the pixel values, in the model's value range.")
def l1(reconstruction: Tensor, x: Tensor, *, data_range: float) -> Tensor:
    """Return the mean absolute error of each image, in the value range's own unit.

    Args:
        reconstruction: images ``[B, C, *S]``.
        x: what they should be.
        data_range: highest minus lowest possible value; the error is not divided by it.

    Returns:
        ``[B]`` float64.
    """
    return (reconstruction.double() - x.double()).abs().flatten(1).mean(1)
