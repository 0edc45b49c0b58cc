"""Pixels of DICOM slices: decoding, slope and intercept of each slice, padding, inverted grey scales."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from omnivae.data.volumes.dicom_files import Progress, quietly
from omnivae.data.volumes.dicom_geometry import Problem
from omnivae.data.volumes.dicom_scan import Frame, codec_flaw
from omnivae.data.volumes.dicom_series import unit_of
from omnivae.volume import Stored

#: Hounsfield units of air, and of everything below it: what lies outside of the scanner's field of view, stored as -2000 or
#: -3024, becomes air before any window is applied. The lowest value of the usual 12 bits, so that nothing is cut that was measured.
AIR_HU = -1024
#: A padding value in this range of Hounsfield units would be tissue: it is left alone, and reported.
_TISSUE_HU = (-1000, 3071)

Padding = Literal["air", "keep"]


def decode(frames: Sequence[Frame], *, progress: Progress | None = None) -> list[np.ndarray]:
    """Decode the stored pixels of frames.

    Args:
        frames: in any order.
        progress: is called with the number of frames done and of all frames.

    Returns:
        Arrays ``[rows, columns]`` in the order of the frames.

    Raises:
        ValueError: for pixels that are truncated, damaged or in colours.
        ImportError: for a compressed transfer syntax without its codec, naming the package.
    """
    by_file: dict[Any, list[int]] = {}
    for i, frame in enumerate(frames):
        by_file.setdefault(frame.item, []).append(i)
    found: list[np.ndarray | None] = [None] * len(frames)
    workers = min(len(by_file), os.cpu_count() or 1, 8)
    done = 0
    with quietly(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for which, arrays in zip(
            by_file.values(),
            pool.map(lambda which: _decode_file([frames[i] for i in which]), by_file.values()),
            strict=True,
        ):
            for i, array in zip(which, arrays, strict=True):
                found[i] = array
            done += len(which)
            if progress is not None:
                progress(done, len(frames))
    return [array for array in found if array is not None]


def _decode_file(frames: list[Frame]) -> list[np.ndarray]:
    import pydicom
    from pydicom.pixels import pixel_array

    first = frames[0]
    name = first.item.name
    try:
        with first.item.open() as file:
            data = pydicom.dcmread(file, force=True)
    except Exception as error:  # damaged bytes make pydicom and the codecs raise almost anything
        raise ValueError(f"{name} ({first.name}) cannot be read to its end: fetch it again") from error
    syntax = getattr(data, "file_meta", {}).get("TransferSyntaxUID")
    flaw = "the transfer syntax is not said" if syntax is None else codec_flaw(syntax)
    if flaw:
        raise (ImportError if "pip install" in flaw else ValueError)(f"{name} ({first.name}): {flaw}")
    if "PixelData" not in data:
        raise ValueError(f"{name} ({first.name}) has no pixel data, or only a part of them: fetch it again")
    try:
        if first.frames == 1:
            arrays = [pixel_array(data, raw=True)]
        else:
            arrays = [pixel_array(data, index=frame.index, raw=True) for frame in frames]
    except Exception as error:
        raise ValueError(
            f"{name} ({first.name}): the pixel data ({getattr(syntax, 'name', syntax)}) are truncated or damaged: fetch the file "
            "again"
        ) from error
    expected = (first.rows, first.columns)
    for frame, array in zip(frames, arrays, strict=True):
        if array.shape != expected:
            raise ValueError(
                f"{name} ({frame.name}) decodes to {array.shape}; its header says {expected} of one sample"
            )
    if first.table:
        from pydicom.pixels import apply_modality_lut

        arrays = [apply_modality_lut(array, data) for array in arrays]
    return arrays


def to_values(
    stored: list[np.ndarray], frames: Sequence[Frame], *, padding: Padding = "air"
) -> tuple[np.ndarray, Stored, list[Problem]]:
    """Turn stored pixels into values: slope and intercept of each slice, padding to air, MONOCHROME1 to MONOCHROME2.

    Args:
        stored: a slice each, ``[rows, columns]``; emptied on the way, to save memory.
        frames: their headers, in the same order.
        padding: "air" replaces what is no measurement; "keep" leaves it.

    Returns:
        Values ``[columns, rows, slices]`` in the stored type or int16 where these hold them, otherwise in int32 or float32; how
        they were stored (slope and intercept of the first slice); and what was changed.
    """
    slopes = [1.0 if f.slope is None or f.table else f.slope for f in frames]
    intercepts = [0.0 if f.intercept is None or f.table else f.intercept for f in frames]
    if not np.isfinite([slopes, intercepts]).all() or 0 in slopes:
        raise ValueError(
            "a slice has a RescaleSlope of 0, or a slope or intercept that is no number: the header is damaged"
        )
    unit, problems = unit_of(frames), []
    origin = Stored(stored[0].dtype.name, slopes[0], intercepts[0])
    holes = [_padded(array, frame, unit, slope, intercept) if padding == "air" else None
             for array, frame, slope, intercept in zip(stored, frames, slopes, intercepts, strict=True)]  # fmt: skip
    if unit != "HU" and any(f.photometric == "MONOCHROME1" for f in frames):
        # Hounsfield units say what they are however they are displayed; other greys are turned, so that more is brighter.
        for i, frame in enumerate(frames):
            if frame.photometric == "MONOCHROME1":
                low, high = (
                    (-(1 << frame.bits - 1), (1 << frame.bits - 1) - 1) if frame.signed else (0, (1 << frame.bits) - 1)
                )
                stored[i] = (low + high - stored[i].astype(np.int64)).astype(stored[i].dtype)
        problems.append(Problem("MONOCHROME1", "greys were inverted: larger is brighter now"))
    dtype = _dtype(stored, slopes, intercepts)
    rows, columns = stored[0].shape
    values = np.empty((len(stored), rows, columns), dtype)
    for i, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True)):
        plain = slope == 1 and intercept == 0
        values[i] = stored[i] if plain else stored[i].astype(np.float64) * slope + intercept
        stored[i] = np.empty(0)
    if len(set(zip(slopes, intercepts, strict=True))) > 1:
        problems.append(Problem("rescale", "slope and intercept differ from slice to slice; each slice has its own"))
    if padding == "air":
        problems += _fill(values, holes, frames, unit, slopes, intercepts)
    return values.transpose(2, 1, 0), origin, problems


def _dtype(stored: list[np.ndarray], slopes: list[float], intercepts: list[float]) -> np.dtype:
    """Return the narrowest type that holds all values exactly, or float32."""
    first = stored[0].dtype
    if all(a.dtype == first for a in stored) and set(slopes) == {1.0} and set(intercepts) == {0.0}:
        return first
    if any(a.dtype.kind == "f" for a in stored) or any(s != int(s) for s in (*slopes, *intercepts)):
        return np.dtype(np.float32)
    ends = [
        float(end) * s + b for a, s, b in zip(stored, slopes, intercepts, strict=True) for end in (a.min(), a.max())
    ]
    for name in ("int16", "int32"):
        if np.iinfo(name).min <= min(ends) and max(ends) <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype(np.float32)


def _padded(array: np.ndarray, frame: Frame, unit: str, slope: float, intercept: float) -> np.ndarray | None:
    """Return where the padding value stands; None where there is none, or where it would be tissue."""
    if frame.padding is None or array.dtype.kind == "f":
        return None
    # A value above the sign's range was written with the other signedness.
    low, high = sorted(int(np.array(v).astype(array.dtype)) for v in frame.padding)
    if unit == "HU" and any(_TISSUE_HU[0] < v * slope + intercept <= _TISSUE_HU[1] for v in (low, high)):
        return None
    return (array >= low) & (array <= high)


def _fill(
    values: np.ndarray,
    holes: list[np.ndarray | None],
    frames: Sequence[Frame],
    unit: str,
    slopes: list[float],
    intercepts: list[float],
) -> list[Problem]:
    """Replace padding, in place: by air in CT, by the lowest measured value elsewhere; count what was replaced."""
    problems = []
    marked = sum(int(hole.sum()) for hole in holes if hole is not None)
    below = 0
    if unit == "HU":
        for i, hole in enumerate(holes):
            if hole is not None:
                values[i][hole] = AIR_HU
            low = values[i] < AIR_HU
            below += int(low.sum())
            values[i][low] = AIR_HU
    elif marked:
        measured = [
            plane[~hole] if hole is not None else plane.ravel() for plane, hole in zip(values, holes, strict=True)
        ]
        lowest = min((part.min() for part in measured if part.size), default=0)
        for plane, hole in zip(values, holes, strict=True):
            if hole is not None:
                plane[hole] = lowest
    share = f"of {values.size}"
    if marked:
        to = f"air ({AIR_HU} HU)" if unit == "HU" else "the lowest measured value"
        problems.append(Problem("padding", f"{marked} {share} voxels held the padding value and became {to}"))
    if below:
        problems.append(
            Problem("padding", f"{below} {share} voxels lay below {AIR_HU} HU and became air ({AIR_HU} HU)")
        )
    first = frames[0]
    if unit == "HU" and first.padding is not None and not marked:
        said = first.padding[0] * slopes[0] + intercepts[0]
        if _TISSUE_HU[0] < said <= _TISSUE_HU[1]:
            problems.append(Problem("padding", f"the padding value is {said:g} HU, which is tissue: left as it is"))
    return problems
