"""Loading the images of an evaluation: in worker processes or not, checked one by one, with a hash of each."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

#: How far outside the value range a pixel may lie: rounding of a resize, not another scale.
RANGE_TOLERANCE = 1e-4
FIELDS = ("x", "cond", "target", "mask")


class ImageDataset(Protocol):
    """A map-style dataset: items are dicts with ``x [C, *S]`` and ``key``, optionally ``cond``, ``target``, ``mask``,
    ``label``.

    Where it also has ``content_hash(index)``, as the datasets of :mod:`omnivae.data` do, the evaluation's list of inputs
    is of what is stored; otherwise it is of the tensors.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Item:
    """One image, checked.

    Attributes:
        key: its name.
        tensors: "x" ``[C, *S]`` and, where the dataset has them, "cond", "target" and "mask".
        content: SHA-256 of what is stored, or ``None`` where the dataset does not know it.
        pixels: SHA-256 of the tensors: what the model and the metrics see.
        label: class index ``[]`` or factor values ``[F]``, or ``None``; no part of the hashes.
    """

    key: str
    tensors: dict[str, Tensor]
    content: str | None
    pixels: str
    label: Tensor | None = None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What two items must share to be stacked."""
        return tuple((name, tuple(t.shape), t.dtype) for name, t in self.tensors.items())


def load_items(dataset: ImageDataset, model: Any, *, batch_size: int, num_workers: int) -> Iterator[Item]:
    """Yield every image of a dataset, in its order.

    Args:
        dataset: map-style.
        model: a VAE; says which channels and values an image has.
        batch_size: images that a worker hands over at once.
        num_workers: processes that load; 0 loads in this one.

    Yields:
        Checked items.

    Raises:
        ValueError: for a repeated key, NaN, or an image that the model does not take; whatever the dataset raises.
    """
    loader = DataLoader(
        _Careful(dataset),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        # Of its own: the loader would otherwise draw the seed of its workers from the global state.
        generator=torch.Generator(),
    )
    seen: set[str] = set()
    for loaded in loader:
        for raw in loaded:
            if isinstance(raw, _Failure):
                raise raw.exception()
            key, fields, content, label = raw
            item = _checked(key, fields, content, model, label)
            if item.key in seen:
                raise ValueError(f"the key {item.key!r} occurs twice; expected a unique key for each image")
            seen.add(item.key)
            yield item


def content_hash_of(dataset: Any, index: int) -> str | None:
    """Return the hash of an image as it is stored, through torch's ``Subset`` and ``ConcatDataset``.

    Args:
        dataset: a dataset.
        index: of the item.

    Returns:
        SHA-256 in hexadecimal, or ``None`` where the dataset does not know it.
    """
    if isinstance(dataset, Subset):
        return content_hash_of(dataset.dataset, int(dataset.indices[index]))
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            if index < len(part):  # type: ignore[arg-type]
                return content_hash_of(part, index)
            index -= len(part)  # type: ignore[arg-type]
    known = getattr(dataset, "content_hash", None)
    return None if known is None else str(known(index))


# -- inside


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, as text: an exception may not survive the way between processes."""

    kind: str
    text: str

    def exception(self) -> Exception:
        known = getattr(builtins, self.kind, None)
        # OSError and its kin would take the text for an error number or a file name of their own.
        if isinstance(known, type) and issubclass(known, (ValueError, TypeError, OSError, IndexError)):
            return known(self.text)
        return RuntimeError(f"{self.kind}: {self.text}")


class _Careful(Dataset):
    """Items as numpy arrays: they travel as bytes, where tensors would each hold a file descriptor open."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        in_worker = torch.utils.data.get_worker_info() is not None
        try:
            item = dict(self.dataset[index])
            if "x" not in item or "key" not in item:
                raise ValueError(f"item {index} of the dataset has {sorted(item)}; expected at least 'x' and 'key'")
            fields = {name: item[name] for name in FIELDS if item.get(name) is not None}
            if in_worker:
                fields = {name: _portable(value) for name, value in fields.items()}
            label = item.get("label")
            label = None if label is None else np.asarray(label)
            return str(item["key"]), fields, content_hash_of(self.dataset, index), label
        except Exception as error:
            if not in_worker:
                raise
            return _Failure(type(error).__name__, str(error))


def _portable(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) and value.dtype != torch.bfloat16 else value


def _checked(key: str, fields: dict[str, Any], content: str | None, model: Any, label: np.ndarray | None) -> Item:
    tensors = {name: torch.as_tensor(np.array(v) if isinstance(v, np.ndarray) else v) for name, v in fields.items()}
    x = tensors["x"]
    if hasattr(model, "check_item"):
        model.check_item(x, key)  # a model of sentences knows what one is
    else:
        for name in ("x", "target"):
            if name in tensors:
                _check_values(tensors[name], key, model.value_range)
        if x.ndim < 2 or x.shape[0] != model.in_channels:
            raise ValueError(f"image {key!r} has shape {tuple(x.shape)}; this model takes [{model.in_channels}, *S]")
    if "mask" in tensors:
        tensors["mask"] = _checked_mask(tensors["mask"], x, key)
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return Item(key, tensors, content, digest.hexdigest(), None if label is None else torch.as_tensor(label))


def _check_values(x: Tensor, key: str, value_range: tuple[float, float]) -> None:
    low, high = value_range
    if not x.is_floating_point():
        raise ValueError(f"image {key!r} has {x.dtype} values; expected floating point values in [{low:g}, {high:g}]")
    if not x.numel():
        raise ValueError(f"image {key!r} is empty, shape {tuple(x.shape)}")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(f"image {key!r} has {bad} NaN or infinite values; mend or remove it")
    least, most = float(x.min()), float(x.max())
    if least < low - RANGE_TOLERANCE or most > high + RANGE_TOLERANCE:
        raise ValueError(
            f"image {key!r} has values in [{least:g}, {most:g}], outside the model's range [{low:g}, {high:g}]; "
            "scale the data to the range that the model was trained on"
        )


def _checked_mask(mask: Tensor, x: Tensor, key: str) -> Tensor:
    expected = (1, *x.shape[1:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"the mask of image {key!r} has shape {tuple(mask.shape)}; expected {expected}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"the mask of image {key!r} has values other than 0 and 1")
    if not bool(mask.any()):
        raise ValueError(f"the mask of image {key!r} leaves no pixel to measure; remove the image, or its mask")
    return mask.to(torch.bool)
