"""What a conditional model is told about an image: which classes and attributes, by name, and how they become numbers.

The schema is saved with the model (``statistics.json``, key ``cond``), so that ``--cond 7`` or ``--cond smiling=1,age=30`` means
what it meant in training, and a class that was never seen is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from omnivae.component import suggestion

Kind = Literal["class", "binary", "number", "vector"]


@dataclass(frozen=True)
class Attribute:
    """One thing that is known about every image.

    Attributes:
        name: of the column, or "label".
        kind: "class" (one-hot), "binary" (0 or 1), "number" or "vector" (standardised).
        values: names of the classes; of a binary attribute the two values, the one that becomes 0 first.
        mean: of the training images' numbers, one for each element.
        std: their standard deviation.
        usual: the training images' most common value, or their mean: what it is where a user does not say.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    usual: str | float | tuple[float, ...] = 0.0

    @property
    def size(self) -> int:
        """Number of elements of the condition."""
        return {"class": len(self.values), "binary": 1}.get(self.kind, len(self.mean))

    def encode(self, value: Any) -> np.ndarray:
        """Return the elements of the condition for a value, as it is stored or as a user writes it.

        Args:
            value: a class name or number, 0 or 1, a number, or as many as the vector has.

        Returns:
            ``[size]`` float32.

        Raises:
            ValueError: for a class that training did not know, or what is no finite number.
        """
        row = np.zeros(self.size, dtype=np.float32)
        if self.kind == "class":
            row[self._place(str(value))] = 1.0
        elif self.kind == "binary":
            row[0] = self._place(_plain(value))
        else:
            numbers = np.array([_number(v, self.name) for v in _sequence(value)])
            if len(numbers) != len(self.mean):
                raise ValueError(f"{self.name!r} has {len(self.mean)} elements; got {len(numbers)}")
            row[:] = (numbers - self.mean) / self.std
        return row

    def encode_all(self, values: Sequence[Any]) -> np.ndarray:
        """Return what a :class:`ConditionTable` holds of a column: the same numbers as :meth:`encode`, many at once.

        Args:
            values: one for each image.

        Returns:
            Classes ``[N]`` int64, or elements ``[N, size]`` float32.

        Raises:
            ValueError: as for :meth:`encode`.
        """
        if self.kind in ("class", "binary"):
            names = [str(v) if self.kind == "class" else _plain(v) for v in values]
            place = {name: self._place(name) for name in dict.fromkeys(names)}
            found = np.array([place[name] for name in names], dtype=np.int64)
            return found if self.kind == "class" else found.astype(np.float32)[:, None]
        try:
            numbers = np.array(values, dtype=np.float64).reshape(len(values), -1)
        except (TypeError, ValueError):
            numbers = np.empty((0, 0))
        if numbers.shape != (len(values), len(self.mean)) or not np.isfinite(numbers).all():
            raise ValueError(f"expected {len(self.mean)} finite number{'s' * (len(self.mean) > 1)} in each row")
        return ((numbers - self.mean) / self.std).astype(np.float32)

    def _place(self, value: str) -> int:
        if value not in self.values:
            known = ", ".join(self.values[:30]) + (
                f" and {len(self.values) - 30} more" if len(self.values) > 30 else ""
            )
            raise ValueError(
                f"{value!r} is no {self.name} that the model was trained on{suggestion(value, self.values)}; it knows {known}"
            )
        return self.values.index(value)


@dataclass(frozen=True)
class Condition:
    """The condition of a model: its attributes, side by side.

    Attributes:
        attributes: in the order of the condition's elements.

    Example:
        >>> digit = Condition((Attribute("label", "class", ("0", "1", "2"), usual="0"),))
        >>> digit.size, digit.parse("2").tolist()
        (3, [0.0, 0.0, 1.0])
    """

    attributes: tuple[Attribute, ...]

    @property
    def size(self) -> int:
        """Size E of the condition."""
        return sum(attribute.size for attribute in self.attributes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes where the condition is one class, else empty."""
        only = self.attributes[0] if len(self.attributes) == 1 else None
        return only.values if only is not None and only.kind in ("class", "binary") else ()

    def encode(self, values: Mapping[str, Any]) -> Tensor:
        """Return the condition of one image.

        Args:
            values: of every attribute, by its name.

        Returns:
            ``[E]`` float32.

        Raises:
            ValueError: for an unknown or missing attribute, or an unknown value.
        """
        names = [attribute.name for attribute in self.attributes]
        for name in values:
            if name not in names:
                raise ValueError(
                    f"the model knows no attribute {name!r}{suggestion(name, names)}; it was trained on {', '.join(names)}"
                )
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"got no value of {', '.join(missing)}; expected one for each of {', '.join(names)}")
        return torch.from_numpy(np.concatenate([a.encode(values[a.name]) for a in self.attributes]))

    def parse(self, text: str) -> Tensor:
        """Return the condition that a user wrote: a class, or ``name=value`` separated by commas.

        What is left out has its usual value, see :meth:`unsaid`. Elements of a vector are separated by spaces.

        Args:
            text: such as ``"7"`` or ``"smiling=1,age=30"``.

        Returns:
            ``[E]`` float32.

        Raises:
            ValueError: for text that is neither, an attribute given twice, unknown names and values.
        """
        return self.encode({a.name: a.usual for a in self.attributes} | self._said(text))

    def changed(self, rows: Tensor, text: str) -> Tensor:
        """Return conditions with what a user wrote in place of what they say about it; the rest stays.

        Args:
            rows: ``[B, E]``.
            text: as for :meth:`parse`.

        Returns:
            ``[B, E]``.
        """
        said = self._said(text)
        self.encode({a.name: a.usual for a in self.attributes} | said)  # refuses unknown names
        columns = rows.split([a.size for a in self.attributes], dim=1)
        new = [
            torch.from_numpy(a.encode(said[a.name])).to(rows).expand(len(rows), -1) if a.name in said else column
            for a, column in zip(self.attributes, columns, strict=True)
        ]
        return torch.cat(new, dim=1)

    def describe(self, row: Tensor) -> str:
        """Return a condition in words: the inverse of :meth:`parse`, shortened.

        Args:
            row: ``[E]``.
        """
        parts = []
        for a, column in zip(self.attributes, row.cpu().split([a.size for a in self.attributes]), strict=True):
            if a.kind == "class":
                text = a.values[int(column.argmax())] if bool(column.any()) else "?"
            elif a.kind == "binary":
                text = a.values[int(column[0] > 0.5)]
            elif a.kind == "number":
                text = f"{float(column[0]) * a.std[0] + a.mean[0]:.4g}"
            else:
                text = f"{a.size} numbers"
            parts.append(text if self.classes else f"{a.name}={text}")
        return ",".join(parts[:3]) + (",..." if len(parts) > 3 else "")

    def unsaid(self, text: str) -> dict[str, Any]:
        """Return the attributes that ``text`` leaves out, with the value that :meth:`parse` gives them.

        Args:
            text: as for :meth:`parse`.
        """
        said = self._said(text)
        return {a.name: a.usual for a in self.attributes if a.name not in said}

    def _said(self, text: str) -> dict[str, str]:
        if self.classes and ("=" not in text or text in self.classes):
            return {self.attributes[0].name: text.strip()}
        names = ", ".join(attribute.name for attribute in self.attributes)
        said: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not value:
                raise ValueError(f"got the condition {text!r}; expected name=value, separated by commas, of {names}")
            if name in said:
                raise ValueError(f"the condition {text!r} gives {name!r} twice")
            said[name] = value
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return what ``statistics.json`` holds."""
        return {"attributes": [asdict(attribute) for attribute in self.attributes]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Condition:
        """Return the condition that :meth:`to_dict` described."""
        made = []
        for entry in values["attributes"]:
            entry = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in entry.items()}
            made.append(Attribute(**entry))
        return cls(tuple(made))


class ConditionTable:
    """The condition of every image of a source.

    Args:
        condition: what they are.
        columns: for each attribute, in order: the class of each image ``[N]`` int64, -1 where it is not known, or its
            elements ``[N, size]`` float32.
    """

    def __init__(self, condition: Condition, columns: Sequence[np.ndarray]) -> None:
        self.condition, self.columns = condition, list(columns)

    def rows(self, numbers: np.ndarray, known: np.ndarray | None = None) -> Tensor:
        """Return the conditions of images.

        Args:
            numbers: of the images, ``[B]``.
            known: whether each image's classes may be told, ``[B]``; where not, they are zeros.

        Returns:
            ``[B, E]`` float32.
        """
        parts = []
        for attribute, column in zip(self.condition.attributes, self.columns, strict=True):
            values = column[numbers]
            if values.ndim == 1:
                told = values if known is None else np.where(known, values, -1)
                values = (told[:, None] == np.arange(attribute.size)).astype(np.float32)
            parts.append(values)
        return torch.from_numpy(np.concatenate(parts, axis=1))


def make_attribute(name: str, values: Sequence[Any], train: np.ndarray, where: str) -> Attribute:
    """Return what a column of attributes is, standardised by the training images.

    Text is a class, 0 and 1 (also -1 and 1, true and false) are binary, other numbers are standardised, and lists of them are
    vectors.

    Args:
        name: of the column.
        values: one for each image.
        train: numbers of the training images.
        where: what they are, for errors.

    Returns:
        The attribute.

    Raises:
        ValueError: for missing values, NaN, a mixture of kinds, or a column that says nothing.
    """
    check_complete(values, where)
    mine = [values[int(i)] for i in train]
    if all(isinstance(v, str) for v in values):
        names = sorted(set(values))
        _not_constant(names, where)
        return Attribute(name, "class", tuple(names), usual=max(names, key=mine.count))
    if all(isinstance(v, (list, tuple, np.ndarray)) for v in values):
        if len({len(v) for v in values}) > 1:
            raise ValueError(
                f"{where}: the vectors have {len({len(v) for v in values})} different lengths; expected one"
            )
        array = np.array([[float(x) for x in v] for v in mine])
    elif all(isinstance(v, (bool, int, float, np.number, np.bool_)) for v in values):
        distinct = {float(v) for v in values}
        if distinct in ({0.0, 1.0}, {-1.0, 1.0}):
            two = tuple(_plain(v) for v in sorted(distinct))
            ones = sum(float(v) == 1.0 for v in mine)
            return Attribute(name, "binary", two, usual=two[int(2 * ones > len(mine))])
        array = np.array([[float(v)] for v in mine])
    else:
        kinds = ", ".join(sorted({type(v).__name__ for v in values}))
        raise ValueError(f"{where}: got values of the kinds {kinds}; expected names, numbers or vectors throughout")
    mean, std = array.mean(axis=0), array.std(axis=0)
    _not_constant([] if (std > 0).any() else [0], where)
    # An element that is always the same becomes 0, whatever its scale.
    std = np.where(std > 0, std, 1.0)
    kind: Kind = "number" if array.shape[1] == 1 and not isinstance(mine[0], (list, tuple, np.ndarray)) else "vector"
    usual: float | tuple[float, ...] = float(mean[0]) if kind == "number" else tuple(mean.tolist())
    return Attribute(name, kind, mean=tuple(mean.tolist()), std=tuple(std.tolist()), usual=usual)


def check_complete(values: Sequence[Any], where: str) -> None:
    """Raise ``ValueError`` where an image has no value, or one that is not finite.

    Args:
        values: one for each image: names, numbers or vectors.
        where: what they are, for the message.
    """

    def bad(value: Any) -> bool:
        if value is None or (isinstance(value, str) and not value):
            return True
        if isinstance(value, (list, tuple, np.ndarray)):
            return any(bad(v) for v in value)
        return not isinstance(value, str) and not math.isfinite(value)

    missing = [i for i, value in enumerate(values) if bad(value)]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(values)} rows have no value or NaN, e.g. row {missing[0]}: fill them in, or remove "
            "these rows"
        )


def _not_constant(distinct: Sequence[Any], where: str) -> None:
    if len(distinct) == 1:
        raise ValueError(
            f"{where}: every row has the same value, which says nothing about an image: leave the column out"
        )


def _plain(value: Any) -> str:
    """Return ``"1"`` for 1, 1.0, True, "1.0" and "true"."""
    words = {"true": "1", "false": "0", "yes": "1", "no": "0"}
    text = str(value).strip().lower()
    if text in words:
        return words[text]
    try:
        return f"{float(text):g}"
    except ValueError:
        return str(value)


def _sequence(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        return value.split()
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"got {name}={value!r}; expected a finite number")
    return number
