"""Structural similarity of images, shared by the losses and the metrics: torchmetrics, extended to small images."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.distributions import at_least_float32

KERNEL_SIZE = 11
#: Weights of the five scales (Wang et al., Multi-scale structural similarity for image quality assessment, 2003).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(a: Tensor, b: Tensor, *, data_range: float) -> Tensor:
    """Return the structural similarity of each image (Wang et al., Image quality assessment, 2004).

    Args:
        a: images ``[B, C, *S]`` with two or three spatial axes.
        b: images of the same shape.
        data_range: highest minus lowest possible value.

    Returns:
        ``[B]``. Where an axis is shorter than the Gaussian window (11), it becomes a uniform one of
        the largest odd size that fits.
    """
    value, _ = _ssim(a, b, data_range)
    return value


def ssim_map(a: Tensor, b: Tensor, *, data_range: float) -> Tensor:
    """Return the structural similarity at each pixel and channel; its mean is :func:`ssim`.

    Args:
        a: images ``[B, C, *S]`` with two or three spatial axes.
        b: images of the same shape.
        data_range: highest minus lowest possible value.

    Returns:
        ``[B, C, *S]``.
    """
    _, values = _ssim(a, b, data_range)
    return values


def ms_ssim(a: Tensor, b: Tensor, *, data_range: float) -> Tensor:
    """Return the multi-scale structural similarity of each image (Wang et al., 2003).

    Args:
        a: images ``[B, C, *S]`` with two or three spatial axes.
        b: images of the same shape.
        data_range: highest minus lowest possible value.

    Returns:
        ``[B]``. All five scales need at least 176 pixels along every axis; smaller images use the scales that fit (see
        :func:`num_scales`), their weights rescaled to sum to one; below 22 pixels it is :func:`ssim`.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    scales = num_scales(min(a.shape[2:]))
    if scales < 2:
        return ssim(a, b, data_range=data_range)
    betas = SCALE_WEIGHTS[:scales]
    if scales < len(SCALE_WEIGHTS):
        betas = tuple(w / sum(betas) for w in betas)
    values = [
        multiscale_structural_similarity_index_measure(
            at_least_float32(x[None]),
            at_least_float32(y[None]),
            kernel_size=KERNEL_SIZE,
            betas=betas,
            data_range=data_range,
            normalize="relu",
        )
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack([torch.as_tensor(v).reshape(()) for v in values])


def num_scales(smallest_axis: int) -> int:
    """Return how many of the five scales an image allows.

    Args:
        smallest_axis: its shortest side in pixels.

    Returns:
        0 to 5: the 11-pixel window must fit into the coarsest scale, and torchmetrics' own condition must hold.

    Example:
        >>> [num_scales(n) for n in (10, 11, 22, 44, 99, 176)]
        [0, 1, 2, 3, 4, 5]
    """
    fits = [
        n
        for n in range(1, len(SCALE_WEIGHTS) + 1)
        if smallest_axis >> (n - 1) >= KERNEL_SIZE and smallest_axis // max(1, n - 1) ** 2 > KERNEL_SIZE - 1
    ]
    return max(fits, default=0)


def _ssim(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    from torchmetrics.functional.image import structural_similarity_index_measure

    kernel = _kernel(min(a.shape[2:]))
    value, values = structural_similarity_index_measure(
        at_least_float32(a),
        at_least_float32(b),
        gaussian_kernel=kernel == KERNEL_SIZE,
        kernel_size=kernel,
        data_range=data_range,
        reduction="none",
        return_full_image=True,
    )
    return value.reshape(len(a)), values


def _kernel(smallest_axis: int) -> int:
    fits = min(KERNEL_SIZE, smallest_axis)
    return fits if fits % 2 else fits - 1
