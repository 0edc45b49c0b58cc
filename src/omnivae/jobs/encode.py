"""``omnivae encode``: images to a posterior store that can be killed, continued and brought up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from omnivae.data.config import OnError
from omnivae.jobs.evaluate import load
from omnivae.jobs.filling import (
    Encoded,
    EncodeResult,
    check_options,
    check_posterior,
    describe_store,
    fill_store,
    launch,
)
from omnivae.jobs.images import Part, encode_batches, images_to_encode, plan_batches
from omnivae.jobs.run_data import data_for, run_data
from omnivae.jobs.store import Dtype, Entry
from omnivae.jobs.text import is_text_model
from omnivae.models import VAE
from omnivae.models.storage import find_model
from omnivae.training.device import Precision


def encode_images(
    model: str | Path,
    output: str | Path,
    *,
    path: str | None = None,
    part: Part = "all",
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    on_error: OnError | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    dtype: Dtype = "float32",
    precision: Precision = "32",
    shard_mib: float = 64.0,
    loaded: VAE | None = None,
    progress: bool = True,
) -> EncodeResult:
    """Encode images into a posterior store, or bring one up to date: new and changed images are encoded, gone ones dropped.

    The same command goes on after a kill. Under ``torchrun`` each process encodes its share (by the hash of the image's
    name) into shards of its own. In float32 on a CPU, another batch size changes a latent by rounding only.

    Args:
        model: a model directory or a run.
        output: the store.
        path: the images; the run's own by default.
        part: which split of them.
        image_size: side of the central square to resize to. By default images keep their size where the model takes any,
            and are prepared as in its training where it does not.
        channels: 1 or 3 to convert images to.
        limit: at most so many images.
        on_error: "stop" at a file that cannot be read, or "skip" it; as in training by default.
        batch_size: images at once.
        num_workers: processes that read images.
        dtype: what means and log-variances are stored in.
        precision: of the networks; float32 by default, as latents outlive the machine that made them.
        shard_mib: size of a shard in MiB.
        loaded: the model of that directory, where it is loaded already, in that precision.
        progress: show progress on a terminal.

    Returns:
        What was done.

    Raises:
        ValueError: when the store holds latents of another model or transform, or an image cannot be encoded.
        OSError: when the store cannot be written; what was written stays whole.
    """
    check_options(dtype, shard_mib)
    launch()
    directory = find_model(model)
    if is_text_model(directory):
        raise ValueError(
            f"{model} holds a model of sentences, and a posterior store is of images: encode sentences in Python with "
            "model.encode(model.to_tokens(sentences))"
        )
    loaded = load(directory, precision) if loaded is None else loaded
    check_posterior(loaded)
    config = data_for(loaded, path, run_data(directory))
    config = replace(
        config,
        image_size=config.image_size if image_size is None else image_size,
        channels=config.channels if channels is None else channels,
        limit=limit,
        on_error=on_error or config.on_error,
    )
    images = images_to_encode(loaded, config, part=part, native=image_size is None and loaded.image_size is None)
    info = describe_store(
        loaded,
        directory,
        transform=images.describe(),
        dtype=dtype,
        classes=images.source.classes,
        recipe={"data": config.path, "model": str(model), "split": part, "limit": limit},
    )

    def encode(numbers: list[int], advance: Callable[[int], None]) -> Iterator[Encoded]:
        plan = plan_batches(images, numbers, batch_size)
        for batch in encode_batches(loaded, images, plan, num_workers=num_workers):
            entries = []
            for row, i in enumerate(batch.numbers):
                cond = None if batch.cond is None else batch.cond[row].tolist()
                entries.append(
                    Entry(images.keys[i], batch.content[row], images.label(i), batch.input_size, batch.file[row], cond)
                )
            yield zip(entries, batch.mean, batch.logvar, strict=True)
            advance(len(batch.numbers))

    return fill_store(Path(output), info, images, encode, source=config.path, shard_mib=shard_mib, progress=progress)
