"""Structural similarity of images, shared by the losses and the metrics: torchmetrics, extended to small images and volumes.

Of volumes the same map is computed axis by axis: torchmetrics' kernel of 11 x 11 x 11 taps takes 40 times as many products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from omnivae.distributions import at_least_float32

KERNEL_SIZE = 11
#: Weights of the five scales (Wang et al., Multi-scale structural similarity for image quality assessment, 2003).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SIGMA, K1, K2 = 1.5, 0.01, 0.03
#: Values of a slab of a volume that are worked on at once; bounds the memory beside the two volumes.
SLAB_VALUES = 2**22


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


def ssim_slabs(
    a: Tensor, b: Tensor, *, data_range: float, dtype: torch.dtype | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the map of :func:`ssim_map` of volumes slab by slab along their first axis.

    Args:
        a: volumes ``[B, C, D, H, W]``.
        b: volumes of the same shape.
        data_range: highest minus lowest possible value.
        dtype: to compute in; the volumes' own and at least float32 by default, in which similarities of flat regions are
            right to four digits.

    Yields:
        A range of the first spatial axis, and the map in it.
    """
    depth = a.shape[2]
    taps = _taps(_kernel(min(a.shape[2:])))
    halo = len(taps) // 2
    thick = max(halo, SLAB_VALUES // max(1, a[:, :, 0].numel()), 1)
    for start in range(0, depth, thick):
        stop = min(depth, start + thick)
        # Planes beyond the ends are mirrored, as the other axes are; the border itself is not repeated.
        planes = torch.arange(start - halo, stop + halo, device=a.device).abs()
        planes = torch.where(planes >= depth, 2 * (depth - 1) - planes, planes)
        yield slice(start, stop), _volume_map(a[:, :, planes].to(dtype), b[:, :, planes].to(dtype), taps, data_range)


def _volume_map(a: Tensor, b: Tensor, taps: Tensor, data_range: float) -> Tensor:
    a, b = at_least_float32(a), at_least_float32(b)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b, aa, bb, ab = (_smooth(v, taps) for v in (a, b, a * a, b * b, a * b))
    squares, product = mean_a.square() + mean_b.square(), mean_a * mean_b
    # Rounding must not make a variance negative.
    variances = (aa - mean_a.square()).clamp(min=0) + (bb - mean_b.square()).clamp(min=0)
    return (2 * product + c1) * (2 * (ab - product) + c2) / ((squares + c1) * (variances + c2))


def _smooth(x: Tensor, taps: Tensor) -> Tensor:
    """Average along each axis; the first is as long as its halo allows, the others are mirrored at their border."""
    half = len(taps) // 2
    x = torch.nn.functional.pad(x, (half, half, half, half, 0, 0), mode="reflect") if half else x
    for axis in (2, 3, 4):
        length = x.shape[axis] - 2 * half
        x = sum(weight * x.narrow(axis, i, length) for i, weight in enumerate(taps.tolist()))  # type: ignore[assignment]
    return x


def _taps(kernel: int) -> Tensor:
    if kernel < KERNEL_SIZE:
        return torch.full((kernel,), 1 / kernel, dtype=torch.float64)
    places = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    weights = (-places.square() / (2 * SIGMA**2)).exp()
    return weights / weights.sum()


def _ssim(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if a.ndim == 5:
        values = torch.cat([part for _, part in ssim_slabs(a, b, data_range=data_range)], 2)
        return values.flatten(1).mean(1), values
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
