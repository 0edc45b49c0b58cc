"""A tilted gantry's shear removed: slices moved in their planes until the stack is upright."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from omnivae.data.volumes.dicom_pixels import AIR_HU
from omnivae.volume import Volume

#: Fractions of a voxel below which a position is on the grid: values stay as they are there.
_ON_GRID = 1e-6


def remove_tilt(volume: Volume) -> Volume:
    """Resample a sheared volume so that its third axis is the normal of its slices.

    Slice k is moved in its plane by k times the drift, linearly interpolated; nothing is mixed between slices. The planes grow to
    hold all of the source; what it does not cover becomes air (the lowest value where units are arbitrary).

    Args:
        volume: its first two axes at a right angle, the third sheared by the tilt.

    Returns:
        The upright volume, whose problems tell of the resampling; the same volume where there is no tilt.

    Raises:
        ValueError: when the first two axes are not at a right angle.

    Example:
        >>> affine = np.eye(4)
        >>> affine[1, 2] = 0.5  # each slice half a row further
        >>> upright = remove_tilt(Volume(np.zeros((1, 4, 4, 3), np.int16), affine, unit="HU"))
        >>> upright.size, upright.shear
        ((4, 5, 3), 0.0)
    """
    columns = volume.affine[:3, :3].T
    lengths = np.array([math.dist(c, (0, 0, 0)) for c in columns])
    right, down = columns[0] / lengths[0], columns[1] / lengths[1]
    if abs(right @ down) > 1e-4:
        raise ValueError("got a volume whose first two axes are not at a right angle; expected slices of DICOM")
    normal = np.cross(right, down)
    normal = normal / np.linalg.norm(normal) * (1 if normal @ columns[2] > 0 else -1)
    depth = float(columns[2] @ normal)
    drift = columns[2] - depth * normal
    shift = drift @ right / lengths[0], drift @ down / lengths[1]
    slices = volume.size[2]
    if max(abs(s) for s in shift) * max(1, slices - 1) < _ON_GRID:
        return volume
    starts, sizes = [], []
    for s, count in zip(shift, volume.size, strict=False):
        ends = 0.0, _snap(s * (slices - 1))
        starts.append(math.floor(min(ends)))
        sizes.append(math.ceil(count - 1 + max(ends)) - starts[-1] + 1)
    fill = AIR_HU if volume.unit == "HU" else volume.array.min()
    array = np.full((len(volume.array), *sizes, slices), fill, dtype=volume.array.dtype)
    for k in range(slices):
        at = [np.arange(size) + start - _snap(k * s) for size, start, s in zip(sizes, starts, shift, strict=True)]
        plane, inside_i = _interpolate(volume.array[..., k].astype(np.float64), at[0], axis=1)
        plane, inside_j = _interpolate(plane, at[1], axis=2)
        if array.dtype.kind in "iu":
            plane = np.rint(plane)
        array[:, inside_i, inside_j, k] = plane
    affine = volume.affine.copy()
    affine[:3, 2] = depth * normal
    affine[:3, 3] += starts[0] * columns[0] + starts[1] * columns[1]
    tilt = math.degrees(math.atan2(float(np.linalg.norm(drift)), depth))
    note = (
        f"tilt removed: slices were moved in their planes by linear interpolation, undoing a tilt of {tilt:.2f} degrees"
    )
    kept = tuple(p for p in volume.problems if not p.startswith("gantry tilt"))
    return replace(
        volume, array=array, affine=affine, problems=(*kept, note), origin={**volume.origin, "tilt_removed": tilt}
    )


def _snap(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < _ON_GRID else value


def _interpolate(planes: np.ndarray, at: np.ndarray, *, axis: int) -> tuple[np.ndarray, slice]:
    """Interpolate linearly along one axis where the source covers the positions, and say where that is."""
    last = planes.shape[axis] - 1
    covered = np.flatnonzero((at >= -_ON_GRID) & (at <= last + _ON_GRID))
    inside = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)
    at = np.clip(at[inside], 0, last)
    left = np.minimum(np.floor(at).astype(np.int64), max(0, last - 1))
    right = np.minimum(left + 1, last)
    shape = [1] * planes.ndim
    shape[axis] = -1
    weight = (at - left).reshape(shape)
    return planes.take(left, axis) * (1 - weight) + planes.take(right, axis) * weight, inside
