"""Transforms of values with an inverse: windows of Hounsfield units, percentiles, z-scores; a model's intensity contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnivae.data.volumes.geometry import Orient, Resample
from omnivae.data.volumes.resampling import Interpolation
from omnivae.data.volumes.transforms import Applied, Pipeline, Step, Transform, geometry_of
from omnivae.volume import Unit, Volume

#: Windows of radiology in HU: the lowest and highest value shown.
HU_WINDOWS: Mapping[str, tuple[float, float]] = {
    "full": (-1000.0, 1000.0),
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
}
_KINDS = ("window", "percentiles", "zscore")
_CONTRACT = {"unit", *_KINDS, "range", "orientation", "spacing", "clip"}


@dataclass(frozen=True)
class Window(Transform):
    """Map Hounsfield units of a window linearly to a range of values, clipping what lies beyond; the way back gives HU.

    Args:
        low: HU that becomes the range's first value.
        high: HU that becomes its second.
        range: of the result.
        clip: whether values beyond the window become its ends (padding such as -2000 or -3024 becomes air).
        unit: that the volume must have; "arbitrary" for windows that are no Hounsfield units.

    Raises:
        ValueError: for empty windows and ranges, and volumes of another unit.
    """

    low: float = -1000.0
    high: float = 1000.0
    range: tuple[float, float] = (0.0, 1.0)
    clip: bool = True
    unit: Unit = "HU"

    def __post_init__(self) -> None:
        if not self.low < self.high or not self.range[0] < self.range[1]:
            raise ValueError(
                f"got the window {self.low:g} to {self.high:g} and the range {tuple(self.range)}; expected the first value of "
                "each below the second"
            )

    def plan(self, volume: Volume) -> Step:
        if volume.unit != self.unit:
            raise ValueError(
                f"got values of unit {volume.unit!r} for a window in {self.unit!r}: read CT with unit='HU', or take percentiles"
            )
        return _linear(volume, self.low, self.high, self.range, self.clip)


@dataclass(frozen=True)
class Percentiles(Transform):
    """Map the values between two percentiles of a volume linearly to a range: for MR and microscopy, which have no unit.

    Args:
        low: percentile in [0, 100) that becomes the range's first value.
        high: percentile in (0, 100] that becomes its second.
        range: of the result.
        clip: whether values beyond become the ends.
        per_channel: whether each channel has percentiles of its own.

    Raises:
        ValueError: for percentiles out of order, and volumes whose percentiles are equal.
    """

    low: float = 0.0
    high: float = 99.5
    range: tuple[float, float] = (0.0, 1.0)
    clip: bool = True
    per_channel: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100 or not self.range[0] < self.range[1]:
            raise ValueError(
                f"got the percentiles {self.low:g} and {self.high:g} and the range {tuple(self.range)}; expected "
                "0 <= low < high <= 100, and a range that rises"
            )

    def plan(self, volume: Volume) -> Step:
        array = volume.array if self.per_channel else volume.array.reshape(1, -1)
        ends = np.array([np.percentile(channel, (self.low, self.high)) for channel in array])
        if not np.isfinite(ends).all():
            raise ValueError(f"{volume.source or 'the volume'} holds values that are not finite: mend or remove them")
        if (ends[:, 0] == ends[:, 1]).any():
            raise ValueError(
                f"{volume.source or 'the volume'}: percentiles {self.low:g} and {self.high:g} are both {ends[:, 0].max():g}: "
                "nearly all values are equal; widen the percentiles or leave the volume out"
            )
        return _linear(volume, ends[:, 0], ends[:, 1], self.range, self.clip)


@dataclass(frozen=True)
class ZScore(Transform):
    """Map the mean of each channel of a volume, ± some standard deviations, linearly to a range.

    ``y = first + (last - first) (x - mean + d std) / (2 d std)`` with the population's standard deviation: with the range (-1, 1),
    one deviation and no clipping this is the z-score itself.

    Args:
        deviations: d, that become the ends of the range; above 0.
        range: of the result.
        clip: whether values beyond become the ends.

    Raises:
        ValueError: for numbers out of their ranges, and volumes with a channel whose values are all equal.

    Example:
        >>> volume = Volume(np.array([2.0, 4.0, 6.0, 8.0]).reshape(1, 4, 1, 1), np.eye(4))
        >>> ZScore(1.0, range=(-1.0, 1.0), clip=False).plan(volume).forward(volume, "linear").array.ravel().round(3).tolist()
        [-1.342, -0.447, 0.447, 1.342]
    """

    deviations: float = 4.0
    range: tuple[float, float] = (0.0, 1.0)
    clip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.deviations < np.inf or not self.range[0] < self.range[1]:
            raise ValueError(
                f"got {self.deviations} standard deviations and the range {tuple(self.range)}; expected a number above 0, and a "
                "range that rises"
            )

    def plan(self, volume: Volume) -> Step:
        flat = volume.array.reshape(len(volume.array), -1)
        mean, std = (getattr(flat, name)(axis=1, dtype=np.float64) for name in ("mean", "std"))
        if (std == 0).any():
            raise ValueError(
                f"{volume.source or 'the volume'} holds the same value {mean[std == 0][0]:g} everywhere: leave it out"
            )
        return _linear(volume, mean - self.deviations * std, mean + self.deviations * std, self.range, self.clip)


def contract_pipeline(intensity: Mapping[str, Any]) -> Pipeline:
    """Return the transforms that a model's intensity contract asks for.

    Args:
        intensity: such as ``{"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS", "clip": True}``, or
            with ``percentiles``, two numbers, or ``zscore``, a number of standard deviations, in the window's place;
            ``orientation`` and ``spacing`` may be absent. Every contract that training writes is one of these.

    Returns:
        Orientation, spacing, window.

    Raises:
        ValueError: for unknown keys, and without exactly one of window, percentiles and zscore.

    Example:
        >>> contract_pipeline({"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS"}).transforms[0]
        Orient(orientation='RAS')
    """
    odd = sorted(set(intensity) - _CONTRACT)
    if odd:
        raise ValueError(
            f"got an intensity contract with {', '.join(odd)}; expected keys of {', '.join(sorted(_CONTRACT))}"
        )
    if sum(kind in intensity for kind in _KINDS) != 1:
        raise ValueError(f"got an intensity contract {dict(intensity)}; expected one of {', '.join(_KINDS)}")
    transforms: list[Transform] = []
    if intensity.get("orientation"):
        transforms.append(Orient(intensity["orientation"]))
    if intensity.get("spacing"):
        transforms.append(Resample(intensity["spacing"]))
    low, high = intensity.get("range", (0.0, 1.0))
    clip = bool(intensity.get("clip", True))
    if "window" in intensity:
        first, last = intensity["window"]
        transforms.append(Window(first, last, (low, high), clip, unit=intensity.get("unit", "HU")))
    elif "zscore" in intensity:
        transforms.append(ZScore(float(intensity["zscore"]), (low, high), clip))
    else:
        first, last = intensity["percentiles"]
        transforms.append(Percentiles(first, last, (low, high), clip))
    return Pipeline(tuple(transforms))


def contract_return(intensity: Mapping[str, Any], source: Volume, window: Any) -> Applied:
    """Return the way back that :func:`contract_pipeline` found for a volume, when its values are no longer there.

    Args:
        intensity: the contract.
        source: geometry, unit and number of channels of the volume; its values are not looked at.
        window: ``facts["window"]`` of that time: the values that became the ends of the range.

    Returns:
        What :class:`Pipeline` returned then, the values aside: its ``inverse`` is the same.

    Example:
        >>> contract = {"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS"}
        >>> volume = Volume(np.full((1, 4, 5, 6), -500, np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]), unit="HU")
        >>> applied = contract_pipeline(contract)(volume)
        >>> back = contract_return(contract, applied.source, applied.facts["window"]).inverse(applied.volume)
        >>> back.orientation, back.unit, bool((back.array == volume.array).all())
        ('LPS', 'HU', True)
    """
    low, high = (np.asarray(end, dtype=np.float64).reshape(-1, 1, 1, 1) for end in window)
    first, last = intensity.get("range", (0.0, 1.0))
    move = _Affine(low, high, (float(first), float(last)), bool(intensity.get("clip", True)), source.unit)
    here, steps = geometry_of(source), []
    for transform in contract_pipeline(intensity).transforms:
        values = isinstance(transform, (Window, Percentiles, ZScore))
        step = Step("intensity", move.forward, move.backward) if values else transform.plan(here)
        here = geometry_of(here, step)
        steps.append(step)
    return Applied(here.with_array(here.array, unit="arbitrary"), geometry_of(source), tuple(steps))


@dataclass(frozen=True)
class _Affine:
    """Values there and back: ``first + (x - low) * scale``, one pair for each channel or for all."""

    low: np.ndarray
    high: np.ndarray
    range: tuple[float, float]
    clip: bool
    unit: Unit
    scale: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", (self.range[1] - self.range[0]) / (self.high - self.low))

    def forward(self, volume: Volume, _: Interpolation) -> Volume:
        self._check(volume)
        out = _floats(volume.array)
        np.subtract(out, self.low, out=out, casting="same_kind")
        np.multiply(out, self.scale, out=out, casting="same_kind")
        np.add(out, self.range[0], out=out, casting="same_kind")
        if self.clip:
            np.clip(out, *self.range, out=out)
        return volume.with_array(out, unit="arbitrary")

    def backward(self, volume: Volume, _: Interpolation) -> Volume:
        self._check(volume)
        out = _floats(volume.array)
        np.subtract(out, self.range[0], out=out, casting="same_kind")
        np.divide(out, self.scale, out=out, casting="same_kind")
        np.add(out, self.low, out=out, casting="same_kind")
        return volume.with_array(out, unit=self.unit)

    def _check(self, volume: Volume) -> None:
        if len(self.low) not in (1, len(volume.array)):
            raise ValueError(
                f"got {len(volume.array)} channels; the window was taken of {len(self.low)}: give a volume of the same channels"
            )


def _linear(volume: Volume, low: Any, high: Any, range: tuple[float, float], clip: bool) -> Step:
    shaped = [np.asarray(end, dtype=np.float64).reshape(-1, 1, 1, 1) for end in (low, high)]
    low, high = shaped
    if not np.isfinite((float(volume.array.min()), float(volume.array.max()))).all():
        raise ValueError(f"{volume.source or 'the volume'} holds values that are not finite: mend or remove them")
    move = _Affine(low, high, (float(range[0]), float(range[1])), clip, volume.unit)
    facts = {
        "window": [low.ravel().tolist(), high.ravel().tolist()]
        if low.size > 1
        else [float(low.item()), float(high.item())],
        "below_window": float(np.count_nonzero(volume.array < low) / volume.array.size),
        "above_window": float(np.count_nonzero(volume.array > high) / volume.array.size),
    }
    return Step("intensity", move.forward, move.backward, facts)


def _floats(array: np.ndarray) -> np.ndarray:
    """Return a copy in float64 of float64, in float32 of all else."""
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)
