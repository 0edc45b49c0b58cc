"""Three orthogonal planes through a volume, as they are looked at: patients upright, all in their true proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnivae.volume import Volume

_CANONICAL = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
#: Of a patient, as radiologists look: the patient's right on the left, the front at the top or on the left, the head at the top.
_PATIENT = (("axial", 2, 1, 0), ("coronal", 1, 2, 0), ("sagittal", 0, 2, 1))
_NAMES = {"stage": ("z", "y", "x"), "video": ("t", "y", "x")}


@dataclass(frozen=True)
class Plane:
    """One plane of a volume, turned as it is looked at.

    Attributes:
        name: "axial", "coronal" or "sagittal" of a patient; two axes such as "yx" of anything else.
        pixels: ``[C, height, width]`` in the volume's type.
        spacing: of rows and of columns, in the volume's unit of length.
        letters: where left, right, top and bottom point ("R", "L", "A", "P", ...); empty but for patients.
        axis: of the volume along which the plane was cut, 0 to 2.
        index: where.
    """

    name: str
    pixels: np.ndarray
    spacing: tuple[float, float]
    letters: tuple[str, str, str, str]
    axis: int
    index: int

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in the volume's unit of length."""
        return self.pixels.shape[1] * self.spacing[0], self.pixels.shape[2] * self.spacing[1]


def planes(volume: Volume, at: Sequence[int] | None = None) -> list[Plane]:
    """Cut three planes along the axes of a volume; oblique volumes are cut along their own axes, too.

    Args:
        volume: any.
        at: indices (i, j, k) of the point that all three go through; the middle by default.

    Returns:
        Axial, coronal and sagittal of a patient; of anything else the planes of its last two axes, then of the others. Of a
        video the first is a frame, and its spacing (seconds) is drawn as if it were pixels.

    Raises:
        ValueError: for a point outside.

    Example:
        >>> volume = Volume(np.zeros((1, 40, 30, 20)), np.diag([-1.0, -1.0, 3.0, 1.0]))
        >>> [(p.name, p.pixels.shape, p.letters) for p in planes(volume)][1]
        ('coronal', (1, 20, 40), ('R', 'L', 'S', 'I'))
    """
    at = [n // 2 for n in volume.size] if at is None else [int(n) for n in at]
    if len(at) != 3 or any(not 0 <= n < m for n, m in zip(at, volume.size, strict=True)):
        raise ValueError(f"got the point {tuple(at)} in a volume of size {volume.size}; expected three indices inside")
    spacing = volume.spacing
    if volume.space != "patient":
        a, b, c = _NAMES[volume.space]
        spacing = (1.0, 1.0, 1.0) if volume.space == "video" else spacing
        axes = ((b + c, 0, 1, 2), (a + c, 1, 0, 2), (a + b, 2, 0, 1))
        return [
            Plane(name, volume.array.take(at[cut], 1 + cut), (spacing[rows], spacing[columns]), ("",) * 4, cut, at[cut])
            for name, cut, rows, columns in axes
        ]
    letters = volume.orientation
    stored = {_CANONICAL[letter]: axis for axis, letter in enumerate(letters)}
    found = []
    for name, *canonical in _PATIENT:
        cut, rows, columns = (stored[n] for n in canonical)
        pixels = volume.array.take(at[cut], 1 + cut)
        if rows > columns:
            pixels = pixels.swapaxes(1, 2)
        # Top is S or A, left is R or A: where the stored axis points there, it runs against the picture's.
        flip_rows, flip_columns = letters[rows] in "SA", letters[columns] in "RA"
        pixels = pixels[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        top = letters[rows] if flip_rows else _OPPOSITE[letters[rows]]
        left = letters[columns] if flip_columns else _OPPOSITE[letters[columns]]
        edges = (left, _OPPOSITE[left], top, _OPPOSITE[top])
        found.append(Plane(name, pixels, (spacing[rows], spacing[columns]), edges, cut, at[cut]))
    return found


def triptych(
    x: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0), *, patient: bool = False, side: int = 128
) -> Tensor:
    """Lay the three middle planes of each volume side by side, for grids of pictures.

    Args:
        x: volumes ``[N, C, D, H, W]``.
        spacing: along the three axes.
        patient: whether the axes point right, to the front and to the head (RAS), so that patients are drawn upright.
        side: longest side of a plane in pixels, about.

    Returns:
        ``[N, C, height, width]``; NaN between the planes. Voxels are repeated or left out, never mixed.
    """
    step = max(n * s for n, s in zip(x.shape[2:], spacing, strict=True)) / side
    affine = np.diag([*spacing, 1.0])
    drawn = []
    for one in x.detach().float().cpu().numpy():
        volume = Volume(one, affine, space="patient" if patient else "stage")
        resized = [_nearest(plane, step) for plane in planes(volume)]
        height = max(p.shape[1] for p in resized)
        gap = np.full((len(one), height, 2), np.nan, np.float32)
        row: list[Any] = []
        for pixels in resized:
            above = (height - pixels.shape[1]) // 2
            below = height - pixels.shape[1] - above
            row += [np.pad(pixels, ((0, 0), (above, below), (0, 0)), constant_values=np.nan), gap]
        drawn.append(torch.from_numpy(np.concatenate(row[:-1], axis=2)))
    return torch.stack(drawn)


def _nearest(plane: Plane, step: float) -> np.ndarray:
    places = []
    for count, spacing in zip(plane.pixels.shape[1:], plane.spacing, strict=True):
        size = max(1, round(count * spacing / step))
        places.append(((np.arange(size) + 0.5) * count / size).astype(int))
    rows, columns = places
    return plane.pixels[:, rows][:, :, columns]
