"""From names and shapes to an architecture, or to the nearest known one and what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from omnivae.component import from_config, suggestion
from omnivae.files import write_atomic
from omnivae.hub.coverage import Coverage, coverage, percent
from omnivae.hub.layouts import Architecture, Layout, NotThisLayout
from omnivae.hub.reading import Checkpoint
from omnivae.models.vae import VAE


def recognise(
    checkpoint: Checkpoint, *, layout: str | None = None, settings: Mapping[str, Any] | None = None
) -> Architecture:
    """Say which architecture a checkpoint's weights are of.

    Args:
        checkpoint: what :func:`read_checkpoint` returned.
        layout: name of a layout to try instead of all.
        settings: constructor arguments that the weights cannot reveal, by the original's names; before those that the
            file states itself.

    Returns:
        The architecture: our configuration of it, the map of names, what was assumed.

    Raises:
        ValueError: for weights of no known layout (names the nearest one and what differs), and for settings that the layout
            does not have or that the weights contradict.
    """
    stated = _Noted(checkpoint.hyper_parameters | dict(settings or {}))
    names = list(checkpoint.tensors)
    candidates = (
        [_layout(layout)]
        if layout
        else sorted(Layout.known, key=lambda known: (-known.similarity(names), -len(known.sentinel)))
    )
    reasons = []
    for known in candidates:
        prefix = known.prefix(names, demanded=layout is not None)
        if prefix is None:
            continue
        inside = {n.removeprefix(prefix): tuple(t.shape) for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
        try:
            found = known.read(inside, stated)
            _check(found, inside)
        except NotThisLayout as error:
            reasons.append(f"{known.name}: {error}")
            continue
        _check_settings(settings or {}, found, stated.asked)
        outside = {n: "beside the autoencoder" for n in names if not n.startswith(prefix)}
        unused = {prefix + n: why for n, why in found.unused.items()} | outside
        return _replaced(found, prefix=prefix, unused=unused, stated=frozenset(stated))
    raise ValueError(_unknown(checkpoint, candidates, reasons))


class _Noted(dict[str, Any]):
    """What is stated, and which of it a layout has asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value as a dictionary does."""
        self.asked.add(name)
        return super().get(name, default)


def _check_settings(settings: Mapping[str, Any], found: Architecture, asked: set[str]) -> None:
    """Refuse settings that would change nothing."""
    for name, value in settings.items():
        if name in asked:
            continue
        if name not in found.arguments:
            known = sorted(asked)
            raise ValueError(
                f"got the setting {name}={value!r}{suggestion(name, known)}; {found.layout} takes {', '.join(known)}"
            )
        told = found.arguments[name]
        if (list(told) if isinstance(told, tuple) else told) != (list(value) if isinstance(value, tuple) else value):
            raise ValueError(f"got the setting {name}={value!r}, and the weights have {name}={told!r}: leave it out")


def converted(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Tensor]:
    """Return a checkpoint's weights under our names and in our shapes.

    Args:
        checkpoint: the weights.
        architecture: what :func:`recognise` returned for them.

    Returns:
        Our names to tensors, float32 where they were floating point; what was made up is made here.
    """
    shapes = _shapes(architecture)
    tensors = {}
    for theirs, ours in architecture.names.items():
        tensor = checkpoint.tensors[architecture.prefix + theirs]
        tensors[ours] = (tensor.float() if tensor.is_floating_point() else tensor).reshape(shapes[ours])
    for theirs, parts in architecture.splits.items():
        whole = checkpoint.tensors[architecture.prefix + theirs].float()
        for ours, part in zip(parts, whole.chunk(len(parts)), strict=True):
            tensors[ours] = part.reshape(shapes[ours])
    for ours, kind in architecture.made.items():
        tensors[ours] = torch.zeros(shapes[ours])
        if kind == "identity":
            n = shapes[ours][0]
            tensors[ours] = torch.eye(n).reshape(shapes[ours])
    return tensors


def under(architecture: Architecture, config: Mapping[str, Any], names: Mapping[str, str]) -> Architecture:
    """Return the architecture with another function of the same weights."""
    return _replaced(architecture, config=dict(config), names=dict(names))


def write_key_map(architecture: Architecture, checkpoint: Checkpoint, path: Any) -> None:
    """Write their names, our names and the shapes as JSON.

    Args:
        architecture: what was recognised.
        checkpoint: the weights.
        path: where.
    """
    shapes = _shapes(architecture)
    rows = {
        architecture.prefix + theirs: {
            "name": ours,
            "shape": list(checkpoint.tensors[architecture.prefix + theirs].shape),
            "shape_here": list(shapes[ours]),
        }
        for theirs, ours in architecture.names.items()
    }
    for theirs, parts in architecture.splits.items():
        shape = list(checkpoint.tensors[architecture.prefix + theirs].shape)
        rows[architecture.prefix + theirs] = {
            "names": list(parts),
            "shape": shape,
            "shape_here": [list(shapes[ours]) for ours in parts],
        }
    content = {
        "layout": architecture.layout,
        "arguments": dict(architecture.arguments),
        "names": rows,
        "made": dict(architecture.made),
        "unused": dict(architecture.unused),
    }
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def build(architecture: Architecture) -> VAE:
    """Return our model of an architecture, with random weights."""
    with torch.random.fork_rng(devices=[]):
        model: VAE = from_config(architecture.config)
    model.statistics = model.statistics | dict(architecture.statistics)
    return model


def _replaced(architecture: Architecture, **changes: Any) -> Architecture:
    from dataclasses import replace

    return replace(architecture, **changes)


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = from_config(architecture.config)
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def _check(found: Architecture, inside: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every tensor has a place of its size, and every place a tensor."""
    try:
        shapes = _shapes(found)
    except (ValueError, TypeError) as error:
        raise NotThisLayout(f"no model can be built from its shapes ({error})") from error
    problems = []
    for theirs in inside:
        ours = found.names.get(theirs)
        if theirs in found.unused:
            continue
        if theirs in found.splits:
            parts = [shapes.get(part, ()) for part in found.splits[theirs]]
            whole = (sum(part[0] for part in parts if part), *parts[0][1:])
            if not _same_numbers(inside[theirs], whole):
                problems.append(f"{theirs} has shape {list(inside[theirs])}, expected {list(whole)}")
        elif ours not in shapes:
            problems.append(f"{theirs} has no place in it")
        elif not _same_numbers(inside[theirs], shapes[ours]):
            problems.append(f"{theirs} has shape {list(inside[theirs])}, expected {list(shapes[ours])}")
    filled = set(found.names.values()) | set(found.made) | {part for parts in found.splits.values() for part in parts}
    problems += [f"nothing fills {ours}" for ours in shapes if ours not in filled]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise NotThisLayout("; ".join(problems[:3]) + more)


def _same_numbers(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether shapes agree up to axes of length one at the end (a 1x1 convolution is a linear map)."""
    a, b = list(theirs), list(ours)
    while len(a) > len(b) and a[-1] == 1:
        a.pop()
    while len(b) > len(a) and b[-1] == 1:
        b.pop()
    return a == b


def _layout(name: str) -> Layout:
    words = {known.name.lower(): known for known in Layout.known}
    key = name.lower()
    fits = [words[key]] if key in words else [known for full, known in words.items() if full.endswith(f" {key}")]
    if len(fits) != 1:
        raise ValueError(f"unknown layout {name!r}; expected one of {', '.join(known.name for known in Layout.known)}")
    return fits[0]


def _unknown(checkpoint: Checkpoint, candidates: Sequence[Layout], reasons: Sequence[str]) -> str:
    names = list(checkpoint.tensors)
    nearest = max(candidates, key=lambda known: known.similarity(names))
    share = nearest.similarity(names)
    pattern = re.compile(rf"(?:^|\.)(?:{nearest.grammar})$")
    odd = [name for name in names if not pattern.search(name)]
    text = f"the weights in {checkpoint.path} ({len(names)} tensors, such as {', '.join(names[:3])}) are of no known layout; "
    if share == 0:
        return text + f"none of their names is like those of {', '.join(known.name for known in candidates)}"
    text += f"nearest is {nearest.name}, whose names {percent(share)} of them follow"
    if odd:
        text += f" ({', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''} do not)"
    return text + (f". What differs: {'; '.join(reasons)}" if reasons else "")


def report_coverage(checkpoint: Checkpoint, architecture: Architecture) -> Coverage:
    """Return how much of our model the converted weights fill."""
    with torch.device("meta"):
        model = from_config(architecture.config)
    return coverage(converted(checkpoint, architecture), model)
