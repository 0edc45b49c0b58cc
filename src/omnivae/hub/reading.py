"""Reading weights that others wrote, as data: nothing in a file is executed, imported or guessed in silence."""

from __future__ import annotations

import hashlib
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Entries of a checkpoint that hold the weights, tried in this order.
ENTRIES = ("state_dict", "model_state_dict", "unet_state_dict", "autoencoder_state_dict", "model", "weights", "ema")
#: What the state of a training is kept under: its tensors are no weights.
_OF_TRAINING = ("optim", "scheduler", "lr_", "loops", "scaler")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")

#: Names in a pickle that describe how a run was set up. They are read as inert stand-ins, never as what they name.
_DESCRIPTIVE = re.compile(
    r"^(argparse\.Namespace|pathlib\.(\w*Path)|omegaconf\..*|typing\.\w+|collections\.\w+|builtins\.(dict|list|set|int|float|str|bool)"
    r"|(pytorch_)?lightning(_fabric)?\..*|lightning\.pytorch\..*|jsonargparse\..*)$"
)


class StandIn:
    """What an object of a checkpoint's description is read as: it keeps what it is given and can do nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)


def is_statistic(name: str) -> bool:
    """Whether a tensor of a state dict is counted or averaged and not trained: by its name in torch's batch normalisations."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, read.

    Attributes:
        path: the file.
        tensors: name to tensor, as in the file.
        entry: where in the file they were, such as "state_dict"; empty for a plain state dict.
        description: everything else that is plain data (``hyper_parameters``, epoch, ...).
        others: what else the file holds, each with a few words.
        config: the ``config.json`` beside the weights, where there is one.
        alternatives: other dictionaries of weights in the file, such as "ema"; ``entry`` chooses one.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    entry: str = ""
    description: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Numbers in all floating point tensors but the statistics of batch normalisations, which are not trained."""
        return sum(t.numel() for k, t in self.tensors.items() if t.is_floating_point() and not is_statistic(k))

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors of each type."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + 1
        return counts

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """Constructor arguments that the file or its ``config.json`` states, as plain data; nested ones are flattened."""
        found: dict[str, Any] = {}
        stack = [self.config, *(self.description.get(k) for k in ("hyper_parameters", "config", "hparams", "args"))]
        while stack:
            entry = stack.pop()
            if isinstance(entry, Mapping):
                for key, value in entry.items():
                    if isinstance(value, Mapping):
                        stack.append(value)
                    else:
                        found.setdefault(str(key), value)
        return found

    def digest(self, name: str = "sha256") -> str:
        """Return a checksum of the file, hexadecimal."""
        with self.path.open("rb") as file:
            if name == "md5":
                return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            return hashlib.file_digest(file, name).hexdigest()


def read_checkpoint(path: str | Path, *, entry: str | None = None) -> Checkpoint:
    """Read ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.safetensors`` as data.

    Nested dictionaries are looked through (``state_dict``, ``model_state_dict``, ``unet_state_dict``, ...); the rest of a
    Lightning checkpoint is kept as plain data. Weights of diffusers are read with the ``config.json`` beside them.

    Args:
        path: the file, or a folder that holds one.
        entry: which of several dictionaries of tensors to take; the first of :data:`ENTRIES` by default.

    Returns:
        The weights and what was beside them.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is truncated, no checkpoint, or holds code; says which.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save({"epoch": 3, "state_dict": {"conv.bias": torch.zeros(4)}}, file)
        >>> found = read_checkpoint(file)
        >>> list(found.tensors), found.entry, found.description
        (['conv.bias'], 'state_dict', {'epoch': 3})
    """
    file = _file_of(Path(path))
    _refuse_what_is_no_checkpoint(file)
    raw = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    where, tensors = _tensors_of(raw, file, entry)
    rest = {k: v for k, v in raw.items() if k not in (where, *tensors)} if isinstance(raw, Mapping) else {}
    alternatives = tuple(name for name, _ in _state_dicts(rest) if name != where)
    description = {str(k): plain for k, v in rest.items() if (plain := _plain(v)) is not None}
    others = {str(k): _words(v) for k, v in rest.items() if str(k) not in description}
    config = file.parent / "config.json"
    stated = _read_config(config) if config.is_file() else {}
    # Beside a file that is named alone, a config.json may belong to something else, unless diffusers wrote it.
    if not Path(path).is_dir() and not str(stated.get("_class_name", "")).startswith("Autoencoder"):
        stated = {}
    return Checkpoint(file, tensors, where, description, others, stated, alternatives)


def _file_of(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: there is no such file")
    if path.is_file():
        return path
    found = sorted(f for f in path.iterdir() if f.is_file() and f.suffix in SUFFIXES)
    if len(found) > 1:  # a folder of diffusers may hold the same weights twice
        found = [f for f in found if f.suffix == ".safetensors" and "fp16" not in f.name] or found
    if len(found) != 1:
        names = ", ".join(f.name for f in found[:5]) or "none"
        raise FileNotFoundError(f"{path} holds {len(found)} files of weights ({names}); name the one to read")
    return found[0]


def _refuse_what_is_no_checkpoint(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(200)
    if not head:
        raise ValueError(f"{file} is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`")
    if head.lstrip()[:1] == b"<" and b"html" in head.lower():
        raise ValueError(f"{file} is a web page, not weights: the download went to a log-in or an error page")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): fetch it again") from error


def _read_torch(file: Path) -> Any:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    if zipped and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is truncated: it ends before its table of contents; fetch it again")
    stand_ins: list[Any] = []
    try:
        if zipped:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            refused = [name for name in unknown if not _DESCRIPTIVE.match(name)]
            if refused:
                raise _Code(refused)
            stand_ins = [(StandIn, name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the protocol of a foreign pickle
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except _Code as error:
        raise ValueError(_refusal(file, error.names)) from None
    except Exception as error:
        text = str(error)
        named = re.findall(r"(?:GLOBAL|global:?) [`']?([\w.]+)[`']?", text)
        if "Weights only load failed" in text:
            raise ValueError(_refusal(file, [n for n in named if "." in n] or named or _named_in(file))) from None
        first = text.strip().splitlines()[0][:160] if text.strip() else type(error).__name__
        kind = "truncated" if "EOF" in text else "damaged, or no checkpoint of torch"
        raise ValueError(f"{file} is {kind} ({first}): fetch or write it again") from error


class _Code(Exception):
    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def _named_in(file: Path) -> list[str]:
    """Return what a bare pickle names, read as a list of instructions of which none is followed."""
    words: list[str] = []
    names: list[str] = []
    with file.open("rb") as stream, suppress(ValueError):  # what comes after a damaged instruction is not looked at
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif instruction.name == "STACK_GLOBAL" and len(words) > 1:
                names.append(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    return names


def _refusal(file: Path, names: list[str]) -> str:
    shown = f" ({', '.join(dict.fromkeys(names[:5]))})" if names else ""
    return (
        f"{file} is a pickle that calls code{shown}, which would run on this machine as soon as it is opened; nothing of it "
        "was executed. Ask its author for a state dict: torch.save(model.state_dict(), path), or safetensors"
    )


def _tensors_of(raw: Any, file: Path, entry: str | None) -> tuple[str, dict[str, Tensor]]:
    if isinstance(raw, Tensor):
        raise ValueError(f"{file} holds one tensor of shape {tuple(raw.shape)}; expected a dictionary of weights")
    if not isinstance(raw, Mapping):
        raise ValueError(f"{file} holds a {type(raw).__name__}; expected a dictionary of weights")
    choices = dict(_state_dicts(raw))
    if entry is not None:
        if entry not in choices:
            raise ValueError(f"{file} has no entry {entry!r} with weights; it has {', '.join(choices) or 'none'}")
        return entry, dict(choices[entry])
    if _is_state_dict(raw):
        return "", {k: v for k, v in raw.items() if isinstance(v, Tensor)}
    for name in ENTRIES:
        if name in choices:
            return name, dict(choices[name])
    if len(choices) == 1:
        name, value = next(iter(choices.items()))
        return name, dict(value)
    keys = ", ".join(str(k) for k in list(raw)[:8])
    raise ValueError(
        f"{file} holds no dictionary of weights under a usual name; its entries are {keys}"
        + (f": choose one of {', '.join(choices)} with --entry (entry= in Python)" if choices else "")
    )


def _state_dicts(raw: Mapping[Any, Any], inside: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the dictionaries of weights in a checkpoint, such as "ema.shadow", without those of its optimisers."""
    for key, value in raw.items():
        if not isinstance(value, Mapping) or str(key).startswith(_OF_TRAINING):
            continue
        if _is_state_dict(value):
            yield f"{inside}{key}", value
        elif inside.count(".") < 2:
            yield from _state_dicts(value, f"{inside}{key}.")


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    """Whether most entries are tensors by name (some files keep a version or a flag among them)."""
    tensors = sum(isinstance(v, Tensor) for v in value.values())
    return tensors > 0 and all(isinstance(k, str) for k in value) and 2 * tensors > len(value)


def _plain(value: Any) -> Any:
    """Return plain data as it is (stand-ins by their contents), ``None`` for what is not."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, StandIn):
        state = getattr(value, "state", None)
        content = state.get("_content", state) if isinstance(state, Mapping) else (value.values or None)
        return _plain(content)
    if isinstance(value, Mapping):
        return {str(k): plain for k, v in value.items() if (plain := _plain(v)) is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value] if len(value) <= 1000 else None
    return None


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (Mapping, list, tuple)):
        return f"a {type(value).__name__} of {len(value)} entries"
    return f"a {type(value).__name__}"


def _read_config(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged or incomplete ({error})") from error
    return values if isinstance(values, dict) else {}
