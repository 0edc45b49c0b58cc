"""``omnivae decode``: a posterior store to files, under the names and in the sizes of what was encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnivae.data import Header, ReadOptions, save_image, save_like
from omnivae.data.encoding import unwritable
from omnivae.data.latent_dataset import draw
from omnivae.data.latents import PosteriorStore
from omnivae.jobs.evaluate import load
from omnivae.jobs.images import file_like
from omnivae.jobs.progress import progress_bar
from omnivae.jobs.store import safe_name
from omnivae.models.storage import find_model, model_hash
from omnivae.training.device import Precision

if TYPE_CHECKING:
    from omnivae.jobs.volumes_codec import Mode
    from omnivae.jobs.volumes_work import Format

Item = tuple[PosteriorStore, int]


def decode_latents(
    latents: Sequence[str | Path],
    model: str | Path | None,
    output: str | Path,
    *,
    keys: Sequence[str] | None = None,
    sample: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    format: Format = "auto",
    memory: str | None = None,
    mode: Mode = "exact",
    precision: Precision = "32",
    progress: bool = True,
) -> list[Path]:
    """Decode posteriors into files under the names and in the sizes of what was encoded.

    Pictures: format, bit depth and colour mode are those of the encoded files, as far as such files can hold a picture; an alpha
    channel that the model does not see is opaque. Images that were in no file of their own become PNG. Volumes: see
    :func:`omnivae.jobs.volumes_decode.decode_volumes`; videos: :func:`omnivae.jobs.videos_store.decode_videos`.

    Args:
        latents: posterior stores, or shards of them.
        model: the model directory or run that encoded them; ``None`` for the place that the store remembers.
        output: folder for the results.
        keys: decode only these.
        sample: decode a draw from each posterior instead of its mode.
        seed: of the draws.
        batch_size: latents at once, of pictures.
        format: of volumes: "nifti" or "ome-zarr"; "auto" is NIfTI of patients and OME-Zarr of everything else.
        memory: budget for volumes and videos, such as "4GB": they are decoded tile by tile.
        mode: of the tiles.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The files written.

    Raises:
        ValueError: when the latents are of another model, for a key that no store has, and for options that do not fit.
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}; expected 1 or more")
    stores = [PosteriorStore(path) for path in latents]
    directory = _model_of(stores) if model is None else find_model(model)
    own = model_hash(directory)
    for store in stores:
        if store.model_hash != own:
            raise ValueError(
                f"{store.path} holds latents of the model {store.model_name} ({store.model_hash[:12]}), not of {directory} "
                f"({own[:12]}); decode them with the model that encoded them"
                + ("" if model is not None else ": say where it is with --model")
            )
    chosen = _choose(stores, keys)
    kinds = {store.kind for store, _ in chosen}
    if len(kinds) > 1:
        raise ValueError(f"got stores of {' and of '.join(sorted(kinds))}; decode one store at a time")
    if format != "auto" and kinds != {"volumes"}:
        raise ValueError(
            f"got --format {format}, which is for volumes, and these latents are of {kinds.pop()}: leave it out"
        )
    if kinds & {"volumes", "videos"}:
        from omnivae.jobs.videos_store import decode_videos
        from omnivae.jobs.volumes_codec import check_precision
        from omnivae.jobs.volumes_decode import decode_volumes

        check_precision(memory, mode, precision)
        loaded = load(directory, precision)
        run = decode_videos if kinds == {"videos"} else partial(decode_volumes, format=format)
        return run(
            chosen,
            loaded,
            Path(output),
            memory=memory,
            mode=mode,
            sample=sample,
            seed=seed,
            precision=precision,
            progress=progress,
        )
    if memory is not None or mode != "exact":
        raise ValueError("got --memory or --mode, which are for volumes and videos, and these latents are of images")
    return _decode_images(
        chosen,
        directory,
        Path(output),
        sample=sample,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        progress=progress,
    )


# -- inside


def _decode_images(
    chosen: list[Item],
    directory: Path,
    output: Path,
    *,
    sample: bool,
    seed: int,
    batch_size: int,
    precision: Precision,
    progress: bool,
) -> list[Path]:
    targets = _targets(chosen, output)
    loaded = load(directory, precision)
    device = next(loaded.parameters()).device
    low, high = loaded.value_range
    with torch.inference_mode(), progress_bar("decoding", len(chosen), progress) as advance:
        for batch in _alike(chosen, batch_size):
            drawn = []
            for store, i in (chosen[number] for number in batch):
                mean, logvar = store.posterior(i)
                drawn.append(draw(mean, logvar, key=store.keys[i], seed=seed) if sample else mean)
            store, i = chosen[batch[0]]
            conds = [store.cond(i) for store, i in (chosen[number] for number in batch)]
            cond = None if conds[0] is None else torch.tensor(conds, device=device)
            x = loaded.decode(torch.stack(drawn).to(device), cond, size=store.input_size(i)).clamp(low, high).cpu()
            for row, number in enumerate(batch):
                _save(x[row], targets[number], *chosen[number], (low, high))
            advance(len(batch))
    return targets


def _model_of(stores: list[PosteriorStore]) -> Path:
    """Return the model directory that stores were encoded with, where it still is."""
    places = {store.info.get("recipe", {}).get("model") for store in stores}
    place = places.pop() if len(places) == 1 else None
    try:
        if place is not None:
            return find_model(place)
    except FileNotFoundError:
        pass
    said = "does not say where its model is" if place is None else f"was encoded with {place}, which is not there"
    raise ValueError(f"{stores[0].path} {said}: say --model DIR")


def _choose(stores: list[PosteriorStore], keys: Sequence[str] | None) -> list[Item]:
    if keys is None:
        if not any(len(store) for store in stores):
            raise ValueError(
                f"{', '.join(str(store.path) for store in stores)} holds no latents; the command that wrote it (omnivae encode) "
                "was refused or stopped before the first image: repeat it"
            )
        return [(store, i) for store in stores for i in range(len(store))]
    missing = [key for key in keys if not any(key in store for store in stores)]
    if missing:
        raise ValueError(f"no latent of {missing[0]!r} in {', '.join(str(store.path) for store in stores)}")
    return [(store, store.number(key)) for key in keys for store in stores if key in store]


def _targets(chosen: list[Item], output: Path) -> list[Path]:
    """Return the file for each latent; refuse names that lead out of the folder, meet, or replace the originals."""
    originals = {Path(store.info["recipe"]["data"]).resolve() for store, _ in chosen}
    if output.resolve() in originals:
        raise ValueError(f"{output} is the folder of the images that were encoded; give --output another one")
    targets: dict[Path, None] = {}
    for store, i in chosen:
        name = safe_name(store, i, output)
        key = PurePosixPath(name)
        like = _like(store, i)
        reason = None if like is None else unwritable(like)
        if reason is not None:
            raise ValueError(f"{name} cannot be written: {reason}")
        target = output / key.parent / f"{key.name}.png" if like is None else output / key
        if target in targets:
            raise ValueError(f"two latents would both be written to {target}; decode one store at a time")
        targets[target] = None
    return list(targets)


def _like(store: PosteriorStore, i: int) -> Header | None:
    file = store.file(i)
    return None if file is None else file_like(file, store.input_size(i))


def _save(x: Tensor, target: Path, store: PosteriorStore, i: int, value_range: tuple[float, float]) -> None:
    like = _like(store, i)
    if like is None:
        save_image(x, target, value_range=value_range)
    else:
        save_like(x, target, like, value_range=value_range, options=_reading(store))


def _reading(store: PosteriorStore) -> ReadOptions:
    transform = store.info["transform"]
    values = {field.name: transform[field.name] for field in fields(ReadOptions)}
    if values["input_range"] is not None:
        values["input_range"] = tuple(values["input_range"])
    return ReadOptions(**values)


def _alike(chosen: list[Item], batch_size: int) -> Iterator[list[int]]:
    """Yield numbers of latents of one shape and image size."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, (store, i) in enumerate(chosen):
        groups.setdefault((store.latent_shape(i), store.input_size(i)), []).append(number)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
