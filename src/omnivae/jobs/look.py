"""Look at a trained model: evaluate it, reconstruct files, sample, interpolate, traverse, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from omnivae.data import DataConfig, DataSplits, load_data, preprocess_image, save_image
from omnivae.jobs.train import data_for, run_data, write_run_report
from omnivae.metrics import Evaluation, evaluate
from omnivae.models import VAE
from omnivae.models.storage import find_model
from omnivae.training.device import Precision, for_inference

Split = Literal["auto", "train", "val", "test", "all"]


def load(model: str | Path, precision: Precision = "auto") -> VAE:
    """Load a model directory or a run for inference: onto the GPU if there is one, in the layout that is fast there.

    Args:
        model: the directory.
        precision: "32", "bf16" (networks only; within 3 % of float32), or "auto": bf16 where the device computes in it.

    Returns:
        The model, in evaluation mode.
    """
    loaded = VAE.from_pretrained(model)
    for_inference(loaded.to("cuda") if torch.cuda.is_available() else loaded, precision=precision)
    return loaded


def evaluate_model(
    model: str | Path,
    *,
    path: str | None = None,
    split: Split = "auto",
    metrics: Sequence[str] = ("psnr", "ssim", "ms_ssim", "mse", "l1", "elbo"),
    limit: int | None = None,
    image_size: int | None = None,
    batch_size: int = 16,
    num_samples_nll: int = 100,
    seed: int = 0,
    precision: Precision = "32",
    progress: bool = True,
) -> Evaluation:
    """Evaluate a model on images prepared as in its training.

    Args:
        model: a model directory or a run.
        path: the images; the run's own by default.
        split: which of them. "auto" is the test split of the run's own data and of data that comes with one, and every
            image of any other folder.
        metrics: names of metrics.
        limit: at most so many images.
        image_size: another size than in training, for models that take any.
        batch_size: images at once.
        num_samples_nll: K of the importance-weighted bound.
        seed: of the posterior noise and the bootstrap.
        precision: of the networks; float32 by default, so that the figures are the model's and not the rounding's.
        progress: show progress on a terminal.

    Returns:
        Means, intervals and values of each image.
    """
    loaded, dataset, _ = _images(model, path, split, image_size, precision)
    if limit is not None:
        if limit < 1:
            raise ValueError(f"got a limit of {limit} images (--data.limit); expected at least 1")
        dataset = Subset(dataset, range(min(limit, len(dataset))))
    return evaluate(
        loaded,
        dataset,
        metrics,
        batch_size=batch_size,
        num_samples_nll=num_samples_nll,
        seed=seed,
        progress=progress,
    )


@torch.no_grad()
def reconstruct_files(
    model: str | Path, files: Sequence[str | Path], output: str | Path, *, precision: Precision = "auto"
) -> list[Path]:
    """Encode and decode image files; results keep the files' names and sizes.

    Args:
        model: a model directory or a run.
        files: images.
        output: directory to write to.
        precision: of the networks, see :func:`load`.

    Returns:
        The files written.

    Raises:
        ValueError: when two files have the same name, or one does not fit the model.
    """
    names = [Path(file).name for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several files are named {twice[0]}; their reconstructions would overwrite each other")
    inside = [file for file in files if Path(file).resolve().parent == Path(output).resolve()]
    if inside:
        raise ValueError(
            f"{inside[0]} lies in the output directory and would be overwritten; give --output another one"
        )
    loaded = load(model, precision)
    written = []
    for file in files:
        x = read_image(loaded, file)
        reconstruction = loaded.decode(loaded.encode(x)).clamp(*loaded.value_range)
        target = Path(output) / Path(file).name
        save_image(reconstruction, target, value_range=loaded.value_range)
        written.append(target)
    return written


def sample_images(
    model: str | Path,
    output: str | Path,
    *,
    n: int = 16,
    size: Sequence[int] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    precision: Precision = "auto",
) -> Path:
    """Draw images from the prior into one picture.

    Args:
        model: a model directory or a run.
        output: PNG file.
        n: number of images.
        size: height and width; the training size by default.
        temperature: multiplies the prior's standard deviation.
        seed: of the draw.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    loaded = load(model, precision)
    generator = torch.Generator().manual_seed(seed)
    x = loaded.sample(n, size=size, temperature=temperature, generator=generator)
    return _write_grid(loaded, x, output)


def interpolate_files(
    model: str | Path,
    first: str | Path,
    second: str | Path,
    output: str | Path,
    *,
    steps: int = 10,
    mode: Literal["linear", "spherical"] = "linear",
    precision: Precision = "auto",
) -> Path:
    """Walk from one image to another through the latent, into one picture.

    Args:
        model: a model directory or a run.
        first: image file.
        second: image file of the same size.
        output: PNG file.
        steps: images on the way, both ends included.
        mode: straight line or great circle.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    from omnivae.report import interpolate

    loaded = load(model, precision)
    a, b = read_image(loaded, first)[0], read_image(loaded, second)[0]
    if a.shape != b.shape:
        raise ValueError(
            f"{first} is {tuple(a.shape)} and {second} is {tuple(b.shape)}; expected images of the same channels and size"
        )
    return _write_grid(loaded, interpolate(loaded, a, b, steps=steps, mode=mode), output, columns=steps)


def traverse_file(
    model: str | Path,
    output: str | Path,
    *,
    image: str | Path | None = None,
    num_dimensions: int = 10,
    span: float = 3.0,
    steps: int = 9,
    precision: Precision = "auto",
) -> Path:
    """Vary one latent dimension at a time, the most informative first, into one picture.

    Args:
        model: a model directory or a run.
        output: PNG file.
        image: whose other dimensions are kept; the run's first test image by default.
        num_dimensions: rows.
        span: standard deviations of the aggregate posterior on each side.
        steps: images in a row.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    from omnivae.report import traverse_model

    loaded, dataset, _ = _images(model, None, "auto", None, precision)
    references = torch.stack([dataset[i]["x"] for i in range(min(256, len(dataset)))])
    x = references[0] if image is None else read_image(loaded, image)[0]
    picture = traverse_model(loaded, x, references, num_dimensions=num_dimensions, span=span, steps=steps)
    target = _picture_path(output)
    picture.save(target)
    return target


def report_model(model: str | Path, output: str | Path, *, path: str | None = None) -> Path:
    """Write one self-contained HTML page about a model.

    Args:
        model: a model directory or a run.
        output: HTML file.
        path: the images to show; the run's own by default.

    Returns:
        The file written.
    """
    directory = find_model(model)
    run = directory.parent
    loaded, dataset, splits = _images(model, path, "auto", None, "32")
    if path is None:
        return write_run_report(run, splits, output=Path(output))
    from omnivae.jobs.train import REPORT_IMAGES, REPORT_METRICS
    from omnivae.report import write_report

    evaluation = evaluate(
        loaded, Subset(dataset, range(min(len(dataset), REPORT_IMAGES))), REPORT_METRICS, progress=False
    )
    history, config = run / "metrics.csv", run / "config.yaml"
    return write_report(
        loaded,
        dataset,
        Path(output),
        evaluation=evaluation,
        history=history if history.is_file() else None,
        config_text=config.read_text() if config.is_file() else (directory / "config.json").read_text(),
        title=f"{splits.name}: {type(loaded).__name__}",
        dataset_name=splits.name,
        classes=splits.classes,
    )


def read_image(model: VAE, file: str | Path) -> Tensor:
    """Read an image as a model's training did: same channels, same value range, its own size where the model allows.

    Args:
        model: the model.
        file: image file.

    Returns:
        ``[1, C, H, W]`` on the model's device.

    Raises:
        ValueError: when the channels do not fit.
    """
    prepared = model.statistics.get("data", {})
    side = prepared.get("image_size") if model.image_size is not None else None
    x = preprocess_image(file, channels=prepared.get("channels"), image_size=side, value_range=model.value_range)
    if x.shape[1] != model.in_channels:
        raise ValueError(
            f"{file} has {x.shape[1]} channels and the model takes {model.in_channels}; convert the image first"
        )
    return x.to(next(model.parameters()).device)


def _images(
    model: str | Path, path: str | None, split: Split, image_size: int | None, precision: Precision
) -> tuple[VAE, Any, DataSplits]:
    loaded = load(model, precision)
    own = run_data(find_model(model))
    config = data_for(loaded, path, own)
    if image_size is not None:
        config = DataConfig(**{**vars(config), "image_size": image_size})
    splits = load_data(config, value_range=loaded.value_range)
    if split == "auto":
        same = own is not None and (path is None or path == own.path)
        split = "test" if same or splits.official_test else "all"
    if split == "all":
        return loaded, ConcatDataset([splits.test, splits.val, splits.train]), splits
    return loaded, getattr(splits, split), splits


def _write_grid(model: VAE, x: Tensor, output: str | Path, columns: int | None = None) -> Path:
    from PIL import Image

    from omnivae.report import image_grid

    target = _picture_path(output)
    Image.fromarray(image_grid(x.cpu(), model.value_range, columns)).save(target)
    return target


def _picture_path(output: str | Path) -> Path:
    target = Path(output)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"got --output {output}; expected the name of a picture, such as samples.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
