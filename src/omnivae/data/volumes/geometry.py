"""Transforms that move voxels: orientation, spacing, crops and padding; each affine stays exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from omnivae.data.volumes.resampling import Interpolation, resample
from omnivae.data.volumes.transforms import Step, Transform
from omnivae.volume import Volume

_RIGHT_ANGLE = 1e-3
_AXIS = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}


@dataclass(frozen=True)
class Orient(Transform):
    """Permute and flip axes so that they point in given directions; no voxel changes its value.

    Args:
        orientation: three letters, such as "RAS" or "LPS": where each axis points, by its largest component.

    Raises:
        ValueError: for letters that are no orientation.
    """

    orientation: str = "RAS"

    def __post_init__(self) -> None:
        pairs = ("LR", "PA", "IS")
        if len(self.orientation) != 3 or any(sum(c in pair for c in self.orientation) != 1 for pair in pairs):
            raise ValueError(
                f"got the orientation {self.orientation!r}; expected one letter each of L or R, P or A, I or S, such as 'RAS'"
            )

    def plan(self, volume: Volume) -> Step:
        if volume.space != "patient":
            raise ValueError(
                f"got a volume of a {volume.space}; orientations such as {self.orientation} are of patients only"
            )
        now = volume.orientation
        order = [[_AXIS[letter] for letter in now].index(_AXIS[letter]) for letter in self.orientation]
        flips = [axis for axis, letter in enumerate(self.orientation) if now[order[axis]] != letter]
        flipped = tuple(1 + axis for axis in flips)
        move = np.zeros((4, 4))  # indices of the result -> indices of the source
        move[3, 3] = 1
        for axis, source in enumerate(order):
            move[source, axis] = -1 if axis in flips else 1
            move[source, 3] = volume.size[source] - 1 if axis in flips else 0
        source_affine, affine = volume.affine, volume.affine @ move

        def forward(v: Volume, mode: Interpolation) -> Volume:
            turned = np.flip(v.array.transpose(0, *(1 + a for a in order)), flipped)
            return v.with_array(np.ascontiguousarray(turned), affine=affine)

        def backward(v: Volume, mode: Interpolation) -> Volume:
            turned = np.flip(v.array, flipped).transpose(0, *(1 + int(a) for a in np.argsort(order)))
            return v.with_array(np.ascontiguousarray(turned), affine=source_affine)

        size = tuple(volume.size[source] for source in order)
        return Step("geometry", forward, backward, {"orientation": f"{now} to {self.orientation}"}, (size, affine))


@dataclass(frozen=True)
class Resample(Transform):
    """Resample to another spacing; the way back resamples onto the source's own grid.

    The new grid covers the same extent and has the same centre. Resampling there and back is not lossless: it is reported
    apart from what a model loses.

    Args:
        spacing: along each axis, in the volume's unit of length; one number for all; None keeps an axis' own.
        deshear: whether sheared axes (a tilted gantry) become right-angled; the new grid covers all of the old.
        antialias: whether values are smoothed first where the new grid is coarser.

    Raises:
        ValueError: for spacings that are not above 0.
    """

    spacing: float | Sequence[float | None] | None = None
    deshear: bool = False
    antialias: bool = False

    def __post_init__(self) -> None:
        given = self.spacing if isinstance(self.spacing, Sequence) else [self.spacing] * 3
        if len(given) != 3 or any(s is not None and not s > 0 for s in given):
            raise ValueError(f"got the spacing {self.spacing}; expected a number above 0, or three")

    def plan(self, volume: Volume) -> Step:
        given = self.spacing if isinstance(self.spacing, Sequence) else [self.spacing] * 3
        spacing = np.array([own if s is None else s for s, own in zip(given, volume.spacing, strict=True)])
        axes = volume.affine[:3, :3] / np.asarray(volume.spacing)
        if self.deshear and volume.shear > _RIGHT_ANGLE:
            # The plane of a slice stays; the third axis becomes its normal.
            axes[:, 1] -= axes[:, 0] * (axes[:, 0] @ axes[:, 1])
            axes[:, 1] /= np.linalg.norm(axes[:, 1])
            normal = np.cross(axes[:, 0], axes[:, 1])
            axes[:, 2] = normal * np.sign(normal @ axes[:, 2])
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.size], indexing="ij")).reshape(3, -1)
        world = volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]
        along = axes.T @ world if self.deshear else np.linalg.inv(axes) @ world
        low, high = along.min(1), along.max(1)
        size = np.maximum(1, np.rint((high - low) / spacing)).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = axes * spacing
        affine[:3, 3] = axes @ ((low + high) / 2) - affine[:3, :3] @ ((size - 1) / 2)
        if tuple(size) == volume.size and np.allclose(affine, volume.affine, rtol=0, atol=1e-9):
            return Step("geometry", lambda v, mode: v, lambda v, mode: v, {"resampled": False})
        i, j, k = (int(n) for n in size)
        source_size, source_affine = volume.size, volume.affine

        def forward(v: Volume, mode: Interpolation) -> Volume:
            return resample(v, (i, j, k), affine, interpolation=mode, antialias=self.antialias)

        def backward(v: Volume, mode: Interpolation) -> Volume:
            return resample(v, source_size, source_affine, interpolation=mode, antialias=self.antialias)

        return Step("geometry", forward, backward, {"resampled": True, "grid": [i, j, k]}, ((i, j, k), affine))


@dataclass(frozen=True)
class Pad(Transform):
    """Pad to a size, or to a multiple, on both sides alike; the way back crops.

    Args:
        multiple: of which each axis' length becomes a multiple; one number for all axes, or three.
        size: least length of each axis.
        mode: "constant" adds a value, "edge" repeats the last voxel, "reflect" mirrors.
        value: what "constant" adds; None: the least value of the volume (air). Masks are padded with 0.

    Raises:
        ValueError: for numbers below 1.
    """

    multiple: int | Sequence[int] = 1
    size: int | Sequence[int] = 1
    mode: Literal["constant", "edge", "reflect"] = "constant"
    value: float | None = None

    def __post_init__(self) -> None:
        _three(self.multiple, "multiple")
        _three(self.size, "size")

    def plan(self, volume: Volume) -> Step:
        wanted = [max(n, s) for n, s in zip(volume.size, _three(self.size, "size"), strict=True)]
        to = [-(-n // m) * m for n, m in zip(wanted, _three(self.multiple, "multiple"), strict=True)]
        start = [-((t - n) // 2) for t, n in zip(to, volume.size, strict=True)]
        return _box(volume, start, to, mode=self.mode, value=self.value)


@dataclass(frozen=True)
class Crop(Transform):
    """Cut a box out; the way back puts it in its place, a stated value around it.

    Args:
        size: of the box; an axis that is shorter is left whole.
        start: index of its first voxel; None: the box in the middle.
        value: around the box on the way back; None: the least value of the volume. Masks get 0.

    Raises:
        ValueError: for a box that does not lie in the volume.
    """

    size: int | Sequence[int]
    start: Sequence[int] | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        _three(self.size, "size")

    def plan(self, volume: Volume) -> Step:
        size = [min(n, s) for n, s in zip(volume.size, _three(self.size, "size"), strict=True)]
        start = (
            [(n - s) // 2 for n, s in zip(volume.size, size, strict=True)] if self.start is None else list(self.start)
        )
        if len(start) != 3 or any(a < 0 or a + s > n for a, s, n in zip(start, size, volume.size, strict=False)):
            raise ValueError(f"got a box of {size} voxels from {start}; expected one within {list(volume.size)}")
        return _box(volume, start, size, mode="constant", value=self.value)


@dataclass(frozen=True)
class CropForeground(Transform):
    """Cut out the box around all voxels above a threshold, such as the body in a CT.

    Args:
        threshold: what is foreground lies above it; -500 divides air from a body in HU. Any channel counts.
        margin: voxels kept around it.
        value: as :class:`Crop`.
    """

    threshold: float = -500.0
    margin: int = 0
    value: float | None = None

    def plan(self, volume: Volume) -> Step:
        inside: np.ndarray = np.any(volume.array > self.threshold, axis=0)
        if not inside.any():
            raise ValueError(
                f"no voxel lies above {self.threshold:g} (the largest is {volume.array.max():g}): lower the threshold"
            )
        start, size = [], []
        for axis in range(3):
            along = np.moveaxis(inside, axis, 0).reshape(volume.size[axis], -1)
            found = np.flatnonzero(along.any(1))
            low = max(0, int(found[0]) - self.margin)
            start.append(low)
            size.append(min(volume.size[axis], int(found[-1]) + 1 + self.margin) - low)
        return _box(volume, start, size, mode="constant", value=self.value)


def _three(value: int | Sequence[int], name: str) -> list[int]:
    given = list(value) if isinstance(value, Sequence) else [value] * 3
    if len(given) != 3 or any(isinstance(n, bool) or n != int(n) or n < 1 for n in given):
        raise ValueError(f"got the {name} {value}; expected a whole number of at least 1, or three")
    return [int(n) for n in given]


def _box(volume: Volume, start: Sequence[int], size: Sequence[int], *, mode: str, value: float | None) -> Step:
    """Return the step to a box that may reach beyond the volume (padding) or leave parts of it out (crop)."""
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ np.asarray(start, dtype=np.float64)
    source_affine, source_size = volume.affine, volume.size
    around = value if value is not None else float(volume.array.min())
    back = [-s for s in start]
    moved = any(start) or tuple(size) != source_size

    def forward(v: Volume, how: Interpolation) -> Volume:
        return v.with_array(_cut(v.array, start, size, mode, 0.0 if how == "nearest" else around), affine=affine)

    def backward(v: Volume, how: Interpolation) -> Volume:
        cut = _cut(v.array, back, source_size, "constant", 0.0 if how == "nearest" else around)
        return v.with_array(cut, affine=source_affine)

    facts = {"box_start": [int(s) for s in start], "box_size": [int(s) for s in size]} if moved else {}
    return Step("geometry", forward, backward, facts, (tuple(int(n) for n in size), affine))


def _cut(array: np.ndarray, start: Sequence[int], size: Sequence[int], mode: str, value: float) -> np.ndarray:
    inner = [slice(max(0, a), min(n, a + s)) for a, s, n in zip(start, size, array.shape[1:], strict=True)]
    before = [max(0, -a) for a in start]
    after = [s - b - (i.stop - i.start) for s, b, i in zip(size, before, inner, strict=True)]
    cut = array[(slice(None), *inner)]
    width = [(0, 0), *zip(before, after, strict=True)]
    if not any(map(any, width)):
        return np.ascontiguousarray(cut)
    if mode == "constant":
        return np.pad(cut, width, mode="constant", constant_values=np.asarray(value).astype(cut.dtype))
    return np.pad(cut, width, mode=mode)  # type: ignore[call-overload]
