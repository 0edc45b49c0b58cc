"""What two evaluations must share before their numbers may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnivae.metrics.evaluation import Evaluation

#: Settings that change what a metric means, beyond its version.
DECISIVE = {"nll": "num_samples_nll"}


def check_inputs(a: Evaluation, b: Evaluation, *, common: bool) -> list[str]:
    """Return the keys of the images to compare.

    Args:
        a: an evaluation.
        b: the other.
        common: accept that one has images which the other has not.

    Returns:
        Keys in sorted order.

    Raises:
        ValueError: where the images or what happened to them differ, or fewer than two are common; says which.
    """
    first, second = a.card["data"], b.card["data"]
    if first["inputs_are"] != second["inputs_are"]:
        raise ValueError(
            "one card lists hashes of files and the other hashes of tensors, so their images cannot be told to be the same; "
            "evaluate both with `omnivae evaluate`"
        )
    different = _different(first["preprocessing"], second["preprocessing"])
    if different:
        raise ValueError(f"the images were prepared differently: {different}; evaluate both the same way")
    keys = sorted(a.inputs.keys() & b.inputs.keys())
    if not common and a.inputs.keys() != b.inputs.keys():
        only = [
            f"{len(mine.keys() - theirs.keys())} only in {side}, such as {min(mine.keys() - theirs.keys())!r}"
            for side, mine, theirs in (("A", a.inputs, b.inputs), ("B", b.inputs, a.inputs))
            if mine.keys() - theirs.keys()
        ]
        raise ValueError(
            f"the cards are of different images: {len(keys)} in common, {', '.join(only)}; evaluate both on the same images"
            + (", or say --common to compare those" if len(keys) > 1 else "")
        )
    changed = [key for key in keys if a.inputs[key] != b.inputs[key]]
    if changed:
        names = ", ".join(repr(key) for key in changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise ValueError(
            f"{len(changed)} of {len(keys)} images have the same name and another content: {names}; evaluate both on the "
            "same images"
        )
    if len(keys) < 2:
        raise ValueError(
            f"the cards have {len(keys)} image{'s' * (len(keys) != 1)} in common; a paired test needs two or more"
        )
    return keys


def comparable_metrics(a: Evaluation, b: Evaluation, metrics: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the metrics that can be compared, and a sentence for each that cannot.

    Args:
        a: an evaluation.
        b: the other.
        metrics: those asked for; by default all that both have.

    Returns:
        Names, and sentences.

    Raises:
        ValueError: for metrics of different versions, or a metric that was asked for and cannot be compared.
    """
    chosen, notes = [], []
    for name in metrics or [name for name in a.metrics if name in b.metrics]:
        first, second = a.card["metrics"][name], b.card["metrics"][name]
        if first["version"] != second["version"]:
            raise ValueError(
                f"{name} is version {first['version']} in A and {second['version']} in B, which are different numbers; evaluate "
                "the older one again, or choose other metrics"
            )
        reason = _incomparable(name, a, b)
        if reason is None:
            chosen.append(name)
        elif metrics is not None:
            raise ValueError(f"{name} cannot be compared: {reason}")
        else:
            notes.append(f"{name} is left out: {reason}")
    for side, mine, theirs in (("A", a, b), ("B", b, a)):
        only = [name for name in mine.metrics if name not in theirs.metrics]
        if only and metrics is None:
            notes.append(f"only {side} has {', '.join(only)}")
    return chosen, notes


def remarks(a: Evaluation, b: Evaluation, images: int) -> list[str]:
    """Return what does not forbid a comparison and should be known.

    Args:
        a: an evaluation.
        b: the other.
        images: how many are compared.
    """
    notes = []
    if images != a.images or images != b.images:
        notes.append(f"{images:,} images in common, of {a.images:,} in A and {b.images:,} in B")
    first, second = a.card["data"], b.card["data"]
    same_range = a.card["model"]["value_range"] == b.card["model"]["value_range"]
    if same_range and first["inputs_hash"] == second["inputs_hash"] and first["pixels_hash"] != second["pixels_hash"]:
        notes.append("the same files gave other pixels: the two machines have different image decoders")
    environment = _different(a.card["environment"], b.card["environment"])
    if environment:
        notes.append(f"computed differently: {environment}")
    if a.card["seed"] != b.card["seed"]:
        notes.append(f"the posterior noise has seed {a.card['seed']} in A and {b.card['seed']} in B")
    if a.card["model"]["hash"] is not None and a.card["model"]["hash"] == b.card["model"]["hash"]:
        notes.append("A and B are the same model")
    return notes


# -- inside


def _incomparable(name: str, a: Evaluation, b: Evaluation) -> str | None:
    known = a.card["metrics"][name]["comparable"]
    first, second = a.card["model"], b.card["model"]
    setting = DECISIVE.get(name)
    if setting is not None and a.settings[setting] != b.settings[setting]:
        return f"{setting} is {a.settings[setting]} in A and {b.settings[setting]} in B"
    if known == "always":
        return None
    if known == "likelihood" and first["discrete"] != second["discrete"]:
        kinds = {True: "probabilities", False: "densities"}
        return f"A's likelihood gives {kinds[first['discrete']]} and B's {kinds[second['discrete']]}"
    if first["value_range"] != second["value_range"] and not (known == "likelihood" and first["discrete"]):
        return f"A's images have values in {first['value_range']} and B's in {second['value_range']}"
    return None


def _different(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str:
    a, b = a or {}, b or {}
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return ", ".join(f"{name} is {a.get(name)} in A and {b.get(name)} in B" for name in names)
