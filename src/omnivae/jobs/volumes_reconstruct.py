"""``omnivae reconstruct`` on volumes: each comes back in its own geometry, unit and type, with what was lost stated."""

from __future__ import annotations

import logging
import math
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omnivae.files import write_atomic
from omnivae.jobs.evaluate import load
from omnivae.jobs.progress import percent, progress_bar
from omnivae.jobs.volumes import OnGaps
from omnivae.jobs.volumes_codec import Mode, Rebuilt, VolumeCodec, check_precision
from omnivae.jobs.volumes_work import (
    ENDS,
    Format,
    Record,
    fingerprint,
    format_for,
    names_of,
    read_for,
    volumes_at,
    write_result,
)
from omnivae.models import VAE
from omnivae.models.storage import find_model, model_hash
from omnivae.training.device import Precision
from omnivae.volume import Unit, Volume

log = logging.getLogger(__name__)

RECORD = "reconstruct.json"


@dataclass(frozen=True)
class VolumeResult:
    """What became of one volume.

    Attributes:
        name: of the source, relative.
        output: of the result, relative to the output directory.
        shape: channels and the three axes.
        spacing: along the axes.
        orientation: of the axes; empty but for patients.
        unit: of the values.
        dtype: of the values.
        window: lowest and highest value that the model sees.
        below: voxels below it, whose values were cut off.
        above: voxels above it.
        resampled: whether the model's voxel size made it interpolate.
        metrics: name to value on the source's own grid and unit; ``None`` for infinite ones and those without voxels.
        structures: errors in each structure of the labels.
        notes: what a reader must know.
        seconds: that encoding and decoding took.
    """

    name: str
    output: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    unit: str
    dtype: str
    window: tuple[float, float]
    below: int
    above: int
    resampled: bool
    metrics: dict[str, float | None] = field(default_factory=dict)
    structures: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def clipped(self) -> str:
        """A sentence about values outside the model's window."""
        voxels = math.prod(self.shape)
        low, high = self.window
        if not self.below + self.above:
            return f"all {voxels:,} voxels lie in the model's window of {low:g} to {high:g}"
        return (
            f"{self.below + self.above:,} of {voxels:,} voxels ({(self.below + self.above) / voxels:.2%}) lie outside the model's "
            f"window of {low:g} to {high:g} and were clipped: {self.below:,} below, {self.above:,} above"
        )


def reconstruct_volumes(
    model: str | Path | VAE,
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    format: Format = "auto",
    series: str | None = None,
    time: int | None = None,
    unit: Unit | None = None,
    on_gaps: OnGaps = "error",
    on_error: Literal["stop", "skip"] = "stop",
    keep_identifiers: bool = False,
    memory: str | None = None,
    mode: Mode = "exact",
    intensity: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
    report: str | Path | None = None,
    measure: bool = True,
    precision: Precision = "auto",
    loaded: VAE | None = None,
    progress: bool = True,
) -> list[VolumeResult]:
    """Encode and decode volumes; results have the sources' geometry, unit and type.

    Each volume is brought into the model's intensity contract (orientation, voxel size, window), encoded, decoded, and taken back
    the same way: affine, spacing, orientation and shape are those of the source bit for bit. Values outside the contract's window
    cannot come back and are counted. What was done stands in ``reconstruct.json`` in the output directory; the same command again
    goes on where it was stopped.

    Args:
        model: a model directory, a run, or a model.
        paths: volumes: DICOM folders and archives, NIfTI, NRRD, MHA, OME-Zarr, or folders of them.
        output: directory of the results.
        format: of the results; "auto" is NIfTI of patients and OME-Zarr of everything else. "dicom" writes a new series, derived,
            without anything that tells of the patient.
        series: number of one DICOM series, as ``omnivae inspect`` lists them.
        time: which of several time points.
        unit: of the values of formats that state none; for a model in Hounsfield units they are taken for these, and refused where
            they cannot be.
        on_gaps: what to do about missing slices of a DICOM series.
        on_error: "stop" at a volume that cannot be used before anything is computed on the next one, or "skip" it with a warning.
        keep_identifiers: whether a DICOM series written from one keeps patient, study and frame of reference.
        memory: budget of encoding and decoding, such as "4GB": they go tile by tile, see :class:`omnivae.Tiled`.
        mode: of the tiles.
        intensity: the contract of a model that has none of its own.
        labels: a label map on the grid of the one volume, for errors in each structure.
        report: file for a page of pictures and numbers.
        measure: whether errors are measured.
        precision: of the networks; "auto" is float32, because the 3 % of bf16 would be tens of HU.
        loaded: the model of that directory, where it is loaded already, in that precision.
        progress: show progress on a terminal.

    Returns:
        What became of each volume.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for volumes that cannot be used, results that would overwrite something, and options that do not fit.
    """
    root = Path(output)
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file; give --output a directory")
    entries = volumes_at(paths, series, output=root)
    precision = "32" if precision == "auto" else precision
    check_precision(memory, mode, precision)
    if loaded is None:
        loaded = model if isinstance(model, VAE) else load(model, precision)
    codec = VolumeCodec(loaded, intensity=intensity, memory=memory, mode=mode)
    if keep_identifiers and format != "dicom":
        raise ValueError(
            "got --keep_identifiers, and results are not DICOM, which has a place for them: add --format dicom, or leave it out"
        )
    if labels is not None and len(entries) != 1:
        raise ValueError(f"got --labels and {len(entries)} volumes; labels belong to one volume: give it alone")
    settings = {
        "model": None if isinstance(model, VAE) else model_hash(find_model(model)),
        "intensity": codec.contract,
        "format": format,
        "keep_identifiers": keep_identifiers,
        "unit": unit,
        "time": time,
        "on_gaps": on_gaps,
        "mode": mode if memory is not None else "whole",
        "measure": measure,
    }
    record = Record(root / RECORD, settings, "reconstructed")
    names = names_of(entries, root)
    results: list[VolumeResult] = []
    pictures: dict[str, list[tuple[str, bytes]]] = {}
    shares = 2 * len(entries) if memory is not None else len(entries)
    with progress_bar("reconstructing", 100 * shares, progress, "%") as advance:
        for entry, name in zip(entries, names, strict=True):
            mark = fingerprint(entry)
            known = record.done(name, mark)
            if known is not None and report is None and labels is None:
                results.append(VolumeResult(**known))
                continue
            try:
                volume = read_for(codec.unit, entry, unit=unit, time=time, on_gaps=on_gaps)
                begun = clock.perf_counter()
                rebuilt = codec(volume, progress=percent(advance))
            except (ValueError, EOFError) as error:
                if on_error == "stop":
                    raise
                log.warning("left out: %s: %s", name, error)
                continue
            seconds = clock.perf_counter() - begun
            kind = format_for(volume, format)
            result = _result(rebuilt, name, name + ENDS[kind], seconds, measure=measure, labels=labels)
            if known is None:
                record.begin(name, mark, asdict(result))
                write_result(
                    rebuilt.reconstruction, root / result.output, kind, entry, keep_identifiers=keep_identifiers
                )
            record.finish(name, mark, asdict(result))
            results.append(result)
            if report is not None:
                from omnivae.report.volumes import comparison_pictures

                pictures[name] = comparison_pictures(rebuilt.original, rebuilt.reconstruction)
            advance(100 if memory is None else 0)
    if not results:
        raise ValueError(f"none of {len(entries)} volumes could be reconstructed")
    if report is not None:
        from omnivae.jobs.volumes_page import reconstruction_page

        write_atomic(Path(report), reconstruction_page(results, pictures, codec.contract).encode())
    return results


def measure_volume(original: Volume, reconstruction: Volume, window: tuple[float, float]) -> dict[str, float | None]:
    """Return the errors of a reconstruction on its own grid and unit.

    Args:
        original: the volume.
        reconstruction: of the same size.
        window: lowest and highest value that the model sees, the range that PSNR and SSIM of values without a unit refer to.

    Returns:
        In HU: ``mae_hu`` and PSNR, SSIM, MAE in the windows of lung, soft tissue and bone. Otherwise "psnr", "ssim" and "mae".
    """
    from omnivae.metrics.volume import Window, hu_table, window_errors

    a, b = (torch.from_numpy(_plain(v.array)) for v in (reconstruction, original))
    if original.unit == "HU":
        found = hu_table(a, b)
    else:
        low, high = window
        errors = window_errors(a[None], b[None], Window((low + high) / 2, high - low))
        found = {
            "psnr": float(errors.psnr),
            "ssim": float(errors.ssim),
            "mae": float((a.double() - b.double()).abs().mean()),
        }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


# -- inside


def _result(
    rebuilt: Rebuilt, name: str, output: str, seconds: float, *, measure: bool, labels: str | Path | None
) -> VolumeResult:
    original, volume = rebuilt.original, rebuilt.reconstruction
    return VolumeResult(
        name=name,
        output=output,
        shape=tuple(volume.array.shape),
        spacing=volume.spacing,
        orientation=volume.orientation,
        unit=volume.unit,
        dtype=str(volume.array.dtype),
        window=rebuilt.window,
        below=rebuilt.below,
        above=rebuilt.above,
        resampled=rebuilt.resampled,
        metrics=measure_volume(original, volume, rebuilt.window) if measure else {},
        structures={} if labels is None else _structures(rebuilt, labels),
        notes=(*original.problems, *rebuilt.notes),
        seconds=round(seconds, 2),
    )


def _structures(rebuilt: Rebuilt, labels: str | Path) -> dict[str, dict[str, float]]:
    from omnivae.data.volumes import read_volume
    from omnivae.metrics.volume import structure_errors

    marks = read_volume(labels)
    original = rebuilt.original
    if marks.size != original.size or not np.allclose(marks.affine, original.affine, atol=1e-3):
        raise ValueError(
            f"{labels} lies on another grid ({marks.size}, {marks.orientation}) than the volume ({original.size}, "
            f"{original.orientation}): resample the labels onto it"
        )
    a, b = (torch.from_numpy(_plain(v.array)) for v in (rebuilt.reconstruction, original))
    found = structure_errors(a, b, torch.from_numpy(_plain(marks.array[0])))
    return {name: asdict(errors) for name, errors in found.items()}


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array that torch takes."""
    array = np.ascontiguousarray(array)
    return array.astype(np.int64) if array.dtype in (np.uint16, np.uint32, np.uint64) else array
