"""``omnivae decode`` on volumes: a posterior store to scans, each on its own grid, in its own unit and type."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnivae.data.latent_dataset import draw
from omnivae.data.latents import PosteriorStore, identity
from omnivae.data.volumes.windows import contract_return
from omnivae.jobs.progress import progress_bar
from omnivae.jobs.store import safe_name
from omnivae.jobs.volumes_codec import Mode, VolumeCodec
from omnivae.jobs.volumes_store import volume_like
from omnivae.jobs.volumes_work import ENDS, Format, Record, format_for, percent, write_result
from omnivae.models import VAE

RECORD = "decode.json"
Item = tuple[PosteriorStore, int]


def decode_volumes(
    chosen: Sequence[Item],
    loaded: VAE,
    output: Path,
    *,
    format: Format = "auto",
    memory: str | None = None,
    mode: Mode = "exact",
    sample: bool = False,
    seed: int = 0,
    precision: str = "32",
    progress: bool = True,
) -> list[Path]:
    """Decode posteriors of volumes into files: in float32 stores what ``omnivae reconstruct`` writes, bit for bit.

    Results of earlier runs of the same command are kept; those whose latents have changed since are made anew.

    Args:
        chosen: stores, and numbers of entries.
        loaded: the model that encoded them.
        output: directory of the results.
        format: of the results; "auto" is NIfTI of patients and OME-Zarr of everything else.
        memory: budget of decoding, such as "4GB".
        mode: of the tiles.
        sample: decode a draw from each posterior instead of its mode.
        seed: of the draws.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The files written, in the order of the entries.

    Raises:
        ValueError: for names that lead out of the directory, or meet.
        FileExistsError: when a result would overwrite a file of somebody else.
        MemoryError: when a volume does not fit; names a budget that does.
    """
    if str(format) not in ("auto", "nifti", "ome-zarr"):
        raise ValueError(
            f"got --format {format}; a store keeps no headers of DICOM, so its volumes become NIfTI or OME-Zarr: give --format "
            "nifti (omnivae reconstruct writes DICOM from the scans themselves)"
        )
    names = [safe_name(store, i, output) for store, i in chosen]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two latents would both be written to {output / twice[0]}; decode one store at a time")
    settings = {
        "format": format,
        "sample": sample,
        "seed": seed if sample else None,
        "precision": precision,
        "mode": mode if memory is not None else "whole",
    }
    record = Record(output / RECORD, settings, "decoded", renew=True)
    written = []
    with progress_bar("decoding", 100 * len(chosen), progress, "%") as advance:
        for (store, i), name in zip(chosen, names, strict=True):
            tell, mark = percent(advance), _mark(store, i)
            known = record.done(name, mark)
            if known is None:
                known = _decode(store, i, loaded, record, name, mark, settings, memory=memory, mode=mode, tell=tell)
            written.append(output / known["output"])
            tell(1.0)
    return written


# -- inside


def _decode(
    store: PosteriorStore,
    i: int,
    loaded: VAE,
    record: Record,
    name: str,
    mark: str,
    settings: dict[str, Any],
    *,
    memory: str | None,
    mode: Mode,
    tell: Callable[[float], None],
) -> dict[str, Any]:
    file, contract = store.file(i), store.info["transform"]["intensity"]
    assert file is not None, "every volume of a store is described"
    codec = VolumeCodec(loaded, intensity=contract, memory=memory, mode=mode, instead=True)
    like = volume_like(file["volume"])
    kind = format_for(like, settings["format"])
    result: dict[str, Any] = {"output": name + ENDS[kind]}
    mean, logvar = store.posterior(i)
    z = draw(mean, logvar, key=store.keys[i], seed=settings["seed"]) if settings["sample"] else mean
    applied = contract_return(codec.contract, like, file["volume"]["window"])
    low, high = file["volume"]["limits"]
    volume, notes = codec.decode(z, applied, (low, high), like=like, progress=tell)
    result |= {"shape": list(volume.array.shape), "dtype": volume.array.dtype.name, "notes": list(notes)}
    record.begin(name, mark, result)
    write_result(volume, record.file.parent / result["output"], kind)
    record.finish(name, mark, result)
    return result


def _mark(store: PosteriorStore, i: int) -> str:
    text = json.dumps([store.content_hash(i), identity(store.info)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
