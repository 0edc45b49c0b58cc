"""The graph that a network leaves behind when it runs on a tensor without memory, and what a node of it must say.

A value is a *field* where every spatial axis of the image runs along one of its dimensions: any region of it can be computed
from regions of other fields. Every other value is *whole*: statistics of a normalisation, the gate of a channel attention,
weights, or whatever an operation between all positions needs and makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Start and stop along each spatial axis.
Region = tuple[tuple[int, int], ...]
#: For each dimension of a value the spatial axis that runs along it, or ``None``.
Axes = tuple[int | None, ...]


#: Elements of half precision that are computed with in single precision at once.
PIECE = 2**20


class Node:
    """One value of the graph.

    Args:
        shape: its shape, with a batch of one.
        dtype: its precision.
        axes: the spatial axis of each dimension.
        inputs: the nodes that it is computed from.
        tensors: constants that it needs.
    """

    #: Whether it costs so much that computing it twice is worth a look.
    heavy = False

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        axes: Axes,
        inputs: Sequence[Node] = (),
        tensors: Sequence[Tensor | None] = (),
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype, self.axes = dtype, axes
        self.inputs, self.tensors = tuple(inputs), tuple(tensors)
        #: Name of the module that made it.
        self.module = ""

    @property
    def is_field(self) -> bool:
        """Whether regions of it can be computed."""
        return any(axis is not None for axis in self.axes)

    @property
    def size(self) -> tuple[int, ...]:
        """Size along each spatial axis of the image."""
        found = {axis: n for axis, n in zip(self.axes, self.shape, strict=True) if axis is not None}
        return tuple(found[axis] for axis in sorted(found))

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole value."""
        return math.prod(self.shape) * self.dtype.itemsize

    def dims(self) -> tuple[int, ...]:
        """Return the dimension of each spatial axis."""
        found = {axis: dim for dim, axis in enumerate(self.axes) if axis is not None}
        return tuple(found[axis] for axis in sorted(found))

    def kept_order(self) -> list[int]:
        """Return the dimensions in the order of memory in which values are kept: the batch, positions, channels.

        The batch of one stands in front although nothing depends on it: PyTorch takes the layout for channels last by the
        strides, those of one position included, and convolutions would copy their input otherwise.
        """
        dims = self.dims()
        rest = [dim for dim in range(len(self.shape)) if dim not in dims]
        front = [dim for dim in rest[:1] if dim == 0 and self.shape[0] == 1]
        return [*front, *dims, *rest[len(front) :]]

    def local_shape(self, region: Region) -> tuple[int, ...]:
        """Return the shape of a region."""
        return tuple(
            n if axis is None else region[axis][1] - region[axis][0]
            for n, axis in zip(self.shape, self.axes, strict=True)
        )

    def full(self) -> Region:
        """Return the region of everything."""
        return tuple((0, n) for n in self.size)

    def needs(self, region: Region) -> list[Region | None]:
        """Return which region of each input a region of this one is computed from; ``None`` for none of it."""
        return [region for _ in self.inputs]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        """Return a region.

        Args:
            tiles: the regions of the inputs that :meth:`needs` names, each a tensor of its own, and whole inputs; may be emptied.
            tensors: the constants, on the device of the tiles.
            region: which.

        Returns:
            A tensor of its own: the caller may change it.
        """
        raise TypeError(f"{type(self).__name__} does not define compute")

    def work(self, region: Region) -> float:
        """Return about how many multiplications a region takes, without those of its inputs."""
        return float(math.prod(self.local_shape(region)))


class Input(Node):
    """What the network is called with."""


class Constant(Node):
    """A tensor that is there already."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.shape, tensor.dtype, (None,) * tensor.ndim, (), (tensor,))

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        return tensors[0]


class AsField(Node):
    """A whole value ``[1, C, *S]`` seen as a field."""

    def __init__(self, whole: Node, dim: int) -> None:
        axes = (None,) * (len(whole.shape) - dim) + tuple(range(dim))
        super().__init__(whole.shape, whole.dtype, axes, (whole,))

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        return tiles[0][_slices(self, region)].clone()


class Whole(Node):
    """An operation that takes and gives whole values: attention between all positions, the gate of a channel attention."""

    def __init__(
        self, operation: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype, inputs: Sequence[Node]
    ) -> None:
        super().__init__(shape, dtype, (None,) * len(shape), inputs)
        self.operation = operation

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        return self.operation(*tiles)


class Gather(Node):
    """All of a field in memory at once, for an operation that cannot do with regions."""

    def __init__(self, field: Node, reason: str) -> None:
        super().__init__(field.shape, field.dtype, (None,) * len(field.shape), (field,))
        self.reason = reason


class Local(Node):
    """An operation that treats every position alike: pointwise, or along dimensions that are not spatial.

    Args:
        operation: takes the inputs' regions and gives the region of the result.
        shape: of the result.
        dtype: of the result.
        axes: of the result.
        inputs: fields whose spatial dimensions are those of the result or one long, and whole values that broadcast.
        in_place: the operation that overwrites its first argument, if there is one.
        aligned: whether dimensions of whole inputs are those of the result, counted from the last one.
    """

    def __init__(
        self,
        operation: Callable[..., Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        axes: Axes,
        inputs: Sequence[Node],
        *,
        in_place: Callable[..., Tensor] | None = None,
        aligned: bool = True,
    ) -> None:
        super().__init__(shape, dtype, axes, inputs)
        self.aligned = aligned
        self.operation = operation
        first = inputs[0]
        fits = first.is_field and first.shape == self.shape and first.dtype == dtype and first.axes == axes
        self.in_place = in_place if fits else None

    def needs(self, region: Region) -> list[Region | None]:
        wanted: list[Region | None] = []
        for node in self.inputs:
            # One position along an axis broadcasts.
            wanted.append(
                tuple((0, 1) if n == 1 else bounds for n, bounds in zip(node.size, region, strict=True))
                if node.is_field
                else region
            )
        return wanted

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        for i, node in enumerate(self.inputs):
            if not node.is_field and self.aligned:
                tiles[i] = _broadcast(tiles[i], self, region)
        return (self.in_place or self.operation)(*tiles)


class Reduce(Node):
    """Sums over all positions of a field: the statistics of a normalisation, a mean, a largest value.

    Fields are read once, tile by tile; counts, means and squared deviations are merged in float64 (Chan, Golub & LeVeque,
    Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).

    Args:
        field: what is summed.
        kind: "moments" (count, mean and sum of squared deviations), "amax" or "amin", each over the spatial dimensions.
        finish: makes the value of the node from what was accumulated and the constants.
        shape: of the value.
        dtype: of the value.
        tensors: constants that ``finish`` takes.
    """

    def __init__(
        self,
        field: Node,
        kind: str,
        finish: Callable[..., Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        tensors: Sequence[Tensor | None] = (),
    ) -> None:
        super().__init__(shape, dtype, (None,) * len(shape), (field,), tensors)
        self.kind, self.finish = kind, finish

    def update(self, state: Any, tile: Tensor, region: Region) -> Any:
        """Return what was accumulated with one more tile, of a region."""
        if tile.dtype.itemsize < 4:
            for part in pieces(tile, self.inputs[0].dims()):
                state = self._merge(state, part.float())
            return state
        return self._merge(state, tile)

    def _merge(self, state: Any, tile: Tensor) -> Any:
        dims = self.inputs[0].dims()
        if self.kind != "moments":
            value = tile.amax(dims) if self.kind == "amax" else tile.amin(dims)
            merge = torch.maximum if self.kind == "amax" else torch.minimum
            return value if state is None else merge(state, value)
        variance, mean = torch.var_mean(tile, dim=dims, correction=0)
        count = math.prod(tile.shape[d] for d in dims)
        new = count, mean.double(), variance.double() * count
        return new if state is None else merge_moments(state, new)


def merge_moments(before: Any, new: Any) -> Any:
    """Return count, mean and sum of squared deviations of two sets from those of each (Chan, Golub & LeVeque, 1979).

    Args:
        before: of the first, which may be empty.
        new: of the second.

    Example:
        >>> one, three = torch.tensor(1.0), torch.tensor(3.0)
        >>> [float(value) for value in merge_moments((1, one, 0 * one), (1, three, 0 * three))]
        [2.0, 2.0, 2.0]
    """
    (count, mean, squares), (more, other, spread) = before, new
    total, delta = count + more, other - mean
    return total, mean + delta * (more / total), squares + spread + delta.square() * (count * more / total)


def pieces(tile: Tensor, dims: Sequence[int]) -> tuple[Tensor, ...]:
    """Return a tile of half precision in parts along one of some dimensions, whose copies in single precision are small."""
    longest = max(dims, key=lambda dim: tile.shape[dim])
    return tile.split(max(1, PIECE * tile.shape[longest] // tile.numel()), longest)


def _slices(node: Node, region: Region) -> tuple[slice, ...]:
    return tuple(slice(None) if axis is None else slice(*region[axis]) for axis in node.axes)


def _broadcast(tensor: Any, node: Node, region: Region) -> Any:
    """Cut a whole value to the region that it meets, dimension by dimension from the last one."""
    if not isinstance(tensor, Tensor):
        return tensor
    offset = len(node.shape) - tensor.ndim
    index = tuple(
        slice(None) if n == 1 or node.axes[offset + dim] is None else slice(*region[node.axes[offset + dim]])  # type: ignore[index]
        for dim, n in enumerate(tensor.shape)
    )
    return tensor[index]
