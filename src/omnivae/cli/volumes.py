"""Volumes on the command line: the options of ``omnivae reconstruct`` for them, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonargparse

if TYPE_CHECKING:
    from omnivae.models import VAE

#: Options of ``reconstruct`` that are for volumes; volumes in a table, at most.
_OF_VOLUMES = (
    "format", "series", "time", "unit", "on_gaps", "keep_identifiers", "memory", "mode", "window", "percentiles", "labels",
    "report", "measure",
)  # fmt: skip
_MOST_VOLUMES = 4


def add_volume_options(parser: jsonargparse.ArgumentParser) -> None:
    """Add the options of ``omnivae reconstruct`` that are for volumes.

    Args:
        parser: of the command.
    """
    add_format(parser, dicom=True)
    add_reading(parser)
    parser.add_argument(
        "--keep_identifiers",
        action="store_true",
        help="of volumes, with --format dicom: keep patient, study and frame of reference",
    )
    add_tiles(parser, "encode and decode")
    add_contract(parser)
    parser.add_argument(
        "--labels", type=str | None, default=None, help="of one volume: its label map, for errors in each structure"
    )
    parser.add_argument(
        "--report", type=str | None, default=None, help="of volumes: file for a page of pictures and errors"
    )
    parser.add_argument(
        "--measure",
        type=bool,
        default=True,
        help="of volumes: whether errors are measured (PSNR, SSIM, MAE in HU windows)",
    )


def add_format(parser: jsonargparse.ArgumentParser, *, dicom: bool) -> None:
    """Add the option for the format of results.

    Args:
        parser: of the command.
        dicom: whether the command can write DICOM.
    """
    parser.add_argument(
        "--format",
        type=Literal["auto", "nifti", "dicom", "ome-zarr"],
        default="auto",
        help="of resulting volumes; auto: NIfTI of patients, OME-Zarr of microscopy; dicom: "
        + (
            "a new, derived series without what tells of the patient" if dicom else "refused, its headers are not there"
        ),
    )


def add_reading(parser: jsonargparse.ArgumentParser) -> None:
    """Add the options for reading volumes.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--series", type=str | None, default=None, help="of volumes: number of one DICOM series, see inspect"
    )
    parser.add_argument(
        "--time", type=int | None, default=None, help="of volumes: which of several time points, from 0"
    )
    parser.add_argument(
        "--unit",
        type=Literal["HU", "arbitrary"] | None,
        default=None,
        help="of volumes: of the values of NIfTI, NRRD, MHA and TIFF, which state none; what the model takes by default",
    )
    parser.add_argument(
        "--on_gaps",
        type=Literal["error", "resample"],
        default="error",
        help="of volumes: refuse a DICOM series with missing slices, or interpolate them",
    )


def add_tiles(parser: jsonargparse.ArgumentParser, what: str) -> None:
    """Add the options for volumes larger than memory.

    Args:
        parser: of the command.
        what: it does, tile by tile.
    """
    parser.add_argument(
        "--memory",
        type=str | None,
        default=None,
        help=f"of volumes and videos: budget such as 4GB; {what} tile by tile",
    )
    parser.add_argument("--mode", type=Literal["exact", "blended"], default="exact", help="of the tiles, with --memory")


def add_contract(parser: jsonargparse.ArgumentParser) -> None:
    """Add the options for models that do not say which intensities they take.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=None,
        help="of volumes, for a model without intensities of its own: lowest and highest HU that it was trained on",
    )
    parser.add_argument(
        "--percentiles",
        type=float,
        nargs=2,
        default=None,
        help="of volumes, instead of --window for values without a unit",
    )


def run_on_volumes(given: jsonargparse.Namespace, loaded: VAE) -> int:
    """Run ``omnivae reconstruct`` with a model of volumes.

    Args:
        given: the options.
        loaded: the model.

    Returns:
        Exit code.
    """
    from rich.console import Console
    from rich.table import Table

    from omnivae.jobs.volumes_reconstruct import reconstruct_volumes

    for name in ("cond", "to"):
        if given[name] is not None:
            raise ValueError(f"got --{name}, which is for images, and the model takes volumes: leave it out")
    results = reconstruct_volumes(
        given.model,
        given.files,
        given.output,
        format=given.format,
        series=given.series,
        time=given.time,
        unit=given.unit,
        on_gaps=given.on_gaps,
        on_error=given.on_error,
        keep_identifiers=given.keep_identifiers,
        memory=given.memory,
        mode=given.mode,
        intensity=intensity_of(given),
        labels=given.labels,
        report=given.report,
        measure=given.measure,
        precision=given.precision,
        loaded=loaded,
    )
    console = Console(highlight=False)
    names = [name for name in results[0].metrics if not name.startswith("share_")]
    if names:
        table = Table("error", *(result.name for result in results[:_MOST_VOLUMES]))
        for name in names:
            cells = (r.metrics.get(name) for r in results[:_MOST_VOLUMES])
            table.add_row(name, *("-" if cell is None else f"{cell:.4g}" for cell in cells))
        console.print(table)
    for result in results:
        for note in (result.clipped, *result.notes):
            console.print(f"{result.name}: {note}", markup=False, soft_wrap=True)
        for name, errors in result.structures.items():
            text = f"{errors['voxels']:,} voxels, MAE {errors['mae']:.2f}, mean error {errors['bias']:+.2f}"
            console.print(f"{result.name}: {name}: {text}", markup=False, soft_wrap=True)
    for result in results:
        console.print(f"{given.output}/{result.output}", markup=False, soft_wrap=True)
    if given.report is not None:
        console.print(given.report, markup=False, soft_wrap=True)
    return 0


def intensity_of(given: jsonargparse.Namespace) -> dict[str, object] | None:
    """Return the contract that the options state.

    Args:
        given: the options.

    Raises:
        ValueError: for a window and percentiles.
    """
    if given.window is not None and given.percentiles is not None:
        raise ValueError("got --window and --percentiles; give one of them")
    if given.window is not None:
        unit = given.unit or "HU"
        return {"unit": unit, "window": list(given.window)} | ({"orientation": "RAS"} if unit == "HU" else {})
    if given.percentiles is not None:
        return {"unit": "arbitrary", "percentiles": list(given.percentiles)}
    return None


def refuse_volumes(given: jsonargparse.Namespace, parser: jsonargparse.ArgumentParser, takes: str = "images") -> None:
    """Refuse volumes, and options of volumes, for a model of images or clips.

    Args:
        given: the options.
        parser: of the command.
        takes: what the model takes.

    Raises:
        ValueError: for either.
    """
    from omnivae.data.volumes.recognising import is_volumes

    plain = parser.get_defaults()
    for name in _OF_VOLUMES:
        if name in plain and given[name] != plain[name]:
            raise ValueError(f"got --{name}, which is for volumes, and the model takes {takes}: leave it out")
    for file in map(Path, given.files):
        if file.is_file() and is_volumes(file):
            raise ValueError(
                f"{file} is a volume and the model takes {takes}: use a model of volumes, such as one trained with MaisiVAE"
            )
