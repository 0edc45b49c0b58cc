"""The registry of metrics: defining a function under ``@metric`` makes it available to ``evaluate`` by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from omnivae.component import suggestion

Scope = Literal["reconstruction", "inference", "dataset"]
Comparable = Literal["always", "range", "likelihood"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Metric:
    """A named metric and what its number means.

    Attributes:
        name: key in ``METRICS``, on the command line and in the JSON file.
        unit: unit of the value; an empty string where it has none.
        better: which direction is better.
        meaning: one sentence for tables and reports.
        scope: what the function is called with. "reconstruction": ``(reconstruction, x, data_range=...)`` and
            "inference": one :class:`~omnivae.metrics.inference.Inference`, both for one value an image ``[B]``;
            "dataset": one :class:`~omnivae.metrics.inference.LatentStatistics`, for one value altogether.
        function: the implementation. Where images may have a mask, a "reconstruction" metric also takes
            ``mask=`` (``[B, 1, *S]``, 1 where a pixel counts, or ``None``).
        version: of the number's definition. Raised by one whenever the same reconstruction of the same image would give
            another number (beyond rounding); numbers of different versions are never compared.
        comparable: between which models the number can be compared: "always"; "range": of one value range, in whose
            unit it is; "likelihood": of one value range and one kind of likelihood (densities, or probabilities).
        masks: whether the number is right for an image with a mask; the others refuse such images.
        remark: what a reader must know about the number of an image of some shape ``(C, *S)``, or ``None``.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    meaning: str
    scope: Scope
    function: Callable[..., Any]
    version: int = 1
    comparable: Comparable = "always"
    masks: bool = False
    remark: Callable[[Sequence[int]], str | None] | None = None


#: Every metric by name, in the order of definition.
METRICS: dict[str, Metric] = {}


def metric(
    *,
    unit: str,
    better: Literal["higher", "lower"],
    meaning: str,
    scope: Scope = "reconstruction",
    version: int = 1,
    comparable: Comparable = "always",
    masks: bool = False,
    remark: Callable[[Sequence[int]], str | None] | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as the metric of its own name.

    Args:
        unit: unit of the value.
        better: which direction is better.
        meaning: one sentence for tables and reports.
        scope: what the function is called with, see :class:`Metric`.
        version: of the number's definition, see :class:`Metric` for when to raise it.
        comparable: between which models the number can be compared, see :class:`Metric`.
        masks: whether the number is right for an image with a mask, see :class:`Metric`.
        remark: what a reader must know about the number of an image of some shape, see :class:`Metric`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ValueError: when another function already has the name.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        known = METRICS.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ValueError(f"a metric named {name!r} is already defined in {known.function.__module__}; rename one")
        METRICS[name] = Metric(name, unit, better, meaning, scope, function, version, comparable, masks, remark)
        return function

    return register


def resolve(names: Sequence[str]) -> list[Metric]:
    """Return the metrics of these names, each once, in the order given.

    Args:
        names: keys of ``METRICS``.

    Returns:
        The metrics.

    Raises:
        ValueError: for an empty list or an unknown name; suggests the nearest and lists all.
    """
    if isinstance(names, str):
        names = [names]
    if not names:
        raise ValueError(f"got no metric; choose from: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{suggestion(name, METRICS)}; available: {', '.join(METRICS)}")
    return [METRICS[name] for name in dict.fromkeys(names)]


def measurable(names: Sequence[str], model: Any) -> list[str]:
    """Return those of the names that a model has: one whose posterior has no density has no ELBO and no KL.

    For defaults only: a metric that a user asks for is computed, or refused with the reason.

    Args:
        names: keys of ``METRICS``.
        model: a VAE.

    Returns:
        The names, in their order.
    """
    if "density" in getattr(getattr(model, "posterior", None), "provides", {"density"}):
        return list(names)
    return [name for name in names if name not in ("elbo", "nll", "kl", "bits_per_dim", "active_units")]
