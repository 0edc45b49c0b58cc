"""Attribute arithmetic on files: what two groups of images differ by, added to other images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from omnivae.data import DataSplits
from omnivae.jobs.conditions import told
from omnivae.jobs.evaluate import images_for
from omnivae.jobs.reconstruct import read_for
from omnivae.report.arithmetic import AttributeVector, add_attribute, attribute_vector
from omnivae.training.device import Precision

log = logging.getLogger(__name__)

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
#: Images of each group at most: a mean of so many codes is known well enough.
GROUP = 2000


def arithmetic_files(
    model: str | Path,
    to: Sequence[str | Path],
    output: str | Path,
    *,
    plus: str | None = None,
    minus: str | None = None,
    plus_label: str | None = None,
    minus_label: str | None = None,
    path: str | None = None,
    strengths: Sequence[float] = STRENGTHS,
    cond: str | None = None,
    precision: Precision = "auto",
) -> AttributeVector:
    """Add an attribute to images, in growing strength, one row an image, into one picture.

    The attribute is the mean code of one group of images minus that of another: two folders, or two classes of labelled data.

    Args:
        model: a model directory or a run.
        to: image files to change.
        output: PNG file.
        plus: folder of images with the attribute.
        minus: folder of images without it.
        plus_label: class with the attribute, by name or number, in place of ``plus``.
        minus_label: class without it; every other class by default.
        path: the labelled images that the classes are of; the run's own by default.
        strengths: multiples of the vector, a column each.
        cond: what the images to change are, for a conditional model: a class, or ``name=value`` separated by commas. The images
            of the groups come with their own.
        precision: of the networks, see :func:`omnivae.jobs.evaluate.load`.

    Returns:
        The vector.

    Raises:
        ValueError: for both folders and labels or neither, an unknown class, or images whose codes do not fit.
    """
    from PIL import Image

    from omnivae.jobs.look import _picture_path
    from omnivae.report import figures
    from omnivae.report.latent_ops import has_alpha

    if not to:
        raise ValueError("got no image to change (--to); name at least one file")
    target = _picture_path(output)
    loaded, groups = _groups(model, plus, minus, plus_label, minus_label, path, precision)
    found = attribute_vector(loaded, *groups)
    if found.separation < 0.75:
        log.warning(
            "the two groups hardly differ along their vector (AUROC %.2f): the model may not know this attribute",
            found.separation,
        )
    rows = []
    for file in to:
        x = read_for(loaded, file)[0]
        own = told(loaded, cond, x=x)
        rows.append((x.cpu(), add_attribute(loaded, x, found.vector, strengths, cond=own).cpu()))
    sizes = {tuple(x.shape) for x, _ in rows}
    if len(sizes) > 1:
        raise ValueError(
            f"the images to change have shapes {' and '.join(map(str, sorted(sizes)))}; expected one for all"
        )
    tiles = torch.stack([torch.cat([x[None], frames]) for x, frames in rows])
    labels = ["original", *(f"{s:+g}" if s else "0" for s in strengths)]
    grid = figures.image_grid(
        tiles.flatten(0, 1),
        loaded.value_range,
        len(labels),
        labels=labels * len(rows),
        alpha=has_alpha(loaded),
    )
    Image.fromarray(grid).save(target)
    return found


# -- inside


def _groups(
    model: str | Path,
    plus: str | None,
    minus: str | None,
    plus_label: str | None,
    minus_label: str | None,
    path: str | None,
    precision: Precision,
) -> tuple[Any, tuple[Any, Any]]:
    folders, classes = plus is not None or minus is not None, plus_label is not None or minus_label is not None
    if folders == classes or (folders and (plus is None or minus is None)) or (classes and plus_label is None):
        raise ValueError(
            "say which images have the attribute and which have not: two folders (--plus WITH/ --minus WITHOUT/), or classes of "
            "labelled images (--plus_label NAME, and --minus_label NAME unless all others are meant)"
        )
    if folders:
        loaded, with_it, _ = images_for(model, plus, "all", None, precision)
        _, without, _ = images_for(model, minus, "all", None, precision)
        return loaded, (_some(with_it, np.arange(len(with_it))), _some(without, np.arange(len(without))))
    loaded, dataset, splits = images_for(model, path, "all", None, precision)
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        what = "no class folders and no label column" if labels is None else "several factors instead"
        raise ValueError(f"{splits.name} has no class labels ({what}); use two folders (--plus, --minus)")
    assert plus_label is not None
    wanted = class_number(plus_label, splits)
    other = labels != wanted if minus_label is None else labels == class_number(minus_label, splits)
    return loaded, (_some(dataset, np.flatnonzero(labels == wanted)), _some(dataset, np.flatnonzero(other)))


def class_number(name: str, splits: DataSplits) -> int:
    """Return the number of a class.

    Args:
        name: of the class, or its number.
        splits: the data.

    Raises:
        ValueError: for an unknown class; lists some of the known ones.
    """
    classes = [str(c) for c in splits.classes or ()]
    if name in classes:
        return classes.index(name)
    number = int(name) if name.isdecimal() else -1
    if 0 <= number < len(classes):
        return number
    shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    raise ValueError(f"{splits.name} has no class {name!r}; expected one of {shown}")


def _some(dataset: Any, indices: np.ndarray) -> Subset:
    if len(indices) > GROUP:
        indices = np.sort(np.random.default_rng(0).permutation(indices)[:GROUP])
    return Subset(dataset, indices.tolist())
