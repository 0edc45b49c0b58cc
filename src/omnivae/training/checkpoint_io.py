"""Training checkpoints without pickle: every tensor in one safetensors file, everything else as JSON in its header.

Files are written beside their place, flushed and renamed: a kill at any moment leaves the last good checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor

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
    _replace(path, lambda beside: save_file(tensors or {"_": torch.zeros(0)}, beside, metadata={"tree": skeleton}))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also when the machine goes down.

    Args:
        path: file to write.
        content: its bytes.

    Raises:
        OSError: when it cannot be written; what was there before is untouched.
    """
    _replace(path, lambda beside: beside.write_bytes(content))


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left half written.

    Args:
        directory: where checkpoints are.
    """
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def checkpoint_step(path: Path) -> int:
    """Return the optimiser step of a checkpoint without reading its tensors.

    Args:
        path: the checkpoint.

    Returns:
        Steps done.
    """
    tree = _skeleton(path)
    return int(dict(tree["$dict"])["global_step"])


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
        except SafetensorError as error:
            # The library wraps the system's error into its own: what cannot be told apart from it is its text.
            raise OSError(_error_number(str(error)), str(error)) from error
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


class CannotWrite(OSError):
    """A file of a run could not be written; says what to do, and that what was there before is untouched.

    Args:
        path: the file.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        remedy = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some of your quota",
            errno.EFBIG: "raise the file size limit",
            errno.EROFS: "choose an --output that can be written to",
            errno.EACCES: "choose an --output that can be written to",
            errno.EPERM: "choose an --output that can be written to",
        }.get(error.errno or 0, "mend that")
        there = "; the one written before is untouched" if path.exists() else ""
        super().__init__(f"cannot write {path}: {reason}{there}: {remedy}, then repeat the command")
        self.errno = error.errno


def _error_number(text: str) -> int:
    found = re.search(r"os error (\d+)", text)
    return int(found[1]) if found else errno.EIO


def _sync_folder(folder: Path) -> None:
    # The new name is on disk only when its folder is.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _skeleton(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete checkpoint ({error}); delete it to start from an older one"
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


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restore(v, tensors) for v in value]
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$tuple" in value:
            return tuple(_restore(v, tensors) for v in value["$tuple"])
        return {_restore(k, tensors): _restore(v, tensors) for k, v in value["$dict"]}
    return value
