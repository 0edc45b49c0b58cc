"""Where the condition of an image comes from: its class, columns of a table, the factors of a world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.component import suggestion
from omnivae.data.condition import Attribute, Condition, ConditionTable, check_complete, make_attribute
from omnivae.data.sources import ImageSource

#: What ``data.cond`` may name beside columns.
LABEL, FACTORS = "label", "factors"
#: A factor with at most so many whole numbers for values tells kinds apart, as a shape does.
MOST_KINDS = 10


def tell_images(
    source: ImageSource, names: Sequence[str], train: np.ndarray, known: Condition | None = None
) -> ConditionTable:
    """Return the condition of every image of a source.

    Args:
        source: the images.
        names: of ``data.cond``: "label", "factors", columns of the table.
        train: numbers of the training images, by which numbers are standardised.
        known: what a trained model was told; its classes and its standardisation are used, and nothing is measured.

    Returns:
        The table.

    Raises:
        ValueError: for data without labels or without such a column, values that are missing, or classes that the model does
            not know.
    """
    attributes: list[Attribute] = []
    columns: list[np.ndarray] = []
    names = _expanded(source, names)
    if known is not None and [a.name for a in known.attributes] != names:
        wanted = ", ".join(a.name for a in known.attributes)
        raise ValueError(f"the model was trained on the condition {wanted}; these images come with {', '.join(names)}")
    for place, name in enumerate(names):
        expected = None if known is None else known.attributes[place]
        if name == LABEL:
            attribute, column = _label(source, train, expected)
        else:
            attribute, column = _column(source, name, train, expected)
        attributes.append(attribute)
        columns.append(column)
    return ConditionTable(Condition(tuple(attributes)), columns)


def few_labels(labels: np.ndarray | None, order: np.ndarray, per_class: int, classes: Sequence[str]) -> np.ndarray:
    """Choose the training images that keep their label, as many of each class.

    Args:
        labels: class of every image of the source ``[N]``, or None.
        order: the training images, in an order mixed by the split's seed, ``[M]``.
        per_class: labels to keep of each class.
        classes: their names.

    Returns:
        Whether each training image keeps its label, ``[M]``.

    Raises:
        ValueError: for data without labels, or with fewer images of a class.

    Example:
        >>> few_labels(np.array([0, 0, 1, 1]), np.array([3, 1, 0, 2]), 1, ["a", "b"]).tolist()
        [True, True, False, False]
    """
    if labels is None or labels.ndim != 1:
        raise ValueError("data.labels_per_class needs images with one class each; leave it out, or choose other data")
    mine = labels[order]
    keep = np.zeros(len(order), dtype=bool)
    for number, name in enumerate(classes):
        of_class = np.flatnonzero(mine == number)
        if len(of_class) < per_class:
            raise ValueError(
                f"data.labels_per_class is {per_class} and the class {name!r} has {len(of_class)} training images: ask for fewer"
            )
        keep[of_class[:per_class]] = True
    return keep


def _expanded(source: ImageSource, names: Sequence[str]) -> list[str]:
    factors = _factor_names(source)
    if FACTORS in names and not factors:
        raise ValueError(
            f"data.cond names factors, and {source.name} has none that are known: set data.cond to label, or to columns of a table"
        )
    return [name for given in names for name in (factors if given == FACTORS else [given])]


def _factor_names(source: ImageSource) -> list[str]:
    world = getattr(source, "world", None)
    return [] if world is None else list(world.names)


def _label(source: ImageSource, train: np.ndarray, expected: Attribute | None) -> tuple[Attribute, np.ndarray]:
    labels, classes = source.labels, source.classes
    if labels is None or classes is None or labels.ndim != 1:
        raise ValueError(
            f"{source.name} has no labels, which data.cond asks for: sort the images into a folder for each class, list them in "
            "a table with a column label, or train a model without a condition"
        )
    if expected is None:
        if len(classes) < 2:
            raise ValueError(f"{source.name} has the one class {classes[0]!r}, which says nothing: leave data.cond out")
        counts = np.bincount(labels[train], minlength=len(classes))
        return Attribute(LABEL, "class", tuple(classes), usual=classes[int(counts.argmax())]), labels
    number = {name: i for i, name in enumerate(expected.values)}
    present = [classes[i] for i in np.unique(labels).tolist()]
    unknown = [name for name in present if name not in number]
    if unknown:
        expected.encode(unknown[0])  # raises, naming what the model knows
    translated = np.array([number.get(name, -1) for name in classes], dtype=np.int64)
    return expected, translated[labels]


def _column(
    source: ImageSource, name: str, train: np.ndarray, expected: Attribute | None
) -> tuple[Attribute, np.ndarray]:
    where = f"{source.name}: {name!r}"
    values: Sequence[Any]
    factors = _factor_names(source)
    if name in factors:
        place = factors.index(name)
        world = source.world  # type: ignore[attr-defined]
        assert source.labels is not None, "a world's labels are its factors"
        # Three quarters of a million rows: as arrays, without a look at each.
        scale, classes = np.asarray(world.values[place], dtype=np.float64), source.labels[:, place].astype(np.int64)
        if len(scale) <= MOST_KINDS and (scale == np.round(scale)).all():
            kinds = tuple(str(int(value)) for value in scale)
            return expected or Attribute(name, "class", kinds, usual=kinds[0]), classes
        numbers = scale[classes]
        mean, std = float(numbers[train].mean()), float(numbers[train].std())
        made = expected or Attribute(name, "number", mean=(mean,), std=(std or 1.0,), usual=mean)
        return made, ((numbers - made.mean[0]) / made.std[0]).astype(np.float32)[:, None]
    attributes = source.attributes
    if name not in attributes:
        known = [LABEL] * (source.labels is not None and source.labels.ndim == 1) + [*factors, *attributes]
        can = f"it can be told {', '.join(known)}" if known else "it comes without labels and attributes"
        raise ValueError(f"{source.name} has no attribute {name!r} (data.cond){suggestion(name, known)}; {can}")
    values = _vectors_of_files(attributes[name], where)
    made = expected or make_attribute(name, values, train, where)
    check_complete(values, where)
    try:
        return made, made.encode_all(values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _vectors_of_files(values: Sequence[Any], where: str) -> Sequence[Any]:
    """Return the vectors of a column that names ``.npy`` files; any other column as it is."""
    if not values or not all(isinstance(v, Path) and v.suffix == ".npy" for v in values):
        return values
    missing = [v for v in values if not v.is_file()]
    if missing:
        raise FileNotFoundError(f"{where}: {len(missing)} of {len(values)} files are missing, e.g. {missing[0]}")
    vectors = [np.load(v, allow_pickle=False) for v in values]
    odd = next((v for v, vector in zip(values, vectors, strict=True) if vector.ndim != 1), None)
    if odd is not None:
        raise ValueError(f"{where}: {odd} holds {np.load(odd, allow_pickle=False).shape}; expected one vector a file")
    return vectors
