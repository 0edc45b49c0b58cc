"""What a layout is: how one family of autoencoders names its weights, and what those say about its architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
#: Patterns and what replaces them, applied in turn to a name.
Rules = Sequence[tuple[str, str]]
Config = dict[str, Any]

LAPLACE: Config = {"component": "LaplaceLikelihood", "scale": 1.0}
STANDARD_NORMAL: Config = {"component": "StandardNormal"}


class NotThisLayout(ValueError):
    """The weights are not of this layout, or of a variant that it cannot express; says why."""


@dataclass(frozen=True)
class Alternative:
    """Another function that the same weights fit.

    Attributes:
        label: what is different, such as "nearest".
        config: configuration of a model that computes it.
        names: their names -> its names.
    """

    label: str
    config: Config
    names: Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """Something that weights cannot reveal.

    Attributes:
        name: such as "up-sampling".
        assumed: what was taken.
        why: on what grounds.
        alternatives: other functions of the same weights.
        argument: constructor argument of the original that decides it; the original that we compare with is built with the
            same assumption, unless the argument is stated.
    """

    name: str
    assumed: str
    why: str
    alternatives: tuple[Alternative, ...] = ()
    argument: str = ""


@dataclass(frozen=True)
class Architecture:
    """An architecture, read from names and shapes.

    Attributes:
        layout: name of the layout, such as "MONAI AutoencoderKlMaisi".
        arguments: constructor arguments of the original class.
        config: configuration of our model of the same function.
        names: their names (without ``prefix``) -> ours.
        facts: what to print about it, in words.
        recipe: the section ``model`` of a YAML file, where a recipe of ours builds it.
        statistics: facts that go with the model (intensity contract, ...).
        splits: their names -> ours, which are equal parts of theirs along its first axis.
        prefix: in front of their names.
        unused: their names that encoding and decoding do not need -> why.
        made: our names that the file does not have -> "identity" or "zeros", which change nothing.
        choices: what the weights cannot reveal.
        stated: constructor arguments that the file or the user stated.
    """

    layout: str
    arguments: Mapping[str, Any]
    config: Config
    names: Mapping[str, str]
    facts: Mapping[str, str]
    recipe: Config | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prefix: str = ""
    unused: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    stated: frozenset[str] = frozenset()

    def is_settled(self, choice: Choice) -> bool:
        """Return whether being equal to the original says anything about a choice: not where both rest on one assumption."""
        return not choice.argument or choice.argument in self.stated

    @property
    def assumptions(self) -> dict[str, str]:
        """What the original was built with and nothing has stated: argument to value."""
        return {c.argument: c.assumed for c in self.choices if not self.is_settled(c)}


@dataclass(frozen=True)
class Reference:
    """The original implementation with the weights in it.

    Attributes:
        name: library, version and class.
        module: holds the weights.
        encode: image -> mean and log-variance (``None`` where it has none).
        decode: latent -> image.
        names: names in the file -> names in ``module``, where it is another library's with the weights renamed.
    """

    name: str
    module: nn.Module
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    decode: Callable[[Tensor], Tensor]
    names: Mapping[str, str] = field(default_factory=dict)


class Layout:
    """Base of the layouts; subclasses register by being defined.

    Attributes:
        name: of the layout.
        sentinel: pattern of a name that every file of the layout has.
        related: pattern of a name of a layout whose weights can be renamed into this one, on demand only.
        grammar: pattern of all its names; the share that fits tells how near a file of another layout is.
        library: module that holds the original implementation.
        install: how to get it.
    """

    name: str = ""
    sentinel: str = ""
    related: str = ""
    grammar: str = ""
    library: str = ""
    install: str = ""

    known: list[Layout] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            Layout.known.append(cls())

    def prefix(self, names: Sequence[str], *, demanded: bool = False) -> str | None:
        """Return what stands in front of the layout's names, ``None`` where its sentinel is not found."""
        sentinel = f"{self.sentinel}|{self.related}" if demanded and self.related else self.sentinel
        pattern = re.compile(rf"^(|.*\.)(?:{sentinel})$")
        found = sorted({m[1] for name in names if (m := pattern.match(name))}, key=len)
        return found[0] if found else None

    def wrote(self, architecture: Architecture) -> bool:
        """Return whether an architecture was read by this layout."""
        return architecture.layout == self.name

    def similarity(self, names: Sequence[str]) -> float:
        """Return the share of names that follow the grammar, 0 to 1."""
        pattern = re.compile(rf"(?:^|\.)(?:{self.grammar})$")
        return sum(bool(pattern.search(name)) for name in names) / max(1, len(names))

    def read(self, shapes: Shapes, stated: Mapping[str, Any]) -> Architecture:
        """Return the architecture that names and shapes describe.

        Args:
            shapes: name (without prefix) -> shape.
            stated: constructor arguments that the file or the user states, by the original's names.

        Returns:
            The architecture.

        Raises:
            NotThisLayout: says what does not fit.
        """
        raise TypeError(f"{type(self).__name__} does not define read")

    def reference(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Reference:
        """Return the original implementation with the weights loaded.

        Args:
            architecture: what was read.
            tensors: name (without prefix) -> tensor.

        Returns:
            The original.

        Raises:
            ImportError: where the library is not installed.
        """
        raise ImportError(f"there is no original implementation of {self.name} to compare with")


def translate(name: str, rules: Rules) -> str:
    """Apply patterns to a name, all of them in turn.

    Args:
        name: their name.
        rules: pattern, replacement.

    Returns:
        Our name.
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def indices(shapes: Shapes, pattern: str) -> list[int]:
    """Return the sorted numbers that one group of a pattern matches among the names."""
    return sorted({int(m[1]) for name in shapes if (m := re.match(pattern, name))})


def need(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Return a shape, or say that the tensor is not there."""
    if name not in shapes:
        raise NotThisLayout(f"there is no tensor {name}")
    return shapes[name]


def groups_for(widths: Sequence[int], stated: Mapping[str, Any]) -> int:
    """Return the groups of group normalisation: as stated, or 32, or the largest power of two that divides all widths."""
    for key in ("norm_num_groups", "num_groups"):
        if key in stated:
            return int(stated[key])
    groups = 32
    while any(width % groups for width in widths):
        groups //= 2
    return groups


def value_range(stated: Mapping[str, Any]) -> list[float]:
    """Return the lowest and highest pixel value: as stated, or -1 and 1."""
    given = stated.get("value_range", (-1.0, 1.0))
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        raise NotThisLayout(f"got value_range={given!r}; expected two numbers, as in --set value_range=[0,1]")
    return [float(given[0]), float(given[1])]


def published(stated: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the factors by which the publisher scales latents, ``None`` where nothing is stated."""
    found = {k: float(stated[k]) for k in ("scaling_factor", "shift_factor") if isinstance(stated.get(k), (int, float))}
    return found or None


def original(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a module of another library with weights in it, in evaluation mode; strictly."""
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, strict=True)
    return module.eval()


def without_randomness(build: Callable[[], Any]) -> Any:
    """Return what a function builds, without moving the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        return build()
