"""Phantoms: volumes of drawn anatomy with known truth, for tests, demos and benchmarks without any download.

They have the values, edges, textures and noise that a model meets in real scans, and none of their biology: a figure measured on
them says whether software works, not whether it helps a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omnivae.data.volumes.drawing import Canvas
from omnivae.volume import Stored, Volume


@dataclass(frozen=True)
class Phantom:
    """A drawn volume with its truth.

    Attributes:
        volume: the values.
        labels: structure of each voxel, ``[1, I, J, K]`` uint8, on the same grid.
        lesions: 0, or the number of a lesion from 1 on, ``[1, I, J, K]`` uint8.
        names: number in ``labels`` -> structure.
    """

    volume: Volume
    labels: Volume
    lesions: Volume
    names: Mapping[int, str]

    def mask(self, name: str) -> np.ndarray:
        """Return where a structure is, ``[I, J, K]`` bool.

        Args:
            name: of the structure.

        Raises:
            ValueError: for a structure that this phantom does not have.
        """
        for number, known in self.names.items():
            if known == name:
                return self.labels.array[0] == number
        raise ValueError(f"got the structure {name!r}; expected one of {', '.join(self.names.values())}")


@dataclass(frozen=True)
class LesionPair:
    """The same patient twice: without and with lesions, all else equal, noise included.

    Attributes:
        without: lesions.
        with_lesions: the same with them.
    """

    without: Phantom
    with_lesions: Phantom

    @property
    def mask(self) -> np.ndarray:
        """Where the lesions are, ``[I, J, K]`` bool."""
        return self.with_lesions.lesions.array[0] > 0


def assemble(
    values: np.ndarray,
    labels: np.ndarray,
    lesions: np.ndarray,
    canvas: Canvas,
    *,
    names: Mapping[int, str],
    unit: str,
    orientation: str,
) -> Phantom:
    """Return a phantom whose three volumes share one grid, turned to an orientation.

    Args:
        values: ``[I, J, K]`` int16, axes right, anterior, superior.
        labels: ``[I, J, K]`` uint8.
        lesions: ``[I, J, K]`` uint8.
        canvas: that it was drawn on.
        names: of the labels.
        unit: of the values.
        orientation: of the result, such as "LPS".
    """
    from omnivae.data.volumes.geometry import Orient

    whole = Volume(
        values[None],
        canvas.affine,
        unit="HU" if unit == "HU" else "arbitrary",
        stored=Stored(values.dtype.name),
        format="phantom",
    )
    step = Orient(orientation).plan(whole)
    masks = [
        step.forward(whole.with_array(mask[None], unit="arbitrary", stored=Stored(mask.dtype.name)), "nearest")
        for mask in (labels, lesions)
    ]
    return Phantom(step.forward(whole, "linear"), masks[0], masks[1], dict(names))


def finish(values: np.ndarray, noise: np.ndarray, *, blur: float = 0.5) -> np.ndarray:
    """Return values with edges softened by partial volume, and noise, as int16.

    Args:
        values: ``[I, J, K]`` float32.
        noise: of the same shape, in the unit of the values.
        blur: standard deviation in voxels.
    """
    from scipy import ndimage

    soft = ndimage.gaussian_filter(values, blur, truncate=4.0)
    return np.clip(np.rint(soft + noise), -32768, 32767).astype(np.int16)


def plant_lesions(
    labels: np.ndarray,
    canvas: Canvas,
    generator: np.random.Generator,
    *,
    count: int,
    within: int,
    radius: tuple[float, float],
) -> list[np.ndarray]:
    """Return masks of lesions of irregular outline that lie within one structure and do not touch.

    Args:
        labels: structure of each voxel.
        canvas: that they were drawn on.
        generator: of random numbers.
        count: how many.
        within: number of the structure.
        radius: smallest and largest, mm.

    Returns:
        A mask ``[I, J, K]`` bool for each; fewer where there is no room.
    """
    from scipy import ndimage

    free = labels == within
    masks: list[np.ndarray] = []
    for _ in range(count):
        size = float(generator.uniform(*radius))
        # Room on all sides, in mm; a lesion may lean on the structure's edge a little.
        depth = ndimage.distance_transform_edt(free, sampling=canvas.spacing)
        places = np.flatnonzero(depth >= min(size, float(depth.max())))
        if not len(places) or depth.max() <= 0:
            break
        at = np.unravel_index(int(generator.choice(places)), labels.shape)
        centre = [float(axis[i]) for axis, i in zip(canvas.axes, at, strict=True)]
        part, (x, y, z) = canvas.box([c - 1.5 * size for c in centre], [c + 1.5 * size for c in centre])
        dx, dy, dz = (axis - c for axis, c in zip((x, y, z), centre, strict=True))
        away = np.sqrt(dx**2 + dy**2 + dz**2)
        waves = generator.normal(size=(4, 3)) / size * 2.0
        shifts = generator.uniform(0, 2 * np.pi, 4)
        bumps = sum(np.sin(w[0] * dx + w[1] * dy + w[2] * dz + s) for w, s in zip(waves, shifts, strict=True))
        mask = np.zeros(labels.shape, bool)
        mask[part] = (away <= size * (1 + 0.12 * bumps)) & free[part]
        mask[at] = True
        masks.append(mask)
        free &= ~ndimage.binary_dilation(mask, iterations=2)
    return masks
