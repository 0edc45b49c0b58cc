"""The ``data.volume`` section of a configuration: how volumes become patches in a stated intensity range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from omnivae.component import suggestion

Intensity = Literal["auto", "window", "percentiles", "zscore"]
VolumeUnit = Literal["auto", "HU", "arbitrary"]
_LETTERS = ({"R", "L"}, {"A", "P"}, {"S", "I"})


@dataclass(frozen=True)
class VolumeConfig:
    """How volumes (CT, MR, microscopy) are oriented, windowed and cut into patches.

    Axes are those of the prepared volume: right-left, anterior-posterior, superior-inferior of a patient in orientation
    "RAS"; z, y, x on a microscope's stage.

    Args:
        patch_size: edge, or size along the three axes, of the patches that are trained on; a volume that is smaller is padded
            with its lowest intensity (air). For a z-window of microscopy the first number is its depth, ``[15, 128, 128]``.
            None takes whole volumes, which must then agree in size.
        patches_per_volume: random patches of each training volume in an epoch, and fixed patches of each validation volume.
        foreground: share of the training patches whose centre lies in the foreground (above -500 HU, or above Otsu's threshold);
            the others lie anywhere.
        flip_axes: axes (0, 1, 2) along which training patches are mirrored with probability 1/2.
        orientation: letters that say where the axes of a patient's volume point, such as "RAS" or "LPS"; "stored" leaves them.
        spacing: resample (linearly) to this voxel size: mm of a patient, micrometres on a stage; one number or one an axis.
            None keeps each volume's own.
        level: resolution level of OME-Zarr images, 0 for the full one.
        channel_names: channels to use, in this order, by their names (OME-Zarr); all by default.
        unit: what the values are. "auto" believes the reader (DICOM says) and takes NIfTI, NRRD and MetaImage files, which say
            nothing, for HU where they look like CT: integers with air (-900 HU or less) and nothing below -3,100.
        intensity: "window" maps ``window`` onto the model's range, for HU; "percentiles" those of each channel of each volume;
            "zscore" maps its mean ± ``deviations`` standard deviations; "auto" is window for HU and percentiles for all else.
        window: HU that become the lowest and the highest value.
        percentiles: of a channel of a whole volume, that become the lowest and the highest value.
        deviations: standard deviations on each side of the mean that become the ends of the range; 1 and ``clip`` false give the
            z-score itself to a model of range (-1, 1).
        clip: cut values beyond the ends off. Evaluation needs that.
        cache_gb: the prepared volumes of all runs together take no more of the disk than this; those not used for longest are
            removed, and what does not fit is decoded anew whenever it is needed. A quarter of the free disk by default. Where
            they lie: ``OMNIVAE_CACHE``. See ``data.cache``.

    Raises:
        ValueError: for a value out of its range.

    Example:
        >>> VolumeConfig(patch_size=64).patch
        (64, 64, 64)
    """

    patch_size: int | tuple[int, ...] | None = None
    patches_per_volume: int = 8
    foreground: float = 0.5
    flip_axes: tuple[int, ...] = ()
    orientation: str = "RAS"
    spacing: float | tuple[float, ...] | None = None
    level: int = 0
    channel_names: tuple[str, ...] = ()
    unit: VolumeUnit = "auto"
    intensity: Intensity = "auto"
    window: tuple[float, float] = (-1000.0, 1000.0)
    percentiles: tuple[float, float] = (0.0, 99.5)
    deviations: float = 4.0
    clip: bool = True
    cache_gb: float | None = None

    def __post_init__(self) -> None:
        for name in ("patch_size", "spacing", "flip_axes", "channel_names", "window", "percentiles"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(value))
        if self.patch_size is not None and (len(self.patch) != 3 or min(self.patch) < 1):
            raise ValueError(
                f"got data.volume.patch_size={self.patch_size}; expected an edge, or three, of at least 1 voxel"
            )
        if self.steps is not None and (len(self.steps) != 3 or not all(math.isfinite(s) and s > 0 for s in self.steps)):
            raise ValueError(f"got data.volume.spacing={self.spacing}; expected a voxel size above 0, or three")
        if self.patches_per_volume < 1:
            raise ValueError(f"got data.volume.patches_per_volume={self.patches_per_volume}; expected 1 or more")
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"got data.volume.foreground={self.foreground}; expected a share between 0 and 1")
        if not set(self.flip_axes) <= {0, 1, 2} or len(set(self.flip_axes)) < len(self.flip_axes):
            raise ValueError(f"got data.volume.flip_axes={list(self.flip_axes)}; expected different axes from 0, 1, 2")
        if self.level < 0:
            raise ValueError(f"got data.volume.level={self.level}; expected 0 or more")
        if self.orientation != "stored":
            letters = self.orientation.upper()
            if len(letters) != 3 or not all(any(letter in pair for letter in letters) for pair in _LETTERS):
                raise ValueError(
                    f'got data.volume.orientation={self.orientation!r}; expected three letters such as RAS or LPS, or "stored"'
                )
            object.__setattr__(self, "orientation", letters)
        for name, known in (
            ("unit", ("auto", "HU", "arbitrary")),
            ("intensity", ("auto", "window", "percentiles", "zscore")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"unknown data.volume.{name} {value!r}{suggestion(value, known)}; expected one of {', '.join(known)}"
                )
        for name, least, most in (("window", -math.inf, math.inf), ("percentiles", 0.0, 100.0)):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(math.isfinite(v) for v in pair) or not least <= pair[0] < pair[1] <= most:
                raise ValueError(f"got data.volume.{name}={list(pair)}; expected two numbers, the lower first")
            object.__setattr__(self, name, (float(pair[0]), float(pair[1])))
        if not (math.isfinite(self.deviations) and self.deviations > 0):
            raise ValueError(f"got data.volume.deviations={self.deviations}; expected a number above 0")
        if self.cache_gb is not None and self.cache_gb < 0:
            raise ValueError(f"got data.volume.cache_gb={self.cache_gb}; expected 0 or more")
        if self.unit == "arbitrary" and self.intensity == "window":
            raise ValueError(
                "got data.volume.intensity=window for values of an arbitrary unit, whose windows mean nothing from one volume to "
                "the next: set intensity to percentiles or zscore, or unit to HU"
            )

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a patch along the three axes; empty for whole volumes."""
        if self.patch_size is None:
            return ()
        return (self.patch_size,) * 3 if isinstance(self.patch_size, int) else self.patch_size

    @property
    def steps(self) -> tuple[float, ...] | None:
        """Voxel size to resample to along the three axes, or None."""
        if self.spacing is None:
            return None
        return self.spacing if isinstance(self.spacing, tuple) else (float(self.spacing),) * 3
