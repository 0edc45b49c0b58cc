"""Resampling of a volume onto any grid of the same world, by direct interpolation in world coordinates."""

from __future__ import annotations

from typing import Literal

import numpy as np

from omnivae.volume import Volume

Interpolation = Literal["nearest", "linear", "cubic"]
_ORDERS = {"nearest": 0, "linear": 1, "cubic": 3}


def resample(
    volume: Volume,
    size: tuple[int, int, int],
    affine: np.ndarray,
    *,
    interpolation: Interpolation = "linear",
    antialias: bool = False,
    outside: float | None = None,
) -> Volume:
    """Return a volume on another grid: each new voxel is interpolated at its place in the world.

    Args:
        volume: any, sheared and oblique too.
        size: of the new grid.
        affine: of the new grid, ``[4, 4]``, to the same world.
        interpolation: "nearest" keeps the type; the others give float32 (float64 from float64).
        antialias: whether values are smoothed first along axes where the new grid is coarser (Gaussian of standard deviation
            (factor - 1) / 2 voxels, as scikit-image does).
        outside: value where the old grid does not reach; None takes the nearest voxel's.

    Returns:
        The volume on the new grid.

    Raises:
        ValueError: for an unknown interpolation or an empty grid.

    Example:
        >>> ramp = Volume(np.arange(4.0).reshape(1, 4, 1, 1), np.diag([2.0, 1, 1, 1]))
        >>> fine = resample(ramp, (7, 1, 1), np.diag([1.0, 1, 1, 1]))
        >>> fine.array.ravel().tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    """
    from scipy import ndimage

    if interpolation not in _ORDERS:
        raise ValueError(f"got the interpolation {interpolation!r}; expected {', '.join(_ORDERS)}")
    if min(size) < 1:
        raise ValueError(f"got the size {list(size)}; expected at least one voxel along each axis")
    affine = np.asarray(affine, dtype=np.float64)
    move = np.linalg.inv(volume.affine) @ affine
    # Rounding errors of the inverse must not push the first voxel outside.
    move[np.abs(move) < 1e-12] = 0
    dtype = volume.array.dtype
    if interpolation != "nearest":
        dtype = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    out = np.empty((len(volume.array), *size), dtype)
    factors = np.linalg.norm(move[:3, :3], axis=1)
    matrix = move[:3, :3]
    if not (matrix - np.diag(np.diag(matrix))).any():
        matrix = np.diag(matrix)  # the fast way, axis by axis
    for channel, source in enumerate(volume.array):
        if antialias and interpolation != "nearest":
            source = ndimage.gaussian_filter(source.astype(dtype, copy=False), np.maximum(0, (factors - 1) / 2))
        ndimage.affine_transform(
            source,
            matrix,
            offset=move[:3, 3],
            output_shape=size,
            output=out[channel],
            order=_ORDERS[interpolation],
            mode="nearest" if outside is None else "constant",
            cval=0.0 if outside is None else outside,
        )
    return volume.with_array(out, affine=affine)
