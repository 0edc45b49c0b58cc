"""Stored samples to values and back: slope, intercept, and the type that loses nothing of either."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from omnivae.volume import Stored, Unit, Volume

_SLAB = 1 << 22
#: Share of voxels at or below -500 HU above which values are taken for Hounsfield units: air around and in a body.
_AIR_SHARE = 0.01
#: HU of the thinnest air; scanners mark what they did not see with lower numbers.
LEAST_HU = -1024


def need(module: str, extra: str) -> Any:
    """Import a library of an extra.

    Args:
        module: name.
        extra: of this package's extras the one that brings it.

    Returns:
        The module.

    Raises:
        ImportError: naming what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module.split('.')[0]}: pip install omnivae[{extra}]") from error


def native(array: np.ndarray) -> np.ndarray:
    """Return an array in the machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_samples(dtype: np.dtype, name: str) -> None:
    """Raise unless samples are integers or floats: neither colours, nor complex numbers, nor truth values.

    Args:
        dtype: of the samples.
        name: the file, for the error.

    Raises:
        ValueError: for other types.
    """
    if dtype.fields:
        raise ValueError(f"{name} holds colours ({', '.join(dtype.fields)}); expected one number a voxel: convert it")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{name} holds samples of type {dtype}; expected integers or floats of at most 64 bits")


def from_stored(raw: np.ndarray, *, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
    """Return ``slope * raw + intercept`` in the narrowest type that holds it.

    The stored type stays where it can hold every value; otherwise float32 where that tells neighbouring steps apart; otherwise
    float64.

    Args:
        raw: stored samples.
        slope: factor, not 0.
        intercept: summand.

    Returns:
        Values of the same shape.

    Example:
        >>> from_stored(np.array([0, 2000], np.int16), intercept=-1024).dtype
        dtype('int16')
        >>> from_stored(np.array([0, 2000], np.uint16), intercept=-1024).tolist()
        [-1024.0, 976.0]
    """
    raw = native(raw)
    if slope == 1 and intercept == 0:
        return raw
    if raw.dtype.kind == "f":
        dtype = raw.dtype if raw.dtype.itemsize >= 4 else np.dtype(np.float32)
        return _linear(raw, slope, intercept, dtype)
    ends = sorted(float(end) * slope + intercept for end in (raw.min(), raw.max()))
    limits = np.iinfo(raw.dtype)
    if slope == int(slope) and intercept == int(intercept) and limits.min <= ends[0] and ends[1] <= limits.max:
        return _linear(raw, slope, intercept, raw.dtype)
    fine = max(abs(end) for end in ends) * float(np.finfo(np.float32).eps) < abs(slope) / 4
    return _linear(raw, slope, intercept, np.dtype(np.float32 if fine else np.float64))


def to_stored(volume: Volume, *, clip: bool = False) -> tuple[np.ndarray, Stored]:
    """Return samples as the volume's source stored them: the inverse of :func:`from_stored`.

    Args:
        volume: with ``stored``; without, its array is returned as it is.
        clip: whether values beyond the stored type become its ends; otherwise they are an error.

    Returns:
        Samples ``[C, I, J, K]``, and how they are stored.

    Raises:
        ValueError: for values that are not finite or lie beyond an integer type.
    """
    stored = volume.stored or Stored(volume.array.dtype.name)
    dtype, array = np.dtype(stored.dtype), volume.array
    same = stored.slope == 1 and stored.intercept == 0
    if same and array.dtype == dtype:
        return array, stored
    if dtype.kind == "f":
        raw = array.astype(np.float64, copy=False)
        return (raw if same else (raw - stored.intercept) / stored.slope).astype(dtype), stored
    limits = np.iinfo(dtype)
    out = np.empty(array.shape, dtype)
    for part in _slabs(array):
        samples = np.rint((array[part].astype(np.float64) - stored.intercept) / stored.slope)
        if not np.isfinite(samples).all():
            raise ValueError(
                f"got values that are not finite; {dtype} cannot hold them: replace them, or store as float32"
            )
        beyond = int(np.count_nonzero((samples < limits.min) | (samples > limits.max)))
        if beyond and not clip:
            raise ValueError(
                f"got {beyond} values beyond {dtype} ({stored.slope:g} x {limits.min}..{limits.max} + {stored.intercept:g}): "
                "clip them, or store as float32"
            )
        out[part] = np.clip(samples, limits.min, limits.max).astype(dtype)
    return out, stored


#: HU above which there is dense bone, teeth and metal: never half of a scan.
_BONE = 1000


def check_hu(volume: Volume) -> None:
    """Raise unless values can be Hounsfield units of a CT: air is about -1000, fat -100, water 0.

    Args:
        volume: a whole scan (a patch inside an organ may hold no air).

    Raises:
        ValueError: for pictures of 8 bits, values scaled to [0, 1], values without their intercept, and values of other kinds.

    Example:
        >>> shot = Volume(np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4), np.eye(4))
        >>> try:
        ...     check_hu(shot)
        ... except ValueError as error:
        ...     print("8-bit picture" in str(error))
        True
    """
    array, name = volume.array, volume.source or "the volume"
    low, high = float(array.min()), float(array.max())
    if not np.isfinite((low, high)).all():
        raise ValueError(f"{name} holds values that are not finite; expected Hounsfield units: mend or remove them")
    said = f"{name}: got values from {low:g} to {high:g} of type {array.dtype}; expected Hounsfield units (air -1000, water 0)"
    if low >= -1.5 and high <= 1.5:
        raise ValueError(f"{said}: they look scaled to [-1, 1] or [0, 1]: give the scan as the scanner wrote it")
    if low >= 0 and high <= 255:
        raise ValueError(
            f"{said}: this looks like an 8-bit picture or screenshot of a CT, from which Hounsfield units cannot be told: "
            "give the DICOM series"
        )
    if low >= 0:
        raise ValueError(f"{said}: nothing is below 0: add the intercept (often -1024), or give the unit 'arbitrary'")
    if low > -50:
        raise ValueError(f"{said}: there is neither air nor fat: this is no whole CT scan; give the unit 'arbitrary'")
    dense = np.count_nonzero(array > _BONE) / array.size
    if dense > 0.5:
        raise ValueError(
            f"{said}: {dense:.0%} of the voxels lie above {_BONE}, denser than bone: this is no CT scan; give the unit 'arbitrary'"
        )


def guess_unit(volume: Volume) -> Unit:
    """Return the unit that values look like, for files that cannot say it: a guess to show to a person, never to act upon.

    "HU" where at least 1 % of the voxels lie in [-1100, -500], where air and lung are, and nothing lies below -4000.

    Args:
        volume: any.

    Returns:
        The volume's own unit where it is known.
    """
    if volume.unit == "HU":
        return "HU"
    array = volume.array
    if float(array.min()) < -4000 or float(array.min()) > -500:
        return "arbitrary"
    air = np.count_nonzero((array >= -1100) & (array <= -500)) / array.size
    return "HU" if air >= _AIR_SHARE else "arbitrary"


def _slabs(array: np.ndarray) -> list[tuple[slice, ...]]:
    """Return slices along the last axis that hold few voxels each: temporaries in float64 stay small."""
    step = max(1, _SLAB // max(1, array[..., 0].size))
    return [(..., slice(at, at + step)) for at in range(0, array.shape[-1], step)]  # type: ignore[misc]


def _linear(raw: np.ndarray, slope: float, intercept: float, dtype: np.dtype) -> np.ndarray:
    out = np.empty(raw.shape, dtype)
    for part in _slabs(raw):
        out[part] = raw[part].astype(np.float64) * slope + intercept
    return out
