"""The card of an evaluation: what was measured, on what, with which versions, so that two evaluations can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnivae.files import write_atomic
from omnivae.metrics.registry import Metric

#: Version of the card's layout.
FORMAT = 1
#: Digits of a hash that are kept for each image, and shown of a whole list.
SHORT, SHOWN = 16, 12


@dataclass(frozen=True)
class Provenance:
    """What only the caller of :func:`~omnivae.metrics.evaluate` knows about the model and the images.

    Attributes:
        model_hash: SHA-256 over configuration and weights.
        recipe: name of the recipe that built the model.
        data: name of the data.
        split: which part of it.
        preprocessing: everything that happens to an image between its file and the model, ready for JSON.
    """

    model_hash: str | None = None
    recipe: str | None = None
    data: str | None = None
    split: str | None = None
    preprocessing: Mapping[str, Any] | None = None


def make_card(
    model: Any,
    metrics: Sequence[Metric],
    *,
    inputs: Mapping[str, str],
    pixels: Mapping[str, str],
    stored: bool,
    device: torch.device,
    seed: int,
    provenance: Provenance,
) -> dict[str, Any]:
    """Return the card of one evaluation, ready for JSON.

    Nothing in it depends on the batch size, the order of the images, the number of loading processes, the machine's
    paths or the time.

    Args:
        model: the VAE.
        metrics: what was measured.
        inputs: key of each image to the hash of what is stored, or of its tensors.
        pixels: key of each image to the hash of its tensors.
        stored: whether ``inputs`` are hashes of what is stored.
        device: where it was computed.
        seed: of the posterior noise and the bootstrap.
        provenance: what the caller knows.

    Returns:
        Sections "model", "data", "metrics", "environment", and the numbers "format" and "seed".
    """
    low, high = model.value_range
    likelihood = getattr(model, "likelihood_head", None)
    # The value range belongs to the model: relative metrics of models of two ranges on the same images can be compared.
    preprocessing = {k: v for k, v in (provenance.preprocessing or {}).items() if k != "value_range"}
    return {
        "format": FORMAT,
        "model": {
            "name": type(model).__name__,
            "recipe": provenance.recipe,
            "hash": provenance.model_hash,
            "parameters": sum(p.numel() for p in model.parameters()),
            "likelihood": type(likelihood).__name__,
            "discrete": bool(getattr(likelihood, "discrete", False)),
            "value_range": [low, high],
        },
        "data": {
            "name": provenance.data,
            "split": provenance.split,
            "images": len(inputs),
            "items": "images" if getattr(model, "pixels", True) else "sentences",
            "inputs_hash": hash_of(sorted(inputs.items())),
            "inputs_are": "stored" if stored else "tensors",
            "pixels_hash": hash_of(sorted(pixels.items())),
            "preprocessing": preprocessing if provenance.preprocessing is not None else None,
            "preprocessing_hash": hash_of(preprocessing) if provenance.preprocessing is not None else None,
        },
        "metrics": {
            m.name: {
                "version": m.version,
                "unit": m.unit,
                "better": m.better,
                "comparable": m.comparable,
                "data_range": high - low if m.scope == "reconstruction" else None,
            }
            for m in metrics
        },
        "environment": environment(model, device),
        "seed": seed,
    }


def environment(model: Any, device: torch.device) -> dict[str, Any]:
    """Return what the last digits may depend on: versions, device, precision and the number of threads.

    Args:
        model: the VAE; the types of its parameters are its precision.
        device: where it is.
    """
    from importlib.metadata import version

    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return {
        "omnivae": version("omnivae"),
        "torch": torch.__version__,
        "torchmetrics": version("torchmetrics"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": ", ".join(kinds),
        "num_threads": torch.get_num_threads(),
    }


def hash_of(content: Any) -> str:
    """Return the SHA-256 of something ready for JSON; the order of a mapping's entries does not matter.

    Args:
        content: numbers, strings, lists and mappings.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> hash_of({"a": 1, "b": (2, 3)}) == hash_of({"b": [2, 3], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, content: Any) -> Path:
    """Write JSON to a file, which appears whole or not at all.

    Args:
        path: where; missing folders are created.
        content: without infinite or undefined numbers.

    Returns:
        The path.
    """
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def describe(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the card in a few lines for people.

    Args:
        card: of an evaluation.

    Returns:
        Pairs of a heading and a line.
    """
    model, data, made = card["model"], card["data"], card["environment"]
    name = model["name"] if model["recipe"] in (None, model["name"].lower()) else f"{model['name']} ({model['recipe']})"
    of = f" of {data['name']}" if data["name"] else ""
    split = f" ({data['split']})" if data["split"] else ""
    # Cards from before sentences could be evaluated do not say what they are of.
    items = data.get("items", "images")
    counted = f"{data['images']:,} {items if data['images'] != 1 else items.removesuffix('s')}"
    threads = f"{made['num_threads']} thread{'s' * (made['num_threads'] != 1)}"
    return [
        ("model", _words(f"{name}, {model['parameters']:,} parameters", _hash("sha256", model["hash"]))),
        (
            items,
            _words(
                f"{counted}{of}{split}",
                _hash("inputs", data["inputs_hash"]),
                _hash("preprocessing", data["preprocessing_hash"]),
            ),
        ),
        (
            "made by",
            f"omnivae {made['omnivae']}, torch {made['torch']}, {made['device']}, {made['precision']}, {threads}, "
            f"seed {card['seed']}",
        ),
    ]


def _hash(name: str, value: str | None) -> str:
    return f"{name} {value[:SHOWN]}" if value else ""


def _words(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def shorten(hashes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the hash of each image in so many digits as a card keeps, in the order of the keys.

    Args:
        hashes: pairs of a key and a hash.
    """
    return {key: value[:SHORT] for key, value in sorted(hashes)}
