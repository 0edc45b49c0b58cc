"""How much of a model a set of weights fills: in tensors and, because those mislead, in parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnivae.hub.reading import is_statistic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """What happens when weights are loaded into a model by name and shape.

    Attributes:
        loaded: names that fit.
        mismatched: name -> shape in the file, shape in the model.
        missing: names of the model that the file lacks.
        unexpected: names of the file that the model lacks.
        parameters: numbers in all of the model's tensors but the statistics of its batch normalisations.
        parameters_loaded: those that the file fills.
    """

    loaded: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    parameters: int
    parameters_loaded: int

    @property
    def tensors(self) -> int:
        """Tensors of the model."""
        return len(self.loaded) + len(self.mismatched) + len(self.missing)

    @property
    def random(self) -> int:
        """Tensors of the model that keep what they were initialised with."""
        return len(self.mismatched) + len(self.missing)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model is filled and none of the file is left over."""
        return not self.random and not self.unexpected

    @property
    def fraction(self) -> float:
        """Share of the model's parameters that is filled, 0 to 1."""
        return self.parameters_loaded / self.parameters if self.parameters else 0.0

    def summary(self) -> str:
        """Return the counts, one a line."""
        lines = [
            f"Loaded {len(self.loaded)}/{self.tensors} compatible weights: {self.parameters_loaded:,} of "
            f"{self.parameters:,} parameters ({percent(self.fraction)})"
        ]
        if self.mismatched:
            lines.append(f"Skipped {len(self.mismatched)} incompatible keys (shape mismatch)")
        if self.unexpected:
            lines.append(f"Ignored {len(self.unexpected)} keys of the file that the model does not have")
        if self.random:
            lines.append(f"{self.random} keys initialized randomly")
        return "\n".join(lines)

    def listing(self, most: int = 10) -> str:
        """Return the summary and the names behind it, at most so many of each kind."""
        lines = [self.summary()]
        shapes = [f"{name}: {list(a)} in the file, {list(b)} in the model" for name, (a, b) in self.mismatched.items()]
        for what, names in (
            ("of another shape", shapes),
            ("missing in the file", list(self.missing)),
            ("unknown to the model", list(self.unexpected)),
        ):
            if names:
                more = f"\n  and {len(names) - most} more" if len(names) > most else ""
                lines.append(f"{what}:\n  " + "\n  ".join(names[:most]) + more)
        return "\n".join(lines)

    def to_data(self) -> dict[str, Any]:
        """Return plain data for a JSON file."""
        return {
            "tensors": self.tensors,
            "loaded": len(self.loaded),
            "parameters": self.parameters,
            "parameters_loaded": self.parameters_loaded,
            "mismatched": {name: [list(a), list(b)] for name, (a, b) in self.mismatched.items()},
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
        }


def percent(fraction: float) -> str:
    """Return a share with as many digits as show that it is not 0 and not 100 %.

    Args:
        fraction: 0 to 1.

    Example:
        >>> percent(1.0), percent(0.000103), percent(0.38)
        ('100 %', '0.010 %', '38.0 %')
    """
    if fraction in (0.0, 1.0):
        return f"{100 * fraction:.0f} %"
    text = f"{100 * fraction:.1f}" if 0.001 <= fraction <= 0.999 else f"{100 * fraction:.3f}"
    return f"{text} %"


def coverage(tensors: Mapping[str, Tensor], model: nn.Module) -> Coverage:
    """Compare weights with a model by name and shape; nothing is loaded.

    Args:
        tensors: name to tensor.
        model: where they would go; the meta device will do.

    Returns:
        What fits and what does not.

    Example:
        >>> coverage({"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}, nn.Linear(3, 2)).summary().splitlines()[0]
        'Loaded 1/2 compatible weights: 6 of 8 parameters (75.0 %)'
    """
    own = model.state_dict()
    loaded = tuple(k for k, v in own.items() if k in tensors and tensors[k].shape == v.shape)
    fits = set(loaded)
    return Coverage(
        loaded=loaded,
        mismatched={
            k: (tuple(tensors[k].shape), tuple(v.shape)) for k, v in own.items() if k in tensors and k not in fits
        },
        missing=tuple(k for k in own if k not in tensors),
        unexpected=tuple(k for k in tensors if k not in own),
        parameters=sum(v.numel() for k, v in own.items() if not is_statistic(k)),
        parameters_loaded=sum(own[k].numel() for k in loaded if not is_statistic(k)),
    )


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, partial: bool = False) -> Coverage:
    """Load weights into a model: all of them, or, if that is asked for, what fits, with a report.

    Args:
        model: where they go.
        tensors: name to tensor.
        source: of the weights, for messages.
        partial: take what fits by name and shape; the counts and names go to the log as a warning.

    Returns:
        What was loaded. A model with a ``statistics`` dictionary remembers a partial load there, and its model card says so.

    Raises:
        ValueError: when not everything fits and ``partial`` is false (nothing is loaded then), or nothing at all fits.
    """
    found = coverage(tensors, model)
    if not found.loaded:
        raise ValueError(
            f"no tensor of {source} fits this {type(model).__name__} by name and shape; nothing was loaded"
        )
    if not found.complete and not partial:
        raise ValueError(
            f"{source} does not fill this {type(model).__name__}, and nothing was loaded. {found.listing(3)}\n"
            "Load what fits with partial=True, or let `omnivae inspect-checkpoint` say which architecture the weights are of"
        )
    with torch.no_grad():
        own = model.state_dict()
        for name in found.loaded:
            own[name].copy_(tensors[name])
    if not found.complete:
        log.warning("%s, loaded in part:\n%s", source, found.listing())
        if isinstance(getattr(model, "statistics", None), dict):
            model.statistics = model.statistics | {  # type: ignore[assignment,operator]
                "loaded_in_part": {"source": source, **found.to_data()}
            }
    return found
