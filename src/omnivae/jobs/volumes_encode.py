"""``omnivae encode`` on volumes: posteriors of whole scans, with what it takes to give each scan back in its own geometry."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnivae.data.config import OnError
from omnivae.jobs.evaluate import load
from omnivae.jobs.file_list import FileItem, FileList, on_cpu, one_by_one
from omnivae.jobs.filling import (
    Encoded,
    EncodeResult,
    check_options,
    check_posterior,
    describe_store,
    fill_store,
    launch,
)
from omnivae.jobs.images import Part
from omnivae.jobs.store import Dtype, Entry
from omnivae.jobs.volumes import OnGaps
from omnivae.jobs.volumes_codec import Mode, VolumeCodec, check_precision
from omnivae.jobs.volumes_store import describe_volume, is_named_data, volumes_of_paths, volumes_of_run
from omnivae.models import VAE
from omnivae.models.storage import find_model
from omnivae.models.tiled.memory import parse_bytes
from omnivae.training.device import Precision
from omnivae.volume import Unit

log = logging.getLogger(__name__)


def encode_volumes(
    model: str | Path,
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    part: Part = "all",
    series: str | None = None,
    time: int | None = None,
    unit: Unit | None = None,
    on_gaps: OnGaps = "error",
    on_error: OnError = "stop",
    limit: int | None = None,
    memory: str | None = None,
    mode: Mode = "exact",
    intensity: Mapping[str, Any] | None = None,
    dtype: Dtype = "float32",
    precision: Precision = "32",
    shard_mib: float = 64.0,
    loaded: VAE | None = None,
    progress: bool = True,
) -> EncodeResult:
    """Encode volumes into a posterior store, or bring one up to date, in the model's orientation and intensities.

    Volumes may differ in size; each is encoded whole, in exact tiles where a budget is given. The store keeps the geometry, unit
    and type of each, and nothing that tells of a patient: neither identifiers nor paths. The same command goes on after a kill,
    and under ``torchrun`` each process encodes its share.

    Args:
        model: a model directory or a run.
        paths: volumes: DICOM folders and archives, NIfTI, NRRD, MHA, TIFF stacks, OME-Zarr, or folders of them; none for those of
            the run.
        output: the store.
        part: which split of the run's volumes, or of one path; named as in training then.
        series: number of one DICOM series, as ``omnivae inspect`` lists them.
        time: which of several time points.
        unit: of the values of formats that state none; for a model in Hounsfield units they are taken for these, and refused where
            they cannot be.
        on_gaps: what to do about missing slices of a DICOM series.
        on_error: "stop" at a volume that cannot be used, or "skip" it with a warning.
        limit: at most so many volumes.
        memory: budget of encoding, such as "4GB": it goes tile by tile, see :class:`omnivae.Tiled`.
        mode: of the tiles.
        intensity: the contract of a model that has none of its own.
        dtype: what means and log-variances are stored in.
        precision: of the networks; float32 by default.
        shard_mib: size of a shard in MiB; a shard holds at least one volume.
        loaded: the model of that directory, where it is loaded already, in that precision.
        progress: show progress on a terminal.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: when the store holds something else, or a volume cannot be encoded.
        MemoryError: when one does not fit; names a budget that does.
        OSError: when the store cannot be written; what was written stays whole.
    """
    check_options(dtype, shard_mib)
    check_precision(memory, mode, precision)
    launch()
    directory, target = find_model(model), Path(output)
    loaded = load(directory, precision) if loaded is None else loaded
    check_posterior(loaded)
    codec = VolumeCodec(loaded, intensity=intensity, memory=memory, mode=mode)
    if part != "all" and len(paths) > 1:
        raise ValueError(f"got --data.split {part} and {len(paths)} paths; a split is of one data set: give one path")
    read: dict[str, Any] = {"level": 0, "channels": []}
    if not paths or part != "all" or is_named_data(paths):
        given = {"series": series, "time": time, "unit": unit, "on_gaps": None if on_gaps == "error" else on_gaps}
        odd = [f"--{name}" for name, value in given.items() if value is not None]
        if odd:
            raise ValueError(
                f"got {' and '.join(odd)} with a split or the volumes of a run, which are read as in training: name the path of "
                "the volumes, without --data.split"
            )
        items, read = volumes_of_run(codec, directory, str(paths[0]) if paths else None, part)
    else:
        items = volumes_of_paths(codec, paths, target, series=series, time=time, unit=unit, on_gaps=on_gaps)
    volumes = FileList(items, "volumes", limit)
    info = describe_store(
        loaded,
        directory,
        transform=_transform(codec, unit=unit, time=time) | read,
        dtype=dtype,
        # No path of the data: folders of scans are named after patients.
        recipe={"data": None, "model": str(model), "split": part, "limit": limit, "series": series},
    )

    def encode(item: FileItem, content: str, tell: Callable[[float], None]) -> Encoded:
        return _encode(codec, item, content, tell)

    source = ", ".join(map(str, paths)) or "the run"
    return fill_store(
        target,
        info,
        volumes,
        one_by_one(volumes, encode, on_error),
        source=source,
        shard_mib=shard_mib,
        steps=100,
        progress=progress,
    )


def _encode(codec: VolumeCodec, item: FileItem, content: str, tell: Callable[[float], None]) -> Encoded:
    try:
        volume = item.read()
        for problem in volume.problems:
            log.warning("%s: %s", item.name, problem)
        volume = codec.choose(volume)
        seen = codec.see(volume)
        file = {"volume": describe_volume(volume, seen)}
        del volume  # from here on what the model sees is enough
        posterior = codec.encode(seen, progress=tell)
    except (ValueError, EOFError) as error:
        if item.source and item.source in str(error):
            raise
        raise ValueError(f"{item.name}: {error}") from error
    mean, logvar = on_cpu(codec.model, posterior)
    return [(Entry(item.name, content, None, seen.applied.volume.size, file), mean, logvar)]


def _transform(codec: VolumeCodec, *, unit: Unit | None, time: int | None) -> dict[str, Any]:
    """Return everything that happens between a file and the model."""
    tiles = "exact"  # equal to the whole, to rounding
    if codec.memory is not None and codec.mode == "blended":
        tiles = f"blended in {parse_bytes(codec.memory)} bytes"
    facts = {"kind": "volumes", "intensity": codec.contract, "unit": unit or codec.unit, "time": time, "tiles": tiles}
    return json.loads(json.dumps(facts))
