"""``omnivae calibrate``: measure a model's latents and keep the figures with the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnivae.data.config import OnError
from omnivae.data.latents import PosteriorStore, hash_of_data
from omnivae.data.moments import ChannelMoments
from omnivae.files import write_atomic
from omnivae.jobs.evaluate import load
from omnivae.jobs.images import Part, encode_batches, images_to_encode, plan_batches
from omnivae.jobs.progress import progress_bar
from omnivae.jobs.run_data import data_for, is_same_data, run_data
from omnivae.models.storage import STATISTICS, find_model, model_hash
from omnivae.training.device import Precision


def calibrate_model(
    model: str | Path,
    *,
    path: str | None = None,
    store: str | Path | None = None,
    part: Part | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    on_error: OnError | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    precision: Precision = "32",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure mean, std and scale factor of a model's latents and save them as ``latent`` in its ``statistics.json``.

    Afterwards ``model.whiten`` and ``model.unwhiten`` use them. Configuration and weights, and so the model's hash, stay as
    they are.

    Args:
        model: a model directory or a run.
        path: the images; the run's own training images by default.
        store: measure the latents of this posterior store instead of encoding anything.
        part: which split; "train" of the run's own data and "all" of any other by default.
        image_size: side of the central square to resize to; as in training by default.
        limit: at most so many images.
        on_error: "stop" at a file that cannot be read, or "skip" it; as in training by default.
        batch_size: images at once.
        num_workers: processes that read images.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        What was saved: ``mean``, ``std``, ``std_of_means`` of each channel, ``scale_factor``, ``num_images``,
        ``num_values``, ``data_sha256`` and ``model_sha256``.

    Raises:
        ValueError: when the store is of another model, or both a store and images are given.
    """
    directory = find_model(model)
    own = model_hash(directory)
    if store is not None:
        if path is not None or limit is not None or image_size is not None or part is not None:
            raise ValueError("a posterior store is measured whole: give either --store or --data options")
        latents = PosteriorStore(store)
        if latents.model_hash != own:
            raise ValueError(
                f"{store} holds latents of the model {latents.model_name} ({latents.model_hash[:12]}), not of {directory} "
                f"({own[:12]}); encode the images with this model"
            )
        measured, data = latents.statistics(), latents.data_hash()
    else:
        base = run_data(directory)
        loaded = load(directory, precision)
        config = data_for(loaded, path, base)
        config = replace(
            config,
            limit=limit,
            image_size=config.image_size if image_size is None else image_size,
            on_error=on_error or config.on_error,
        )
        if part is None:
            part = "train" if base is not None and is_same_data(config.path, base) else "all"
        native = config.image_size is None and loaded.image_size is None
        images = images_to_encode(loaded, config, part=part, native=native)
        moments = ChannelMoments(loaded.latent_dim)
        pairs = []
        with progress_bar("encoding", len(images), progress) as advance:
            plan = plan_batches(images, list(range(len(images))), batch_size)
            for batch in encode_batches(loaded, images, plan, num_workers=num_workers):
                moments.update(batch.mean, batch.logvar)
                pairs += [(images.keys[i], content) for i, content in zip(batch.numbers, batch.content, strict=True)]
                advance(len(batch.numbers))
        measured, data = moments.summary(), hash_of_data(pairs)
    latent = measured | {"data_sha256": data, "model_sha256": own}
    file = directory / STATISTICS
    statistics = json.loads(file.read_text()) if file.is_file() else {}
    write_atomic(file, (json.dumps(statistics | {"latent": latent}, indent=2) + "\n").encode())
    return latent
