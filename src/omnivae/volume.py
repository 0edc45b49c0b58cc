"""A volume: an array with its geometry, the unit of its values and where it came from.

Axes ``[C, I, J, K]``: channels first, then three spatial axes in the order in which the source stores them. The affine maps
indices along the spatial axes to the world, whatever that order is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

#: What the world is: a patient (mm; right, anterior, superior), a microscope's stage (micrometres), or frames of a video
#: (seconds along the first axis, pixels along the others).
Space = Literal["patient", "stage", "video"]
Unit = Literal["HU", "arbitrary"]
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Stored:
    """How values are stored in the source: ``value = slope * stored + intercept``.

    Attributes:
        dtype: numpy's name of the stored type.
        slope: factor.
        intercept: summand.
    """

    dtype: str
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Volume:
    """An array with its geometry, the unit of its values and its origin.

    Args:
        array: values after the source's slope and intercept (Hounsfield units for CT), ``[C, I, J, K]``, in the stored type where
            that holds them and in float32 otherwise.
        affine: from indices (i, j, k, 1) to the world, ``[4, 4]``; columns may be oblique, or sheared by a gantry tilt.
        unit: of the values.
        space: of the world.
        channels: names of the channels; empty where the source has none.
        stored: how the source stores values, for writing them back alike.
        source: path of the file or folder that it was read from.
        format: of the source: "dicom", "nifti", "nrrd", "mha", "ome-zarr", "tiff", "video".
        origin: facts of the source that a writer needs again (such as NIfTI's codes); nothing that tells of a person.
        problems: what is unusual about it, a sentence each.

    Raises:
        ValueError: for an array that is not four-dimensional or empty, and an affine that is not an invertible 4 x 4 matrix.

    Example:
        >>> volume = Volume(np.zeros((1, 4, 5, 6), np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]), unit="HU")
        >>> volume.size, volume.spacing, volume.orientation
        ((4, 5, 6), (1.0, 1.0, 3.0), 'LPS')
    """

    array: np.ndarray
    affine: np.ndarray
    unit: Unit = "arbitrary"
    space: Space = "patient"
    channels: tuple[str, ...] = ()
    stored: Stored | None = None
    source: str = ""
    format: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or 0 in self.array.shape:
            raise ValueError(
                f"got an array of shape {self.array.shape}; expected channels and three spatial axes, [C, I, J, K], none empty"
            )
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.any(affine[3] != (0, 0, 0, 1)):
            raise ValueError(
                f"got the affine {affine.tolist()}; expected a finite 4 x 4 matrix whose last row is 0 0 0 1"
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / np.where(lengths == 0, 1, lengths))) < 1e-6:
            raise ValueError(
                f"got an affine whose axes {affine[:3, :3].T.tolist()} span no volume; expected three independent directions of "
                "lengths above 0"
            )
        object.__setattr__(self, "affine", affine)
        if self.channels and len(self.channels) != len(self.array):
            raise ValueError(
                f"got {len(self.channels)} names ({', '.join(self.channels)}) of {len(self.array)} channels"
            )

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along each spatial axis."""
        i, j, k = self.array.shape[1:]
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Step along each spatial axis: mm of a patient, micrometres on a stage; exact for sheared and oblique axes."""
        # math.dist is correctly rounded where numpy's norm may be one unit off: 3.0 stays 3.0.
        i, j, k = (math.dist(column, (0, 0, 0)) for column in self.affine[:3, :3].T)
        return i, j, k

    @property
    def orientation(self) -> str:
        """Where each axis points, by its largest component: "RAS", "LPS", "PIR" and so on; of a patient only, "" otherwise."""
        if self.space != "patient":
            return ""
        axes = self.affine[:3, :3] / np.asarray(self.spacing)
        letters = [""] * 3
        free_rows, free_columns = {0, 1, 2}, {0, 1, 2}
        for _ in range(3):
            row, column = max(((r, c) for r in free_rows for c in free_columns), key=lambda rc: abs(axes[rc]))
            letters[column] = _LETTERS[row][int(axes[row, column] > 0)]
            free_rows.remove(row)
            free_columns.remove(column)
        return "".join(letters)

    @property
    def shear(self) -> float:
        """Largest deviation of an angle between two axes from 90 degrees, in degrees: the tilt of a tilted gantry."""
        axes = self.affine[:3, :3] / np.asarray(self.spacing)
        return max(
            abs(90 - math.degrees(math.acos(float(np.clip(axes[:, a] @ axes[:, b], -1, 1)))))
            for a, b in ((0, 1), (0, 2), (1, 2))
        )

    def with_array(self, array: np.ndarray, **changes: Any) -> Volume:
        """Return a volume of the same geometry with other values.

        Args:
            array: ``[C, I, J, K]``.
            changes: other attributes to change.
        """
        return replace(self, array=array, **changes)
