"""Compute one region of a field from values that are kept, and say beforehand what that takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnivae.models.tiled.graph import Constant, Input, Node, Region
from omnivae.models.tiled.memory import AllocationTracker


def tile_bytes(node: Node, region: Region, known: set[Node], *, filed: bool = False) -> int:
    """Return the most memory that a region takes while it is computed from known values: a run on the meta device."""
    with AllocationTracker() as tracker, torch.no_grad():
        made = evaluate(node, region, MetaSource(known))
        if filed:
            copied = made.permute(node.kept_order()).contiguous()
            del copied
        del made
    return tracker.peak


def region_work(node: Node, region: Region, known: set[Node]) -> float:
    """Return the multiplications of a region, what it is computed from included."""
    if node in known or isinstance(node, (Input, Constant)) or not node.is_field:
        return 0.0
    total = node.work(region)
    for parent, need in dict.fromkeys(zip(node.inputs, node.needs(region), strict=True)):
        if need is not None and parent.is_field:
            total += region_work(parent, need, known)
    return total


class Source:
    """Where values come from while a region is computed."""

    def field(self, node: Node, region: Region) -> Tensor | None:
        """Return a region of a kept value or of the input as a tensor of its own, or ``None`` for one that must be computed."""
        raise TypeError(f"{type(self).__name__} does not define field")

    def whole(self, node: Node) -> Tensor:
        """Return a whole value."""
        raise TypeError(f"{type(self).__name__} does not define whole")

    def tensors(self, node: Node) -> Sequence[Tensor | None]:
        """Return a node's constants."""
        return node.tensors


class MetaSource(Source):
    """Values without numbers, to measure what a region takes."""

    def __init__(self, known: set[Node]) -> None:
        self.known = known

    def field(self, node: Node, region: Region) -> Tensor | None:
        if node not in self.known and not isinstance(node, Input):
            return None
        order = node.kept_order()
        shape = node.local_shape(region)
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.empty([shape[dim] for dim in order], dtype=node.dtype, device="meta").permute(back)

    def whole(self, node: Node) -> Tensor:
        return _unseen(node.shape, node.dtype)

    def tensors(self, node: Node) -> Sequence[Tensor | None]:
        return [None if tensor is None else _unseen(tensor.shape, tensor.dtype) for tensor in node.tensors]


def _unseen(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    # Constants and whole values are counted elsewhere: one number stands for all of them here.
    return torch.empty((), dtype=dtype, device="meta").expand(tuple(shape))


def evaluate(node: Node, region: Region, source: Source) -> Tensor:
    """Return a region of a field, computed from kept values.

    Args:
        node: a field.
        region: which part.
        source: gives kept values.

    Returns:
        A tensor of its own.
    """
    made = source.field(node, region)
    return compute(node, region, source) if made is None else made


def compute(node: Node, region: Region, source: Source) -> Tensor:
    """Return a region of a field, computed even if the field itself is kept."""
    tiles: list[Tensor | None] = [None] * len(node.inputs)
    needs = node.needs(region)
    # The branch with more behind it goes first: it takes the most memory, and so it runs beside nothing.
    for i in sorted(range(len(needs)), key=lambda i: -_depth(node.inputs[i])):
        parent, need = node.inputs[i], needs[i]
        twin = next(
            (j for j in range(len(needs)) if tiles[j] is not None and (node.inputs[j], needs[j]) == (parent, need)),
            None,
        )
        if twin is not None:
            tiles[i] = tiles[twin]  # x * x, in place too: each element is read before it is written
        elif isinstance(parent, Constant):
            tiles[i] = source.tensors(parent)[0]
        elif not parent.is_field:
            tiles[i] = source.whole(parent)
        elif need is None:
            shape = parent.local_shape(tuple((0, 0) for _ in parent.size))
            tiles[i] = torch.empty(shape, dtype=parent.dtype)
        else:
            tiles[i] = evaluate(parent, need, source)
    return node.compute(tiles, source.tensors(node), region)


def _depth(node: Node) -> int:
    depth = 0
    while node.inputs:
        node = node.inputs[0]
        depth += 1
    return depth
