"""``omnivae decode`` on volumes: a posterior store to scans, each on its own grid, in its own unit and type."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from omnivae.data.latent_dataset import draw
from omnivae.data.latents import PosteriorStore, identity
from omnivae.data.volumes.windows import contract_return
from omnivae.jobs.progress import percent, progress_bar
from omnivae.jobs.store import safe_name
from omnivae.jobs.volumes_codec import Mode, VolumeCodec
from omnivae.jobs.volumes_store import volume_like
from omnivae.jobs.volumes_work import ENDS, Format, Record, format_for, write_result
from omnivae.models import VAE

log = logging.getLogger(__name__)

RECORD = "decode.json"
Item = tuple[PosteriorStore, int]
#: Writes a result to a path.
Write = Callable[[Path], Any]


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
    """Decode posteriors of volumes into files: of float32 stores, in the same budget, what ``omnivae reconstruct`` writes.

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
    if not chosen:
        return []
    settings = {"format": format, "mode": mode if memory is not None else "whole"}

    def decode(store: PosteriorStore, i: int, z: Tensor, tell: Callable[[float], None]) -> tuple[str, Write]:
        file, contract = store.file(i), store.info["transform"]["intensity"]
        assert file is not None, "every volume of a store is described"
        codec = VolumeCodec(loaded, intensity=contract, memory=memory, mode=mode, instead=True)
        like = volume_like(file["volume"])
        kind = format_for(like, format)
        applied = contract_return(codec.contract, like, file["volume"]["window"])
        low, high = file["volume"]["limits"]
        volume, notes = codec.decode(z, applied, (low, high), like=like, progress=tell)
        for note in notes:
            log.warning("%s: %s", store.keys[i], note)
        return store.keys[i] + ENDS[kind], lambda path: write_result(volume, path, kind)

    return decode_each(
        chosen, output, decode, settings, sample=sample, seed=seed, precision=precision, progress=progress
    )


def decode_each(
    chosen: Sequence[Item],
    output: Path,
    decode: Callable[[PosteriorStore, int, Tensor, Callable[[float], None]], tuple[str, Write]],
    settings: dict[str, Any],
    *,
    sample: bool,
    seed: int,
    precision: str,
    progress: bool,
) -> list[Path]:
    """Decode latents one after another into files, as a command that goes on where it was stopped.

    Args:
        chosen: stores, and numbers of entries.
        output: directory of the results.
        decode: decodes a latent ``[C, *S]`` of an entry; returns the name of its file, and what writes that.
        settings: that the results depend on; those of an earlier run must be the same.
        sample: decode a draw from each posterior instead of its mode.
        seed: of the draws.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The files, in the order of the entries.

    Raises:
        ValueError: for names that lead out of the directory, or meet.
        FileExistsError: when a result would overwrite a file of somebody else.
    """
    names = [safe_name(store, i, output) for store, i in chosen]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two latents would both be written to {output / twice[0]}; decode one store at a time")
    settings = settings | {"sample": sample, "seed": seed if sample else None, "precision": precision}
    record = Record(output / RECORD, settings, "decoded", renew=True)
    written = []
    with progress_bar("decoding", 100 * len(chosen), progress, "%") as advance:
        for (store, i), name in zip(chosen, names, strict=True):
            tell, mark = percent(advance), _mark(store, i)
            known = record.done(name, mark)
            if known is None:
                mean, logvar = store.posterior(i)
                z = draw(mean, logvar, key=name, seed=seed) if sample else mean
                place, write = decode(store, i, z, tell)
                known = {"output": place}
                record.begin(name, mark, known)
                write(output / place)
                record.finish(name, mark, known)
            written.append(output / known["output"])
            tell(1.0)
    return written


# -- inside


def _mark(store: PosteriorStore, i: int) -> str:
    text = json.dumps([store.content_hash(i), identity(store.info)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
