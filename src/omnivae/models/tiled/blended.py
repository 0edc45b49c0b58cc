"""Overlapping tiles, each computed as if it were the whole image, blended smoothly, and how far they disagree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omnivae.models.tiled.arrays import Array, meta_bytes
from omnivae.models.tiled.graph import Region
from omnivae.models.tiled.memory import format_bytes

#: Positions at most at which disagreement is looked at.
LATTICE = 2**20


@dataclass(frozen=True)
class SeamError:
    """How far overlapping tiles disagree: an estimate of the error of blending, from below.

    What every tile gets wrong in the same way, as for a statistic of the whole image, is not seen.

    Attributes:
        rms: root mean square of (largest - smallest value) where tiles overlap; 0 for a single tile.
        largest: the largest difference.
        scale: standard deviation of the values, to compare with.
        overlapping: share of the positions where tiles overlap.
        num_tiles: number of tiles.
    """

    rms: float
    largest: float
    scale: float
    overlapping: float
    num_tiles: int

    def __str__(self) -> str:
        if self.num_tiles == 1:
            return "one tile: no seams"
        share = self.rms / self.scale if self.scale else math.inf
        return (
            f"{self.num_tiles} tiles differ by {self.rms:.3g} RMS ({share:.1%} of the standard deviation), at most "
            f"{self.largest:.3g}, in the {self.overlapping:.0%} of positions where they overlap"
        )


def tile_length(
    network: nn.Module,
    channels: int,
    size: Sequence[int],
    stride: Sequence[int],
    cond: Tensor | None,
    budget: int,
    *,
    limit: Sequence[int],
    keep: int = 0,
) -> tuple[int, ...]:
    """Return the largest tile that the memory allows, in positions of the latent.

    Args:
        network: takes ``[1, channels, *(tile * stride)]``, at most ``limit``.
        channels: of its input.
        size: of the latent.
        stride: positions of the network's input for each position of the latent.
        cond: condition.
        budget: bytes.
        limit: size of the network's input for all of the latent.
        keep: axes, from the first, that are not cut.

    Returns:
        One length for each axis.

    Raises:
        ValueError: when one position takes too much.
    """
    lengths = list(size)
    while True:
        shape = [min(n * s, m) for n, s, m in zip(lengths, stride, limit, strict=True)]
        needed = meta_bytes(network, (1, channels, *shape), cond)
        if needed <= budget:
            return tuple(lengths)
        longest = max(range(keep, len(lengths)), key=lengths.__getitem__)
        if lengths[longest] == 1:
            raise ValueError(
                f"the smallest tile of {type(network).__name__} takes {format_bytes(needed)}; got {format_bytes(budget)} for "
                f"tiles: give more memory{', or mode exact, which cuts time too' if keep else ''}"
            )
        lengths[longest] = max(int(lengths[longest] * 0.8), 1)


def spans(n: int, length: int, overlap: float) -> list[tuple[int, int]]:
    """Return starts and stops of tiles that cover ``n`` positions, neighbours sharing at least ``overlap`` of their length.

    Example:
        >>> spans(10, 4, 0.25)
        [(0, 4), (3, 7), (6, 10)]
    """
    if length >= n:
        return [(0, n)]
    hop = max(length - math.ceil(length * overlap), 1)
    count = math.ceil((n - length) / hop) + 1
    starts = [(i * (n - length)) // (count - 1) for i in range(count)]
    return [(start, start + length) for start in starts]


def ramps(tiles: Sequence[tuple[int, int]], factor: int) -> list[Tensor]:
    """Return weights of tiles along one axis, ``factor`` positions for each of theirs; they sum to one everywhere.

    Args:
        tiles: starts and stops, ascending.
        factor: positions of the result for each position of the tiles.

    Returns:
        One vector a tile: sin^2 where it begins to overlap with the tile before, cos^2 where with the next one.
    """
    n = tiles[-1][1] * factor
    weights, total = [], torch.zeros(n, dtype=torch.float64)
    for i, (start, stop) in enumerate(tiles):
        w = torch.ones((stop - start) * factor, dtype=torch.float64)
        before = (tiles[i - 1][1] - start) * factor if i else 0
        after = (stop - tiles[i + 1][0]) * factor if i + 1 < len(tiles) else 0
        for amount, part in ((before, slice(0, before)), (after, slice(len(w) - after, None))):
            if amount > 0:
                rise = torch.sin((torch.arange(amount) + 0.5) / amount * (math.pi / 2)).square().double()
                w[part] *= rise if part.start == 0 else rise.flip(0)
        weights.append(w)
        total[start * factor : stop * factor] += w
    return [w / total[start * factor : stop * factor] for w, (start, stop) in zip(weights, tiles, strict=True)]


class Blend:
    """A result that tiles are added to, and the spread of their values on a lattice of positions.

    Args:
        out: ``[1, C, *S]``, or a row of a batch; overwritten.
        tiles: along each axis, in positions of the latent.
        factors: positions of the result for each of these.
    """

    def __init__(self, out: Array, tiles: Sequence[Sequence[tuple[int, int]]], factors: Sequence[int]) -> None:
        self.out, self.tiles, self.factors = out, tiles, factors
        self.weights = [ramps(axis, factor) for axis, factor in zip(tiles, factors, strict=True)]
        self.step = 1
        channels, *size = out.shape[1:]
        while channels * math.prod(math.ceil(n / self.step) for n in size) > LATTICE:
            self.step += 1
        lattice = (channels, *(math.ceil(n / self.step) for n in size))
        self.low, self.high = torch.full(lattice, math.inf), torch.full(lattice, -math.inf)
        out[...] = 0

    def regions(self) -> Iterator[tuple[Region, tuple[int, ...]]]:
        """Yield each tile in positions of the latent, and its number along each axis."""
        numbers = [range(len(axis)) for axis in self.tiles]
        for index in itertools.product(*numbers):
            yield tuple(axis[i] for axis, i in zip(self.tiles, index, strict=True)), index

    def add(self, region: Region, index: Sequence[int], values: Tensor) -> None:
        """Add one tile's values."""
        size = self.out.shape[2:]
        starts = [start * f for (start, _), f in zip(region, self.factors, strict=True)]
        lengths = [min(n, m - s) for n, m, s in zip(values.shape[2:], size, starts, strict=True)]
        if min(lengths) <= 0:
            return
        inside: Any = (..., *(slice(0, n) for n in lengths))
        values = values[inside].cpu()
        at = tuple(-(-s // self.step) for s in starts)
        inside = (0, slice(None), *(slice(a * self.step - s, None, self.step) for a, s in zip(at, starts, strict=True)))
        picked = values[inside]
        where = (slice(None), *(slice(a, a + n) for a, n in zip(at, picked.shape[1:], strict=True)))
        self.low[where] = torch.minimum(self.low[where], picked.float())
        self.high[where] = torch.maximum(self.high[where], picked.float())
        for axis, (weights, i, n) in enumerate(zip(self.weights, index, lengths, strict=True)):
            shape = [1] * values.ndim
            shape[2 + axis] = n
            values = values * weights[i][:n].to(values.dtype).reshape(shape)
        spot = (slice(None), slice(None), *(slice(s, s + n) for s, n in zip(starts, lengths, strict=True)))
        out: Any = self.out
        out[spot] += values if isinstance(out, Tensor) else values.numpy()

    def seams(self) -> SeamError:
        """Return how far tiles disagreed."""
        covered = [torch.zeros(n, dtype=torch.int64) for n in self.out.shape[2:]]
        for count, axis, factor in zip(covered, self.tiles, self.factors, strict=True):
            for start, stop in axis:
                count[start * factor : stop * factor] += 1
        single = math.prod(float((count <= 1).double().mean()) for count in covered)
        grids = torch.meshgrid(*[count[:: self.step] for count in covered], indexing="ij")
        twice = torch.stack([grid > 1 for grid in grids]).any(0)
        spread = (self.high - self.low)[:, twice].double()
        middle = ((self.high + self.low) / 2).double()
        return SeamError(
            rms=float(spread.square().mean().sqrt()) if spread.numel() else 0.0,
            largest=float(spread.max()) if spread.numel() else 0.0,
            scale=float(middle.std(correction=0)),
            overlapping=1 - single,
            num_tiles=math.prod(len(axis) for axis in self.tiles),
        )


def blend(
    run: Callable[[Region], Tensor],
    out: Array,
    tiles: Sequence[Sequence[tuple[int, int]]],
    factors: Sequence[int],
    advance: Callable[[float], None],
) -> SeamError:
    """Fill ``out`` with tiles.

    Args:
        run: gives the values of a tile, named in positions of the latent.
        out: ``[1, C, *S]``.
        tiles: along each axis, in positions of the latent.
        factors: positions of ``out`` for each of these.
        advance: called with the share that is done.

    Returns:
        How far the tiles disagreed.
    """
    result = Blend(out, tiles, factors)
    count = math.prod(len(axis) for axis in tiles)
    for done, (region, index) in enumerate(result.regions(), start=1):
        result.add(region, index, run(region))
        advance(done / count)
    return result.seams()


def merge(errors: Sequence[SeamError]) -> SeamError:
    """Return the disagreement over several images of one size."""
    mean_square = float(np.mean([error.rms**2 for error in errors]))
    first = errors[0]
    largest = max(error.largest for error in errors)
    scale = float(np.mean([error.scale for error in errors]))
    return SeamError(mean_square**0.5, largest, scale, first.overlapping, first.num_tiles)
