"""``omnivae decode``: a posterior store to pictures, under the names and in the sizes of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from omnivae.data import Header, ReadOptions, save_image, save_like
from omnivae.data.encoding import unwritable
from omnivae.data.latents import PosteriorStore, draw
from omnivae.jobs.evaluate import load
from omnivae.jobs.images import file_like
from omnivae.jobs.progress import progress_bar
from omnivae.models.storage import find_model, model_hash
from omnivae.training.device import Precision

Item = tuple[PosteriorStore, int]


def decode_latents(
    latents: Sequence[str | Path],
    model: str | Path,
    output: str | Path,
    *,
    keys: Sequence[str] | None = None,
    sample: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    precision: Precision = "32",
    progress: bool = True,
) -> list[Path]:
    """Decode posteriors into pictures under the names and in the sizes of the images that were encoded.

    Format, bit depth and colour mode are those of the encoded files, as far as such files can hold a picture; an alpha channel
    that the model does not see is opaque. Images that were in no file of their own become PNG.

    Args:
        latents: posterior stores, or shards of them.
        model: the model directory or run that encoded them.
        output: folder for the pictures.
        keys: decode only these images.
        sample: decode a draw from each posterior instead of its mode.
        seed: of the draws.
        batch_size: latents at once.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The files written.

    Raises:
        ValueError: when the latents are of another model, or for a key that no store has.
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}; expected 1 or more")
    directory = find_model(model)
    own = model_hash(directory)
    stores = [PosteriorStore(path) for path in latents]
    for store in stores:
        if store.model_hash != own:
            raise ValueError(
                f"{store.path} holds latents of the model {store.model_name} ({store.model_hash[:12]}), not of {directory} "
                f"({own[:12]}); decode them with the model that encoded them"
            )
    chosen = _choose(stores, keys)
    targets = _targets(chosen, Path(output))
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


# -- inside


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
        name = store.keys[i]
        key = PurePosixPath(name)
        if key.is_absolute() or ".." in key.parts or "\\" in name or ":" in name or not key.name:
            raise ValueError(f"{store.path} names an image {name!r}, which would lie outside of {output}")
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
