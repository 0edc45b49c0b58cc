"""``omnivae decode``: a posterior store to pictures, under the names and in the sizes of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import torch

from omnivae.data import save_image
from omnivae.data.latents import PosteriorStore, draw
from omnivae.jobs.evaluate import load
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
            x = loaded.decode(torch.stack(drawn).to(device), size=store.input_size(i)).clamp(low, high).cpu()
            for row, number in enumerate(batch):
                save_image(x[row], targets[number], value_range=(low, high))
            advance(len(batch))
    return targets


# -- inside


def _choose(stores: list[PosteriorStore], keys: Sequence[str] | None) -> list[Item]:
    if keys is None:
        return [(store, i) for store in stores for i in range(len(store))]
    missing = [key for key in keys if not any(key in store for store in stores)]
    if missing:
        raise ValueError(f"no latent of {missing[0]!r} in {', '.join(str(store.path) for store in stores)}")
    return [(store, store.number(key)) for key in keys for store in stores if key in store]


def _targets(chosen: list[Item], output: Path) -> list[Path]:
    """Return the file for each latent; refuse names that lead out of the folder, meet, or replace the originals."""
    from PIL import Image

    writable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    targets: dict[Path, str] = {}
    originals = {Path(store.info["recipe"]["data"]).resolve() for store, _ in chosen}
    if output.resolve() in originals:
        raise ValueError(f"{output} is the folder of the images that were encoded; give --output another one")
    for store, i in chosen:
        key = PurePosixPath(store.keys[i])
        if key.is_absolute() or ".." in key.parts or "\\" in store.keys[i] or ":" in store.keys[i] or not key.name:
            raise ValueError(f"{store.path} names an image {store.keys[i]!r}, which would lie outside of {output}")
        target = output / key if key.suffix.lower() in writable else output / key.parent / f"{key.name}.png"
        if target in targets:
            raise ValueError(f"two latents would both be written to {target}; decode one store at a time")
        targets[target] = store.keys[i]
    return list(targets)


def _alike(chosen: list[Item], batch_size: int) -> Iterator[list[int]]:
    """Yield numbers of latents of one shape and image size."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, (store, i) in enumerate(chosen):
        groups.setdefault((store.latent_shape(i), store.input_size(i)), []).append(number)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
