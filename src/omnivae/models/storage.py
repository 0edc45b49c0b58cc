"""Model directories: ``config.json``, ``model.safetensors``, ``statistics.json`` and a model card. No pickle, no imports."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnivae.component import from_config, to_config
from omnivae.files import write_atomic

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, STATISTICS, CARD = "config.json", "model.safetensors", "statistics.json", "README.md"
FORMAT = 1


def save_model(model: Any, directory: Path) -> None:
    """Write a model directory; every file appears whole or not at all.

    Args:
        model: a component that is an ``nn.Module``.
        directory: created where missing.
    """
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to("cpu").contiguous().clone() for name, t in model.state_dict().items()}
    write_atomic(directory / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    config = {"format": FORMAT, "model": to_config(model)}
    write_atomic(directory / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    write_atomic(directory / STATISTICS, (json.dumps(model.statistics, indent=2) + "\n").encode())
    write_atomic(directory / CARD, _card(model).encode())


def load_model(directory: str | Path) -> Any:
    """Build the model that a directory describes and load its weights, in evaluation mode.

    Args:
        directory: a model directory, or a run that holds one in ``model/``.

    Returns:
        The model.

    Raises:
        FileNotFoundError: when there is no model there.
        ValueError: when weights and configuration do not fit; names the first keys and shapes that differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = find_model(directory)
    config = _read_json(path / CONFIG)
    if not isinstance(config.get("model"), dict):
        raise ValueError(f"{path / CONFIG} is not a model configuration: its 'model' entry is missing or no component")
    if config.get("format", FORMAT) > FORMAT:
        raise ValueError(
            f"{path} was written by a newer omnivae (format {config['format']}, this one reads {FORMAT}): upgrade omnivae"
        )
    # Initialising weights that are about to be overwritten must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model: Any = from_config(config["model"])
    if not (isinstance(model, nn.Module) and hasattr(model, "encode")):
        raise ValueError(f"{path / CONFIG} describes a {type(model).__name__}, which is not a model")
    try:
        tensors = load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is damaged or incomplete ({error}); fetch or write it again") from error
    load_exactly(model, tensors, str(path))
    statistics = path / STATISTICS
    if statistics.exists():
        values = _read_json(statistics)
        measured = values.get("latent")
        if measured is not None and measured.get("model_sha256") != model_hash(path):
            # Whitening with another model's figures would be wrong without looking wrong.
            log.warning(
                "%s: the latent statistics in %s were measured with other weights and are not used; run `omnivae calibrate`",
                path,
                STATISTICS,
            )
            del values["latent"]
        model.statistics = values  # type: ignore[assignment]
    return model.eval()


def load_exactly(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict only if every key and shape fits.

    Args:
        model: where to load.
        tensors: the state dict.
        source: its name, for the message.

    Raises:
        ValueError: names the first missing, unexpected and differently shaped tensors; nothing is loaded.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in tensors]
    unexpected = [k for k in tensors if k not in own]
    shapes = [
        f"{k} ({tuple(tensors[k].shape)} in the file, {tuple(own[k].shape)} in the model)"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"the weights in {source} do not fit this {type(model).__name__}: {'; '.join(problems)}")
    # A tensor that lies askew in the file may go through another kernel, whose last digits differ.
    aligned = {name: t if t.data_ptr() % 64 == 0 else t.clone() for name, t in tensors.items()}
    model.load_state_dict(aligned, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def find_model(directory: str | Path) -> Path:
    """Return the model directory at a path: the path itself, or its ``model/`` where it is a run.

    Args:
        directory: a model directory or a run.

    Returns:
        The directory that holds ``config.json``.

    Raises:
        FileNotFoundError: names what was looked for.
    """
    path = Path(directory)
    for candidate in (path, path / "model"):
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}: the directory does not exist")
    if path.is_file():
        raise FileNotFoundError(
            f"{path} is a file and no model directory: `omnivae inspect-checkpoint {path} -o DIR` makes one of a file of weights"
        )
    raise FileNotFoundError(f"no model at {path}: expected {CONFIG} and {WEIGHTS} in it or in {path / 'model'}")


def model_hash(directory: str | Path) -> str:
    """Return the SHA-256 of a model: of its configuration and its weights, not of its statistics or its card.

    Args:
        directory: a model directory or a run.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError: when there is no model.
    """
    path = find_model(directory)
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (path / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); fetch or write it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected an object with named entries")
    return values


def _card(model: Any) -> str:
    config = json.dumps(to_config(model), indent=2)
    low, high = model.value_range
    return (
        f"# {type(model).__name__}\n\n"
        f"A variational autoencoder with {model.num_parameters():,} parameters, written by omnivae.\n\n"
        f"Images have {model.in_channels} channel(s) and values in [{low:g}, {high:g}].\n\n"
        f"{_history(model.statistics)}"
        '```python\nfrom omnivae import VAE\n\nmodel = VAE.from_pretrained("path/to/this/directory")\n'
        "posterior = model.encode(images)\nreconstruction = model.decode(posterior)\n```\n\n"
        f"## Configuration\n\n```json\n{config}\n```\n"
    )


def _history(facts: dict[str, Any]) -> str:
    """Return what the card says about weights that came from elsewhere, and about those that did not come."""
    text = ""
    origin = facts.get("origin")
    if origin:
        rows = [(key, origin[key]) for key in ("layout", "file", "sha256", "licence", "proof") if origin.get(key)]
        rows += [(f"assumed {key}", value) for key, value in origin.get("assumed", {}).items()]
        text += "## Origin of the weights\n\n" + "".join(f"- {key}: {value}\n" for key, value in rows) + "\n"
    part = facts.get("loaded_in_part")
    if part:
        names = [*part["mismatched"], *part["missing"]]
        text += (
            f"## Loaded in part\n\n{part['loaded']} of {part['tensors']} tensors ({part['parameters_loaded']:,} of "
            f"{part['parameters']:,} parameters) came from {Path(part['source']).name}; the others were random then: "
            f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}\n\n"
        )
    return text
