"""Look at a trained model: sample, interpolate, traverse, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Subset

from omnivae.jobs.conditions import EVERY, every_class, needed_condition, told
from omnivae.jobs.evaluate import images_for, load
from omnivae.jobs.factors import process_of
from omnivae.jobs.reconstruct import read_for
from omnivae.jobs.text import is_text_model, report_text
from omnivae.jobs.train import write_run_report
from omnivae.metrics import evaluate
from omnivae.metrics.registry import measurable
from omnivae.models import VAE
from omnivae.models.storage import find_model
from omnivae.training.device import Precision

#: Images of a world from which a dimension's factor is told.
LABEL_ROWS = 2_000


def sample_images(
    model: str | Path,
    output: str | Path,
    *,
    n: int = 16,
    size: Sequence[int] | None = None,
    cond: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    precision: Precision = "auto",
) -> Path:
    """Draw images from the prior into one picture.

    Args:
        model: a model directory or a run.
        output: PNG file.
        n: number of images.
        size: height and width; the training size by default.
        cond: what to draw, for a conditional model: a class, ``name=value`` separated by commas, or "all" for a row of ``n``
            images of each class, with the same draws from N(0, I) in all rows. All classes by default, where there are any.
        temperature: multiplies the prior's standard deviation; divides the logits of a prior over codes.
        top_k: of a prior over codes: draw from the likeliest so many at each step.
        seed: of the draw.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    loaded = load(model, precision)
    known = needed_condition(loaded)

    def draw(one: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        many = None if one is None else one.to(next(loaded.parameters()).device).expand(n, -1)
        return loaded.sample(n, size=size, cond=many, temperature=temperature, top_k=top_k, generator=generator).cpu()

    if known is None or (cond is not None and cond != EVERY):
        return _write_grid(loaded, draw(told(loaded, cond)), output)
    names, conditions = every_class(known)
    return _write_classes(loaded, torch.stack([draw(one) for one in conditions]), names, output)


def transfer_images(
    model: str | Path,
    output: str | Path,
    *,
    path: str | None = None,
    n: int = 8,
    to: Sequence[str] = (),
    precision: Precision = "auto",
) -> Path:
    """Decode images of a conditional model under other conditions than their own, into one picture.

    Each image is encoded as what it is; a row shows it, its reconstruction, and the same latent decoded as something else.

    Args:
        model: a model directory or a run.
        output: PNG file.
        path: the images, which come with labels or attributes; the run's own by default.
        n: number of images; of different classes as far as there are.
        to: the conditions, each a class or ``name=value`` separated by commas, which leaves an image's other attributes as they
            are; every class by default.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.

    Raises:
        ValueError: for a model without a condition, or an unknown class or attribute.
    """
    from omnivae.report.collect import choose, same_size

    if n < 1:
        raise ValueError(f"got n={n}; expected at least 1 image")
    loaded, dataset, *_ = images_for(model, path, "auto", None, precision)
    known = needed_condition(loaded)
    if known is None:
        raise ValueError(
            "this model takes no condition, so there is nothing to change: train one with the recipe c_vae"
        )
    names = list(to) or every_class(known)[0]
    shown = same_size(choose(dataset, 4 * n, seed=0), n)
    device = next(loaded.parameters()).device
    x, own = (torch.stack([item[name] for item in shown]).to(device) for name in ("x", "cond"))
    with torch.no_grad():
        posterior = loaded.encode(x, own)
        columns = [x, loaded.decode(posterior)]
        columns += [loaded.decode(posterior, known.changed(own, name)) for name in names]
    rows = torch.stack([column.clamp(*loaded.value_range).cpu() for column in columns], dim=1)
    headings = ["image", "decoded", *names]
    return _write_classes(loaded, rows, [known.describe(row) for row in own], output, headings)


def interpolate_files(
    model: str | Path,
    first: str | Path,
    second: str | Path,
    output: str | Path,
    *,
    steps: int = 10,
    mode: Literal["linear", "spherical", "both"] | None = None,
    cond: str | None = None,
    to: str | None = None,
    precision: Precision = "auto",
) -> Path:
    """Walk from one image to another through the latent, into one picture.

    Args:
        model: a model directory or a run.
        first: image file.
        second: image file of the same size.
        output: PNG file.
        steps: images on the way, both ends included.
        mode: straight line, great circle, or one row of each; by default the line, and the circle where latents are points of a
            sphere.
        cond: what the first image is, for a conditional model: a class, or ``name=value`` separated by commas.
        to: what the second one is; the same by default. On the way the condition goes from one to the other in a line.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    from PIL import Image

    from omnivae.report import interpolate, interpolation_grid
    from omnivae.report.latent_ops import has_alpha, natural_mode

    if mode not in (None, "linear", "spherical", "both"):
        raise ValueError(f"got mode={mode!r}; expected 'linear', 'spherical' or 'both'")
    target = _picture_path(output)
    loaded = load(model, precision)
    a, b = read_for(loaded, first)[0], read_for(loaded, second)[0]
    if a.shape != b.shape:
        raise ValueError(
            f"{first} is {tuple(a.shape)} and {second} is {tuple(b.shape)}; expected images of the same channels and size"
        )
    ways: list[Literal["linear", "spherical"]] = (
        ["linear", "spherical"] if mode == "both" else [mode or natural_mode(loaded)]
    )
    start = told(loaded, cond, x=a)
    end = start
    if to is not None:
        end = told(loaded, to, "--to")
    elif cond is None:  # a model that tells what the first image is tells it of the second
        end = told(loaded, None, x=b)
    conds = None if start is None or end is None else torch.stack([start, end])
    frames = torch.stack([interpolate(loaded, a, b, steps=steps, mode=way, cond=conds) for way in ways]).cpu()
    ends = torch.stack([a, b]).cpu().expand(len(ways), 2, *a.shape)
    grid = interpolation_grid(frames, loaded.value_range, ends=ends, names=ways, alpha=has_alpha(loaded))
    Image.fromarray(grid).save(target)
    return target


def traverse_file(
    model: str | Path,
    output: str | Path,
    *,
    image: str | Path | None = None,
    cond: str | None = None,
    num_dimensions: int = 10,
    span: float = 3.0,
    steps: int = 9,
    reach: Literal["aggregate", "prior"] = "aggregate",
    precision: Precision = "auto",
) -> Path:
    """Vary one latent dimension at a time, the most informative first, into one picture.

    Where the run's images are of a world, each dimension is labelled with the factor that it knows most of.

    Args:
        model: a model directory or a run.
        output: PNG file.
        image: whose other dimensions are kept; the run's first test image by default.
        cond: what that image is, for a conditional model: a class, or ``name=value`` separated by commas. Known of the run's
            own images.
        num_dimensions: rows.
        span: standard deviations on each side of the mean.
        steps: images in a row.
        reach: of which distribution: the aggregate posterior of the run's test images, or the prior.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.
    """
    from omnivae.metrics.factors import draw_table
    from omnivae.report import traverse_model
    from omnivae.report.factors import labels_of_table

    loaded, dataset, splits, *_ = images_for(model, None, "auto", None, precision)
    items = [dataset[i] for i in range(min(256, len(dataset)))]
    references = torch.stack([item["x"] for item in items])
    x = references[0] if image is None else read_for(loaded, image)[0]
    others = None if loaded.cond_dim is None else torch.stack([item["cond"] for item in items])
    own = told(loaded, cond, x=x) if image is not None or cond is not None or others is None else others[0]
    process = process_of(splits, loaded, num_rows=LABEL_ROWS) if loaded.image_size is not None else None
    picture = traverse_model(
        loaded,
        x,
        references,
        factors=None if process is None else labels_of_table(draw_table(loaded, process)),
        num_dimensions=num_dimensions,
        span=span,
        steps=steps,
        reach=reach,
        cond=own,
        reference_cond=others,
    )
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
    if is_text_model(model):
        return report_text(model, output, path=path)
    directory = find_model(model)
    run = directory.parent
    loaded, dataset, splits, *_ = images_for(model, path, "auto", None, "32")
    if path is None:
        return write_run_report(run, splits, output=Path(output))
    from omnivae.jobs.train import REPORT_IMAGES, REPORT_METRICS
    from omnivae.report import write_report

    evaluation = evaluate(
        loaded,
        Subset(dataset, range(min(len(dataset), REPORT_IMAGES))),
        measurable(REPORT_METRICS, loaded),
        progress=False,
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


def _write_classes(
    model: VAE, rows: Tensor, names: Sequence[str], output: str | Path, headings: Sequence[str] | None = None
) -> Path:
    from PIL import Image

    from omnivae.report import class_grid
    from omnivae.report.latent_ops import has_alpha

    target = _picture_path(output)
    grid = class_grid(rows, model.value_range, names=names, headings=headings, alpha=has_alpha(model))
    Image.fromarray(grid).save(target)
    return target


def _picture_path(output: str | Path) -> Path:
    target = Path(output)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"got --output {output}; expected the name of a picture, such as samples.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
