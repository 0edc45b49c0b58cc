"""Training checkpoints without pickle: every tensor in one safetensors file, everything else as JSON in its header.

Files are written beside their place, flushed and renamed: a kill at any moment leaves the last good checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnivae.files import replace_atomic, system_error

SUFFIX = ".safetensors"


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's checkpoint dictionary as one safetensors file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; it appears whole or not at all.

        Args:
            checkpoint: nested dicts, lists and tuples of tensors and JSON scalars.
            path: file to write.
            storage_options: unused by this format; must be ``None``.
        """
        if storage_options is not None:
            raise ValueError("the safetensors checkpoint takes no storage options")
        write_tree(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: file to read.
            map_location: unused: tensors come back on the CPU and are moved where they are loaded.
            weights_only: unused: the format cannot hold code.

        Returns:
            What was saved.
        """
        return read_tree(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint.

        Args:
            path: file to delete; may be gone already.
        """
        Path(path).unlink(missing_ok=True)


def write_tree(path: Path, tree: Any) -> None:
    """Write a nested structure of tensors and scalars.

    Args:
        path: file to write.
        tree: dicts with string, integer or tuple-free scalar keys, lists, tuples, tensors, numbers, strings, ``None``.

    Raises:
        TypeError: for anything else: nothing is pickled.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_flatten(tree, tensors))

    # Written by the library straight to disk: a second copy in memory would double the peak.
    def save(beside: Path) -> None:
        try:
            save_file(tensors or {"_": torch.zeros(0)}, beside, metadata={"tree": skeleton})
        except SafetensorError as error:
            raise system_error(error) from error

    replace_atomic(path, save)


def checkpoint_step(path: Path) -> int:
    """Return the optimiser step of a checkpoint without reading its tensors.

    Args:
        path: the checkpoint.

    Returns:
        Steps done.
    """
    return int(read_scalars(path)["global_step"])


def read_scalars(path: Path) -> Any:
    """Read what :func:`write_tree` wrote without its tensors, in whose place is ``None``.

    Args:
        path: file to read.

    Returns:
        The structure.

    Raises:
        ValueError: when the file is truncated or of another kind.
    """
    return _restore(_skeleton(path), None)


def _skeleton(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete checkpoint ({error}); delete it to start anew, or put another one of the run, such as "
            "best.safetensors, in its place"
        ) from error
    if "tree" not in metadata:
        raise ValueError(f"{path} holds tensors but no training state; it is not a checkpoint of a run")
    return json.loads(metadata["tree"])


def read_tree(path: Path) -> Any:
    """Read what :func:`write_tree` wrote.

    Args:
        path: file to read.

    Returns:
        The structure.

    Raises:
        ValueError: when the file is truncated or of another kind.
    """
    skeleton = _skeleton(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _restore(skeleton, tensors)


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        # Clones: safetensors refuses tensors that share memory (tied weights, views).
        tensors[name] = value.detach().to("cpu").contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, dict):
        return {"$dict": [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_flatten(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_flatten(v, tensors) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"got a {type(value).__name__} in a checkpoint; expected tensors, numbers, strings and containers")


def _restore(value: Any, tensors: dict[str, Tensor] | None) -> Any:
    if isinstance(value, list):
        return [_restore(v, tensors) for v in value]
    if isinstance(value, dict):
        if "$tensor" in value:
            return None if tensors is None else tensors[value["$tensor"]]
        if "$tuple" in value:
            return tuple(_restore(v, tensors) for v in value["$tuple"])
        return {_restore(k, tensors): _restore(v, tensors) for k, v in value["$dict"]}
    return value
