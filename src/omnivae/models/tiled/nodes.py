"""Nodes of operations that look at neighbours: convolutions, pooling, resampling, padding, views and crops.

Each says exactly which region of its input a region of its result is computed from, so that the borders of a tile that are no
borders of the image see their true neighbours, and those that are see the network's own padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnivae.models.tiled.graph import Axes, Node, Region

Crop = tuple[int, int]


def crop(tile: Tensor, node: Node, bounds: Mapping[int, Crop]) -> Tensor:
    """Return a part of a tile, where ``bounds`` names start and stop inside of it for some axes."""
    index = tuple(slice(None) if axis is None or axis not in bounds else slice(*bounds[axis]) for axis in node.axes)
    return tile[index]


@dataclass(frozen=True)
class Window:
    """What one output position sees along one axis: ``kernel`` positions ``dilation`` apart, the first at ``i * stride - pad``."""

    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """Return the input positions of output positions; they may lie outside of the image."""
        return start * self.stride - self.pad, (stop - 1) * self.stride - self.pad + self.dilation * (
            self.kernel - 1
        ) + 1


class Windowed(Node):
    """A convolution or a pooling: a window on each of some axes, and a value beyond the border.

    Args:
        operation: takes the padded region and the constants, without any padding of its own.
        shape: of the result.
        source: the input, ``axes`` as those of the result.
        windows: one for each axis that it looks along.
        tensors: constants.
        fill: value beyond the border.
        cost: multiplications for each element of the result.
    """

    heavy = True

    def __init__(
        self,
        operation: Callable[..., Tensor],
        shape: Sequence[int],
        source: Node,
        windows: Mapping[int, Window],
        *,
        tensors: Sequence[Tensor | None] = (),
        fill: float = 0.0,
        cost: float = 1.0,
    ) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,), tensors)
        self.operation, self.windows, self.fill, self.cost = operation, windows, fill, cost
        self.heavy = any(window.kernel > 1 for window in windows.values())

    def needs(self, region: Region) -> list[Region | None]:
        size = self.inputs[0].size
        bounds = list(region)
        for axis, window in self.windows.items():
            low, high = window.reach(*region[axis])
            bounds[axis] = (min(max(low, 0), size[axis] - 1), max(min(high, size[axis]), 1))
        return [tuple(bounds)]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        tile, size, dims = tiles.pop(), self.inputs[0].size, self.inputs[0].dims()
        pad = [0] * (2 * tile.ndim)
        for axis, window in self.windows.items():
            low, high = window.reach(*region[axis])
            # F.pad counts dimensions from the last one.
            place = 2 * (tile.ndim - 1 - dims[axis])
            pad[place], pad[place + 1] = max(-low, 0), max(high - size[axis], 0)
        if any(pad):
            tile = F.pad(tile, pad, value=self.fill)
        return self.operation(tile, *tensors)

    def work(self, region: Region) -> float:
        return super().work(region) * self.cost


class Transposed(Node):
    """A transposed convolution: input position i touches output positions ``i * stride - pad + dilation * k``."""

    heavy = True

    def __init__(
        self,
        operation: Callable[..., Tensor],
        shape: Sequence[int],
        source: Node,
        windows: Mapping[int, Window],
        *,
        tensors: Sequence[Tensor | None],
        cost: float,
    ) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,), tensors)
        self.operation, self.windows, self.cost = operation, windows, cost

    def needs(self, region: Region) -> list[Region | None]:
        size = self.inputs[0].size
        bounds = list(region)
        for axis, w in self.windows.items():
            start, stop = region[axis]
            first = min(-((w.dilation * (w.kernel - 1) - start - w.pad) // w.stride), (start + w.pad) // w.stride)
            last = (stop - 1 + w.pad) // w.stride
            low = min(max(first, 0), size[axis] - 1)
            bounds[axis] = (low, max(min(last + 1, size[axis]), low + 1))
        return [tuple(bounds)]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        need = self.needs(region)[0]
        assert need is not None
        extra, cuts = [0] * len(self.windows), {}
        for place, (axis, w) in enumerate(self.windows.items()):
            low, high = need[axis]
            start = region[axis][0] + w.pad - low * w.stride
            stop = start + region[axis][1] - region[axis][0]
            made = (high - low - 1) * w.stride + w.dilation * (w.kernel - 1) + 1
            extra[place] = max(stop - made, 0)
            cuts[axis] = (start, stop)
        return crop(self.operation(tiles.pop(), *tensors, extra), self, cuts)

    def work(self, region: Region) -> float:
        return super().work(region) * self.cost


class Upsample(Node):
    """Enlarge by whole factors: by repetition, or linearly between the centres of the old positions.

    Args:
        operation: enlarges a tile to a size.
        shape: of the result.
        source: the input.
        factors: of each axis.
        linear: between centres, otherwise by repetition.
    """

    def __init__(
        self,
        operation: Callable[[Tensor, list[int]], Tensor],
        shape: Sequence[int],
        source: Node,
        factors: Sequence[int],
        *,
        linear: bool,
    ) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,))
        self.operation, self.factors, self.linear = operation, tuple(factors), linear

    def needs(self, region: Region) -> list[Region | None]:
        bounds = []
        for (start, stop), factor, n in zip(region, self.factors, self.inputs[0].size, strict=True):
            if self.linear and factor > 1:
                # The centre of output i lies at (i + 1/2) / factor - 1/2, between two input positions.
                low, high = (2 * start + 1 - factor) // (2 * factor), (2 * stop - 1 - factor) // (2 * factor) + 2
                bounds.append((max(low, 0), min(high, n)))
            else:
                bounds.append((start // factor, -(-stop // factor)))
        return [tuple(bounds)]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        need = self.needs(region)[0]
        assert need is not None
        tile = tiles.pop()
        dims = self.inputs[0].dims()
        size = [
            tile.shape[dim] * (self.factors[self.axes[dim]] if dim in dims else 1)  # type: ignore[index]
            for dim in range(2, tile.ndim)
        ]
        cuts = {
            axis: (start - need[axis][0] * f, stop - need[axis][0] * f)
            for axis, ((start, stop), f) in enumerate(zip(region, self.factors, strict=True))
        }
        return crop(self.operation(tile, size), self, cuts)


class Shuffle(Node):
    """Move blocks of positions into channels, or channels into blocks of positions.

    Args:
        operation: of a tile.
        shape: of the result.
        source: the input.
        axes: of the result.
        ratios: for each axis, positions of the result for (positions of the input): (1, 2) halves the size.
    """

    def __init__(
        self,
        operation: Callable[[Tensor, Region], Tensor],
        shape: Sequence[int],
        source: Node,
        axes: Axes,
        ratios: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(shape, source.dtype, axes, (source,))
        self.operation, self.ratios = operation, tuple(ratios)

    def needs(self, region: Region) -> list[Region | None]:
        return [
            tuple(
                (start * i // o, -(-stop * i // o)) for (start, stop), (o, i) in zip(region, self.ratios, strict=True)
            )
        ]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        need = self.needs(region)[0]
        assert need is not None
        made = tuple((low * o // i, high * o // i) for (low, high), (o, i) in zip(need, self.ratios, strict=True))
        cuts = {axis: (r[0] - m[0], r[1] - m[0]) for axis, (r, m) in enumerate(zip(region, made, strict=True))}
        return crop(self.operation(tiles.pop(), made), self, cuts)


class Index(Node):
    """Positions of the input in another order along some axes: padding by reflection or repetition, flips, strided crops.

    Args:
        shape: of the result.
        source: the input.
        index: for some axes the input position of each output position.
    """

    def __init__(self, shape: Sequence[int], source: Node, index: Mapping[int, Tensor]) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,))
        self.index = dict(index)

    def needs(self, region: Region) -> list[Region | None]:
        bounds = list(region)
        for axis, index in self.index.items():
            part = index[slice(*region[axis])]
            bounds[axis] = (int(part.min()), int(part.max()) + 1)
        return [tuple(bounds)]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        need = self.needs(region)[0]
        assert need is not None
        tile, dims = tiles.pop(), self.dims()
        for axis, index in self.index.items():
            part = index[slice(*region[axis])] - need[axis][0]
            if len(part) != tile.shape[dims[axis]] or not torch.equal(part, torch.arange(len(part))):
                tile = tile.index_select(dims[axis], part.to(tile.device))
        return tile


class Pad(Node):
    """A constant around the image, or a crop where an amount is negative.

    Args:
        shape: of the result.
        source: the input.
        before: amount before the start of each axis.
        value: the constant.
    """

    def __init__(self, shape: Sequence[int], source: Node, before: Sequence[int], value: float) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,))
        self.before, self.value = tuple(before), value

    def needs(self, region: Region) -> list[Region | None]:
        bounds = []
        for (start, stop), before, n in zip(region, self.before, self.inputs[0].size, strict=True):
            low, high = max(start - before, 0), min(stop - before, n)
            if low >= high:
                return [None]
            bounds.append((low, high))
        return [tuple(bounds)]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        tile, need, dims = tiles.pop(), self.needs(region)[0], self.dims()
        if need is None:
            return torch.full(self.local_shape(region), self.value, dtype=self.dtype, device=tile.device)
        pad = [0] * (2 * tile.ndim)
        for axis, ((start, stop), before) in enumerate(zip(region, self.before, strict=True)):
            place = 2 * (tile.ndim - 1 - dims[axis])
            pad[place], pad[place + 1] = need[axis][0] + before - start, stop - before - need[axis][1]
        return F.pad(tile, pad, value=self.value) if any(pad) else tile


class Concatenate(Node):
    """Fields one after another along a spatial axis."""

    def __init__(self, shape: Sequence[int], sources: Sequence[Node], axis: int) -> None:
        super().__init__(shape, sources[0].dtype, sources[0].axes, sources)
        self.axis = axis
        ends = [0]
        for node in sources:
            ends.append(ends[-1] + node.size[axis])
        self.ends = ends

    def needs(self, region: Region) -> list[Region | None]:
        wanted: list[Region | None] = []
        start, stop = region[self.axis]
        for begin, end in zip(self.ends, self.ends[1:], strict=False):
            low, high = max(start, begin), min(stop, end)
            part = (low - begin, high - begin)
            wanted.append(None if low >= high else (*region[: self.axis], part, *region[self.axis + 1 :]))
        return wanted

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        return torch.cat([tile for tile in tiles if tile.numel()], dim=self.dims()[self.axis])


def regroup(shape: Sequence[int], axes: Axes, target: Sequence[int]) -> tuple[Axes, list[tuple[int, int]]] | None:
    """Follow the spatial axes through a view.

    Args:
        shape: of the input.
        axes: of the input.
        target: shape of the view.

    Returns:
        The axes of the view, and for each axis (positions of the view, positions of the input); ``None`` where a spatial
        axis is merged with another one, or with channels before it.
    """
    found: list[int | None] = [None] * len(target)
    ratios: dict[int, tuple[int, int]] = {}
    i = j = 0
    while i < len(shape) or j < len(target):
        first_i, first_j = i, j
        have, want = 1, 1
        if i < len(shape):
            have, i = shape[i], i + 1
        if j < len(target):
            want, j = target[j], j + 1
        while have != want:
            if have < want:
                have, i = have * shape[i], i + 1
            else:
                want, j = want * target[j], j + 1
        # Lengths of one fit anywhere: an axis stays beside those it was folded with, and is the last when it is unfolded.
        while have == 1 and i < len(shape) and shape[i] == 1 and axes[i] is not None and target[j : j + 1] != [1]:
            i += 1
        while j < len(target) and target[j] == 1 and axes[i - 1] is not None and (i == len(shape) or shape[i] != 1):
            j += 1
        group, made = range(first_i, i), range(first_j, j)
        spatial = [dim for dim in group if axes[dim] is not None]
        if not spatial:
            continue
        outer = spatial[0]
        if len(spatial) > 1 or not made or any(shape[dim] > 1 for dim in group if dim < outer):
            return None
        holder = next((dim for dim in made if target[dim] > 1), made[-1])
        inner_in = math.prod(shape[dim] for dim in group if dim > outer)
        inner_out = math.prod(target[dim] for dim in made if dim > holder)
        if inner_in % inner_out and inner_out % inner_in:
            return None
        axis = axes[outer]
        assert axis is not None
        found[holder] = axis
        common = math.gcd(inner_in, inner_out)
        ratios[axis] = (inner_in // common, inner_out // common)
    return tuple(found), [ratios[axis] for axis in sorted(ratios)]
