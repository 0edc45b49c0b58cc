"""The registry of metrics: defining a function under ``@metric`` makes it available to ``evaluate`` by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from omnivae.component import suggestion

Scope = Literal["reconstruction", "inference", "dataset", "population", "hounsfield"]
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
            "dataset": one :class:`~omnivae.metrics.inference.LatentStatistics`, for one value altogether;
            "population": one :class:`~omnivae.metrics.population.Population`, for an
            :class:`~omnivae.metrics.population.Estimate` over images together; "hounsfield": ``(reconstruction, x)`` in
            Hounsfield units, for models whose values stand for them, one value an image.
        function: the implementation. Where images may have a mask, a "reconstruction" or "hounsfield" metric also
            takes ``mask=`` (``[B, 1, *S]``, 1 where a pixel counts, or ``None``).
        version: of the number's definition. Raised by one whenever the same reconstruction of the same image would give
            another number (beyond rounding); numbers of different versions are never compared.
        comparable: between which models the number can be compared: "always"; "range": of one value range, in whose
            unit it is; "likelihood": of one value range and one kind of likelihood (densities, or probabilities).
        masks: whether the number is right for an image with a mask; the others refuse such images.
        remark: what a reader must know about the number of an image of some shape ``(C, *S)``, or ``None``.
        collect: of a "population" metric, what it needs of each group of images: a function of the
            :class:`~omnivae.metrics.inference.Inference` that returns tensors ``[B, ...]`` by name.
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
    collect: Callable[[Any], Any] | None = None


#: Every metric by name, in the order of definition.
METRICS: dict[str, Metric] = {}
#: Names that stand for several metrics.
GROUPS: dict[str, tuple[str, ...]] = {
    "aggregate": ("mutual_information", "aggregate_kl", "total_correlation", "dimension_wise_kl", "prior_holes"),
    "probes": ("probe_accuracy", "knn_accuracy"),
    "disentanglement": (
        "mig",
        "sap",
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        "factor_vae",
        "beta_vae",
        "modularity",
        "explicitness",
        "irs",
    ),
    "uniformity": ("density_cv", "density_entropy", "density_gini"),
    "equivariance": ("equivariance_shift", "equivariance_flip", "equivariance_rotation", "equivariance_scale"),
    "smoothness": ("interpolation_roughness", "path_length"),
}


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
    collect: Callable[[Any], Any] | None = None,
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
        collect: what a "population" metric needs of each group of images, see :class:`Metric`.

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
        METRICS[name] = Metric(
            name, unit, better, meaning, scope, function, version, comparable, masks, remark, collect
        )
        return function

    return register


def resolve(names: Sequence[str]) -> list[Metric]:
    """Return the metrics of these names, each once, in the order given.

    Args:
        names: keys of ``METRICS`` and of ``GROUPS``.

    Returns:
        The metrics.

    Raises:
        ValueError: for an empty list or an unknown name; suggests the nearest and lists all.
    """
    if isinstance(names, str):
        names = [names]
    if not names:
        raise ValueError(f"got no metric; choose from: {', '.join(METRICS)}")
    known = [*METRICS, *GROUPS]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown metric {name!r}{suggestion(name, known)}; available: {', '.join(known)}")
    return [METRICS[name] for name in dict.fromkeys(part for name in names for part in GROUPS.get(name, (name,)))]


def measurable(names: Sequence[str], model: Any) -> list[str]:
    """Return those of the names that a model has: one whose posterior has no density has no ELBO and no KL.

    For defaults only: a metric that a user asks for is computed, or refused with the reason.

    Args:
        names: keys of ``METRICS``.
        model: a VAE.

    Returns:
        The names, in their order.
    """
    provides = getattr(getattr(model, "posterior", None), "provides", {"density"})
    names = [name for name in names if name not in ("perplexity", "code_usage") or "indices" in provides]
    names = [name for name in names if name != "class_accuracy" or hasattr(model, "classify")]
    names = [name for name in names if name != "stack_boundary" or _has_boundaries(model)]
    if "density" in provides:
        return list(names)
    return [
        name for name in names if name not in ("elbo", "nll", "kl", "bits_per_dim", "active_units", "likelihood_regret")
    ]


def _has_boundaries(model: Any) -> bool:
    """Return whether the clips that a model was trained on pass from one stack of frames to the next."""
    size: Any = model.statistics.get("image_size") if hasattr(model, "boundaries") else None
    return bool(size) and bool(model.boundaries(size[0]))
