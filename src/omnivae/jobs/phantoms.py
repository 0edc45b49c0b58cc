"""Write a folder of phantoms: volumes with their truth beside them, without any download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from omnivae.component import suggestion
from omnivae.data.volumes import Phantom, ct_phantom, lesion_pair, mr_phantom, plate_phantom, write_volume
from omnivae.files import write_atomic
from omnivae.jobs.progress import progress_bar

Kind = Literal["ct", "mr", "pair", "plate"]
Suffix = Literal["nii.gz", "nii", "nrrd", "mha", "ome.zarr"]
Triple = tuple[int, int, int]


def write_phantoms(
    output: str | Path,
    *,
    kind: Kind = "ct",
    count: int = 8,
    seed: int = 0,
    size: Triple | None = None,
    spacing: tuple[float, float, float] | None = None,
    lesions: int = 2,
    conditions: Sequence[int] = (),
    format: Suffix = "nii.gz",
    progress: bool = False,
) -> list[Path]:
    """Write phantoms and their truth into a folder.

    ``ct`` and ``mr`` write ``volumes/``, ``labels/`` (structures) and ``lesions/`` of ``count`` patients; ``pair`` writes each CT
    twice, ``without/`` and ``with/`` lesions, and lists them in ``pairs.csv`` (:func:`omnivae.data.volumes.read_pairs`); ``plate``
    writes ``plate.ome.zarr`` of ``count`` fields of cells, two in a well, ``labels.ome.zarr`` with the number of each nucleus and
    ``plate_map.csv`` with the condition of each well.

    Args:
        output: folder.
        kind: what to draw.
        count: how many patients, or fields of view.
        seed: of the first; the others follow, so that more of them begin with the same.
        size: voxels along each axis (right, front, top; planes, rows, columns of a plate); None: the phantom's own.
        spacing: mm (micrometres) along the same axes; None: as large a body as the phantom's own in this number of voxels.
        lesions: of each patient; of a plate the number of odd nuclei in a field.
        conditions: of a plate: odd nuclei of a field (of 14) under each condition; wells take the conditions in turn.
        format: suffix of the files of patients.
        progress: whether to show a bar on a terminal.

    Returns:
        The folder (or store) of the volumes, then that of each truth; of a plate the map comes last, of pairs their listing.

    Raises:
        ValueError: for unknown kinds and formats, and counts below 1.
        CannotWrite: when the disk is full and the like.
    """
    output = Path(output)
    if kind not in get_args(Kind):
        raise ValueError(
            f"got the kind {kind!r}{suggestion(kind, get_args(Kind))}; expected one of {', '.join(get_args(Kind))}"
        )
    if format not in get_args(Suffix):
        raise ValueError(f"got the format {format!r}; expected one of {', '.join(get_args(Suffix))}")
    if count < 1:
        raise ValueError(f"got a count of {count}; expected at least 1")
    if kind == "plate":
        return _plates(output, count=count, seed=seed, size=size, spacing=spacing, odd=tuple(conditions) or (lesions,))
    if conditions:
        raise ValueError(f"got conditions and the kind {kind!r}; expected a plate, whose wells differ by them")
    size, spacing = _grid(kind, size, spacing)
    draw: Callable[[int], dict[str, Phantom]]
    if kind == "pair":

        def draw(number: int) -> dict[str, Phantom]:
            pair = lesion_pair(number, size=size, spacing=spacing, lesions=lesions)
            return {"without": pair.without, "with": pair.with_lesions}

    else:
        one = ct_phantom if kind == "ct" else mr_phantom

        def draw(number: int) -> dict[str, Phantom]:
            return {"volumes": one(number, size=size, spacing=spacing, lesions=lesions)}

    folders: dict[str, Path] = {}
    with progress_bar("drawing", count, progress, items="volumes") as advance:
        for number in range(seed, seed + count):
            drawn = draw(number)
            name = f"{kind}_{number:03d}.{format}"
            last = list(drawn.values())[-1]
            parts = {folder: phantom.volume for folder, phantom in drawn.items()}
            for folder, volume in {**parts, "labels": last.labels, "lesions": last.lesions}.items():
                folders[folder] = output / folder
                write_volume(volume, output / folder / name)
            advance(1)
    if kind != "pair":
        return list(folders.values())
    names = [f"{kind}_{number:03d}" for number in range(seed, seed + count)]
    rows = [f"without/{name}.{format},with/{name}.{format},{name}" for name in names]
    write_atomic(output / "pairs.csv", "\n".join(["baseline,followup,name", *rows, ""]).encode())
    return [*folders.values(), output / "pairs.csv"]


def _grid(
    kind: Kind, size: Triple | None, spacing: tuple[float, float, float] | None
) -> tuple[Triple, tuple[float, float, float]]:
    size = size or (96, 96, 96)
    whole = 230.4 if kind == "mr" else 384.0  # mm that the phantoms' own grids cover
    if spacing is None:
        i, j, k = (whole / n for n in size)
        spacing = (i, j, k)
    return size, spacing


def _plates(
    output: Path,
    *,
    count: int,
    seed: int,
    size: Triple | None,
    spacing: tuple[float, float, float] | None,
    odd: tuple[int, ...],
) -> list[Path]:
    fields = min(2, count)
    if count % fields:
        raise ValueError(f"got {count} fields of view; expected an even number: two for each well")
    per_row = int(np.ceil(np.sqrt(count // fields)))
    wells = tuple(f"{chr(ord('A') + n // per_row % 26)}/{n % per_row + 1}" for n in range(count // fields))
    if len(set(wells)) != len(wells):
        raise ValueError(f"got {count} fields of view; expected at most {26 * 26 * fields}")
    if len(wells) < len(odd):
        raise ValueError(
            f"got {len(odd)} conditions for {len(wells)} wells; expected {fields * len(odd)} fields or more"
        )
    condensed = {well: odd[n % len(odd)] for n, well in enumerate(wells)}
    paths = []
    for name, labels in (("plate", False), ("labels", True)):
        paths.append(
            plate_phantom(
                output / f"{name}.ome.zarr",
                wells=wells,
                fields=fields,
                seed=seed,
                size=size or (15, 128, 128),
                spacing=spacing or (0.5, 0.35, 0.35),
                odd=condensed,
                labels=labels,
            )
        )
    lines = [f"{well},{f'odd {number}' if number else 'control'},{number}\n" for well, number in condensed.items()]
    write_atomic(output / "plate_map.csv", "".join(("well,condition,odd_nuclei\n", *lines)).encode())
    return [*paths, output / "plate_map.csv"]
