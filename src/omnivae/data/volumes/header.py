"""What is known of a volume before its voxels are read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from omnivae.volume import Space, Unit, Volume


@dataclass(frozen=True)
class VolumeHeader:
    """Shape, geometry and type of a volume, without its voxels.

    Attributes:
        shape: ``(C, I, J, K)``.
        affine: from indices to the world, ``[4, 4]``.
        dtype: numpy's name of the stored type.
        unit: of the values, where the file says it.
        space: of the world.
        channels: their names; empty where there are none.
        times: number of time points.
        levels: number of resolution levels.
        format: of the file.
        source: its path.
        problems: what is unusual, a sentence each.
    """

    shape: tuple[int, int, int, int]
    affine: np.ndarray
    dtype: str
    unit: Unit = "arbitrary"
    space: Space = "patient"
    channels: tuple[str, ...] = ()
    times: int = 1
    levels: int = 1
    format: str = ""
    source: str = ""
    problems: tuple[str, ...] = field(default=())

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along each spatial axis."""
        return self.shape[1:]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Step along each spatial axis: mm of a patient, micrometres on a stage."""
        return self._geometry().spacing

    @property
    def orientation(self) -> str:
        """Where each axis points, as :attr:`omnivae.volume.Volume.orientation`."""
        return self._geometry().orientation

    @property
    def bytes(self) -> int:
        """Size of the voxels in memory, in the stored type."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def _geometry(self) -> Volume:
        return Volume(np.zeros((1, 1, 1, 1), np.uint8), self.affine, space=self.space)
