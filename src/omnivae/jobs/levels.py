"""What the levels of a hierarchical model know of an image: reconstructions from the top ones only."""

from __future__ import annotations

from pathlib import Path

import torch

from omnivae.jobs.evaluate import images_for
from omnivae.jobs.look import _write_grid
from omnivae.models import HierarchicalVAE
from omnivae.report.collect import choose, same_size
from omnivae.training.device import Precision

#: Most columns of the picture; of more levels, that many are shown.
MOST_COLUMNS = 12


def level_images(
    model: str | Path,
    output: str | Path,
    *,
    path: str | None = None,
    n: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
    precision: Precision = "auto",
) -> Path:
    """Rebuild images from more and more levels, the top one first, into one picture.

    A row shows an image, then what the model makes of it with none, one, two, ... and all of its levels taken from the image;
    the levels below follow the prior.

    Args:
        model: a model directory or a run of a hierarchical model.
        output: PNG file.
        path: the images; the run's own by default.
        n: number of images.
        temperature: multiplies the standard deviation of the levels below; 0 takes their mean.
        seed: of their draw.
        precision: of the networks, see :func:`load`.

    Returns:
        The file written.

    Raises:
        ValueError: for a model with one latent.
    """
    if n < 1:
        raise ValueError(f"got n={n}; expected at least 1 image")
    loaded, dataset, *_ = images_for(model, path, "auto", None, precision)
    if not isinstance(loaded, HierarchicalVAE):
        raise ValueError(
            f"this {type(loaded).__name__} has one latent, so there are no levels to tell apart: use omnivae sample without "
            "--levels, or train a hierarchical model such as ladder_vae"
        )
    shown = same_size(choose(dataset, 4 * n, seed=0), n)
    device = next(loaded.parameters()).device
    x = torch.stack([item["x"] for item in shown]).to(device)
    columns = [x.cpu()]
    for keep in levels_to_show(loaded.num_levels):
        generator = torch.Generator().manual_seed(seed)
        columns.append(loaded.resample(x, keep, temperature=temperature, generator=generator).cpu())
    return _write_grid(loaded, torch.stack(columns, dim=1).flatten(0, 1), output, columns=len(columns))


def levels_to_show(num_levels: int) -> list[int]:
    """Return how many levels each column keeps: 0 to all, evenly thinned where there are many.

    Args:
        num_levels: of the model.

    Returns:
        Increasing numbers from 0 to ``num_levels``.

    Example:
        >>> levels_to_show(3), levels_to_show(40)
        ([0, 1, 2, 3], [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40])
    """
    steps = min(num_levels, MOST_COLUMNS - 2)
    return [round(i * num_levels / steps) for i in range(steps + 1)]
