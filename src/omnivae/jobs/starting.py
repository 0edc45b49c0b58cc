"""Starting a run from weights: all of them, or what has to change so that they fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from omnivae.component import KEY, to_config
from omnivae.jobs.config import read_yaml
from omnivae.models import VAE
from omnivae.models.storage import find_model, load_exactly

log = logging.getLogger(__name__)

#: In a model directory of other people's weights: the configuration to go on training with.
TRAINING = "training.yaml"

Rebuild = Callable[[Mapping[str, Any]], VAE]

#: Path of a part, name of its argument, value in the checkpoint, value here.
Difference = tuple[str, str, Any, Any]

#: Differences that a message names at most.
_MOST = 6
#: Arguments that are no part of what a model of the same weights computes, or that say how it is used.
_ASIDE = (
    *("image_size", "input_resolution", "value_range", "modality", "match_input"),
    *("num_splits", "dim_split", "norm_float16", "stack_size", "maisi_stack_size", "overlap", "scaling_factor"),
)


def configuration_of(checkpoint: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return what a model was trained with, or what the doctor of checkpoints proposes: its sections model, losses and data.volume.

    Args:
        checkpoint: a run, the model of one, or a model directory.

    Returns:
        The file and the sections, or ``None`` where nothing says how the model was made.

    Raises:
        FileNotFoundError: where there is no model.
    """
    find_model(checkpoint)
    path = Path(checkpoint)
    parent = [path.parent / "config.yaml"] if path.name == "model" else []
    for file in (path / "config.yaml", path / TRAINING, *parent):
        if not file.is_file():
            continue
        values = read_yaml(str(file))
        sections = {name: values[name] for name in ("model", "losses") if values.get(name)}
        if "recipe" not in sections.get("model", {}):
            continue
        volume = (values.get("data") or {}).get("volume")
        return file, {**sections, "data": {"volume": volume}} if volume else sections
    return None


def start_from(model: VAE, start: VAE, source: str, *, rebuild: Rebuild, options: Mapping[str, Any]) -> None:
    """Load the weights of one model into another, or say which options of the configuration stand in the way.

    Weights that fit by name and shape may still have been made by another function (groups of a norm, an activation, ...):
    options that differ then go to the log as a warning.

    Args:
        model: built from a configuration.
        start: holds the weights.
        source: its directory, for the message.
        rebuild: builds the model with some of its options changed.
        options: arguments of the model's recipe, and their defaults.

    Raises:
        ValueError: when not every tensor fits; nothing is loaded. Names what differs between the two models and, where they
            are found, the options that make the weights fit.
    """
    found = [row for row in _differences({"model": to_config(start)}, {"model": to_config(model)}, "") if _matters(row)]
    changes = _changes(found, to_config(start), options)
    try:
        load_exactly(model, start.state_dict(), source)
    except ValueError as error:
        advice = _advice(found, changes)
        if changes and _fits({name: a for name, (a, _) in changes.items()}, start, rebuild):
            given = " ".join(f"--model.{name} {_quoted(a)}" for name, (a, _) in changes.items())
            raise ValueError(
                f"the weights in {source} do not fit the model of this configuration. {advice}. They fit with {given}"
            ) from None
        raise ValueError(f"{error}. {advice}") from None
    if found:
        log.warning(
            "the weights in %s fit, but come from a model of another function. %s", source, _advice(found, changes)
        )


def _changes(
    found: Sequence[Difference], theirs: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ: their value and ours."""
    changes: dict[str, tuple[Any, Any]] = {}
    # What several components are told, such as the widths of encoder and decoder, is one option, and named for the encoder.
    of_encoder = theirs.get("encoder", {})
    for where, name, a, b in found:
        part = where.removeprefix("model").removeprefix(".").partition(".")[0]
        if name == KEY:
            continue
        own = f"{part}_{name}"
        if own in options:
            if options[own] is not None or a != of_encoder.get(name):  # by default as the encoder's
                changes.setdefault(own, (a, b))
        elif name in options and (part in ("", "encoder") or name not in of_encoder):
            changes.setdefault(name, (a, b))
    return changes


def _advice(found: Sequence[Difference], changes: Mapping[str, tuple[Any, Any]]) -> str:
    kinds = [f"its {where} is {a}, here {b}" for where, name, a, b in found if name == KEY]
    if kinds:
        shown = ", ".join(kinds[:_MOST])
        return f"The checkpoint holds another kind of model ({shown}): choose the recipe and the parts that it was made with"
    rows = [(f"model.{name}", a, b) for name, (a, b) in changes.items()] or [(f"{w}.{n}", a, b) for w, n, a, b in found]
    if not rows:
        return "Both were built with the same options"
    more = f"; and {len(rows) - _MOST} more" if len(rows) > _MOST else ""
    shown = "; ".join(
        f"{name} is {json.dumps(b)} here and {json.dumps(a)} in the checkpoint" for name, a, b in rows[:_MOST]
    )
    return f"What differs: {shown}{more}"


def _matters(difference: Difference) -> bool:
    """Whether an option is of the function, and not of the images or of how much is computed at once."""
    where, name, *_ = difference
    return name not in _ASIDE and not where.removeprefix("model.").startswith("likelihood")


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> Iterator[Difference]:
    """Yield where two configurations differ: path, argument, their value, our value."""
    for name in dict.fromkeys([*theirs, *ours]):
        a, b = theirs.get(name), ours.get(name)
        path = f"{where}.{name}".lstrip(".")
        kinds = [value.get(KEY) if isinstance(value, Mapping) else None for value in (a, b)]
        if kinds[0] != kinds[1]:
            yield (
                path.removeprefix("model."),
                KEY,
                f"a {kinds[0]}" if kinds[0] else "none",
                f"a {kinds[1]}" if kinds[1] else "none",
            )
        elif isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, path)
        elif a != b and not _says_the_same(name, a, b, ours):
            yield where, name, a, b


def _says_the_same(name: str, a: Any, b: Any, component: Mapping[str, Any]) -> bool:
    """Whether one side leaves out what the other spells out: as many channels out as in, attention nowhere."""
    if a is not None and b is not None:
        return False
    told = b if a is None else a
    return told == component.get("in_channels") if name == "out_channels" else isinstance(told, list) and not any(told)


def _fits(changes: Mapping[str, Any], start: VAE, rebuild: Rebuild) -> bool:
    try:
        with torch.device("meta"):
            made = rebuild(changes).state_dict()
    except (ValueError, TypeError):  # options that contradict each other fit nothing
        return False
    return {k: t.shape for k, t in made.items()} == {k: t.shape for k, t in start.state_dict().items()}


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"'{text}'" if any(c in text for c in '[{"') else text
