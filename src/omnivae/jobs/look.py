"""Look at a trained model: sample, interpolate, traverse, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Subset

from omnivae.jobs.evaluate import images_for, load
from omnivae.jobs.reconstruct import read_for
from omnivae.jobs.train import write_run_report
from omnivae.metrics import evaluate
from omnivae.models import VAE
from omnivae.models.storage import find_model
from omnivae.training.device import Precision


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
    mode: Literal["linear", "spherical", "both"] = "linear",
    precision: Precision = "auto",
) -> Path:
    """Walk from one image to another through the latent, into one picture.

    Args:
        model: a model directory or a run.
        first: image file.
        second: image file of the same size.
        output: PNG file.
        steps: images on the way, both ends included.
        mode: straight line, great circle, or one row of each.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    from PIL import Image

    from omnivae.report import interpolate, interpolation_grid
    from omnivae.report.latent_ops import has_alpha

    if mode not in ("linear", "spherical", "both"):
        raise ValueError(f"got mode={mode!r}; expected 'linear', 'spherical' or 'both'")
    target = _picture_path(output)
    loaded = load(model, precision)
    a, b = read_for(loaded, first)[0], read_for(loaded, second)[0]
    if a.shape != b.shape:
        raise ValueError(
            f"{first} is {tuple(a.shape)} and {second} is {tuple(b.shape)}; expected images of the same channels and size"
        )
    ways: list[Literal["linear", "spherical"]] = ["linear", "spherical"] if mode == "both" else [mode]
    frames = torch.stack([interpolate(loaded, a, b, steps=steps, mode=way) for way in ways]).cpu()
    ends = torch.stack([a, b]).cpu().expand(len(ways), 2, *a.shape)
    grid = interpolation_grid(frames, loaded.value_range, ends=ends, names=ways, alpha=has_alpha(loaded))
    Image.fromarray(grid).save(target)
    return target


def traverse_file(
    model: str | Path,
    output: str | Path,
    *,
    image: str | Path | None = None,
    num_dimensions: int = 10,
    span: float = 3.0,
    steps: int = 9,
    reach: Literal["aggregate", "prior"] = "aggregate",
    precision: Precision = "auto",
) -> Path:
    """Vary one latent dimension at a time, the most informative first, into one picture.

    Args:
        model: a model directory or a run.
        output: PNG file.
        image: whose other dimensions are kept; the run's first test image by default.
        num_dimensions: rows.
        span: standard deviations on each side of the mean.
        steps: images in a row.
        reach: of which distribution: the aggregate posterior of the run's test images, or the prior.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    from omnivae.report import traverse_model

    loaded, dataset, *_ = images_for(model, None, "auto", None, precision)
    references = torch.stack([dataset[i]["x"] for i in range(min(256, len(dataset)))])
    x = references[0] if image is None else read_for(loaded, image)[0]
    picture = traverse_model(loaded, x, references, num_dimensions=num_dimensions, span=span, steps=steps, reach=reach)
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
    loaded, dataset, splits, *_ = images_for(model, path, "auto", None, "32")
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


def _write_grid(model: VAE, x: Tensor, output: str | Path, columns: int | None = None) -> Path:
    from PIL import Image

    from omnivae.report import image_grid
    from omnivae.report.latent_ops import has_alpha

    target = _picture_path(output)
    Image.fromarray(image_grid(x.cpu(), model.value_range, columns, alpha=has_alpha(model))).save(target)
    return target


def _picture_path(output: str | Path) -> Path:
    target = Path(output)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"got --output {output}; expected the name of a picture, such as samples.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
