"""Shapes in millimetres drawn onto a voxel grid, each within its own bounding box: what phantoms are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = Sequence[float] | np.ndarray


class Canvas:
    """A grid of voxels in a world of millimetres (right, anterior, superior), centred on the origin.

    Args:
        size: voxels along each axis, i to the right, j to the front, k upwards.
        spacing: mm.
    """

    def __init__(self, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
        self.size, self.spacing = size, spacing
        self.axes = [
            ((np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)) * np.float32(s))
            for n, s in zip(size, spacing, strict=True)
        ]
        self.extent = tuple(n * s for n, s in zip(size, spacing, strict=True))

    @property
    def affine(self) -> np.ndarray:
        """From indices to millimetres, axes right, anterior, superior."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [float(axis[0]) for axis in self.axes]
        return affine

    def box(
        self, low: Point, high: Point
    ) -> tuple[tuple[slice, slice, slice], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return slices of a box in mm and the coordinates in it, shaped to broadcast.

        Args:
            low: corner.
            high: opposite corner.
        """
        cut = []
        for axis, a, b in zip(self.axes, low, high, strict=True):
            cut.append(slice(int(np.searchsorted(axis, a, "left")), int(np.searchsorted(axis, b, "right"))))
        x, y, z = (axis[part] for axis, part in zip(self.axes, cut, strict=True))
        return (cut[0], cut[1], cut[2]), (x[:, None, None], y[None, :, None], z[None, None, :])

    def ellipsoid(
        self, centre: Point, radii: Point, *, power: float = 2.0
    ) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Return the box around a (super-)ellipsoid and which of its voxels lie inside.

        Args:
            centre: in mm.
            radii: in mm.
            power: 2 for an ellipsoid, more for a boxier one.
        """
        reach = [max(r, 1e-3) for r in radii]
        part, xyz = self.box(
            [c - r for c, r in zip(centre, reach, strict=True)], [c + r for c, r in zip(centre, reach, strict=True)]
        )
        total = sum(np.abs((x - c) / r) ** power for x, c, r in zip(xyz, centre, reach, strict=True))
        return part, np.asarray(total <= 1)

    def tube(self, start: Point, end: Point, radius: float) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Return the box around a rounded tube between two points and which of its voxels lie inside.

        Args:
            start: one end, mm.
            end: other end, mm.
            radius: mm.
        """
        a, b = np.asarray(start, dtype=np.float32), np.asarray(end, dtype=np.float32)
        part, (x, y, z) = self.box(np.minimum(a, b) - radius, np.maximum(a, b) + radius)
        way = b - a
        length = max(float(way @ way), 1e-6)
        dx, dy, dz = x - a[0], y - a[1], z - a[2]
        t = np.clip((dx * way[0] + dy * way[1] + dz * way[2]) / length, 0, 1)
        apart = (dx - t * way[0]) ** 2 + (dy - t * way[1]) ** 2 + (dz - t * way[2]) ** 2
        return part, np.asarray(apart <= radius**2)


def smooth_noise(generator: np.random.Generator, size: tuple[int, int, int], coarse: int) -> np.ndarray:
    """Return a smooth random field of standard deviation about 1, ``[I, J, K]`` float32.

    Args:
        generator: of random numbers.
        size: of the field.
        coarse: values along each axis of the coarse grid that is interpolated.
    """
    from scipy import ndimage

    field = generator.standard_normal((coarse,) * 3).astype(np.float32)
    # Linear along each axis in turn: cheap, and smooth after one small filter on the coarse grid.
    field = ndimage.zoom(field, 2, order=1)
    for axis, n in enumerate(size):
        at = np.linspace(0, field.shape[axis] - 1, n, dtype=np.float32)
        low = np.minimum(at.astype(int), field.shape[axis] - 2)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        field = np.take(field, low, axis) * (1 - weight) + np.take(field, low + 1, axis) * weight
    return field / max(float(field.std()), 1e-6)
