"""Decide in which order a graph is computed, what is kept, where, and in tiles of which size.

Statistics need a value everywhere before anything behind them can be computed. So a value that statistics are taken of, or that
two branches read, is computed once, tile by tile, and kept; what lies between kept values is computed again for every
tile, with as many neighbours as it needs. A network with a normalisation before every convolution is swept layer by layer,
and no convolution is computed twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnivae.models.tiled.graph import AsField, Constant, Gather, Input, Node, Reduce, Region
from omnivae.models.tiled.memory import AllocationTracker, format_bytes

#: Convolutions behind one another that are computed together before a value is kept.
CHAIN = 3
#: Share of the memory that kept values may take; the rest is for tiles.
KEPT = 0.45


@dataclass(eq=False)
class Step:
    """One sweep over a field, or one whole value.

    Attributes:
        node: what is computed.
        keep: whether it is kept.
        in_memory: kept in memory, not in a file.
        reduces: statistics that are taken on the way.
        reads: kept and whole values that it is computed from.
        frees: those that nothing needs afterwards.
        splits: parts along each axis.
        tile_bytes: the most that one tile takes while it is computed.
        work: multiplications, neighbours of tiles included.
    """

    node: Node
    keep: bool = False
    in_memory: bool = False
    reduces: list[Reduce] = dataclasses.field(default_factory=list)
    reads: list[Node] = dataclasses.field(default_factory=list)
    frees: list[Node] = dataclasses.field(default_factory=list)
    splits: tuple[int, ...] = ()
    tile_bytes: int = 0
    work: float = 0.0

    @property
    def field(self) -> Node:
        """The field that is computed tile by tile."""
        return self.node.inputs[0] if isinstance(self.node, Gather) else self.node

    def tiles(self) -> Iterator[Region]:
        """Yield the regions, each at most as large as the first."""
        edges = []
        for n, parts in zip(self.field.size, self.splits, strict=True):
            length = math.ceil(n / parts)
            edges.append([(start, min(start + length, n)) for start in range(0, n, length)])
        yield from itertools.product(*edges)

    @property
    def num_tiles(self) -> int:
        """Number of regions."""
        return sum(1 for _ in self.tiles()) if self.splits else 1


@dataclass(eq=False)
class Schedule:
    """What will be done, and what it takes.

    Attributes:
        source: what the network is called with.
        output: what it returns.
        steps: in order.
        peak_bytes: the most memory at once: tiles, kept values and whole ones.
        file_bytes: the most in files at once.
        work: multiplications.
        plain_work: those of a run without tiles.
    """

    source: Node
    output: Node
    steps: list[Step]
    peak_bytes: int = 0
    file_bytes: int = 0
    work: float = 0.0
    plain_work: float = 0.0


def make_schedule(source: Node, output: Node, memory: int, *, keep_output: bool) -> Schedule:
    """Return how to compute ``output`` within ``memory`` bytes.

    Args:
        source: the input, which is somewhere else.
        output: a field.
        memory: bytes for tiles, kept values and whole ones.
        keep_output: whether the output is kept in memory, not handed on tile by tile.

    Returns:
        The schedule.

    Raises:
        ValueError: when no tile is small enough, naming what needs the memory.
    """
    order = topological(output)
    steps = _steps(order, output)
    by_node = {step.node: step for step in steps}
    _lifetimes(steps)
    if keep_output:
        by_node[output].keep = by_node[output].in_memory = True
    for step in steps:
        if isinstance(step.node, Gather):
            step.keep = step.in_memory = True
    fixed = _live(steps, [step for step in steps if _stays(step)])
    if max(fixed) > memory:
        place = fixed.index(max(fixed))
        _refuse_whole(steps, place, fixed[place], memory)
    _place(steps, fixed, memory)
    used = _live(steps, [step for step in steps if _stays(step) or (step.keep and step.in_memory)])
    files = _live(steps, [step for step in steps if step.keep and not step.in_memory])
    peak = 0
    for step, taken in zip(steps, used, strict=True):
        if step.node.is_field or isinstance(step.node, Gather):
            _choose_tiles(step, memory - taken, taken, memory)
        else:
            step.tile_bytes, step.work = 0, float(math.prod(step.node.shape))
        peak = max(peak, taken + step.tile_bytes)
    plain = sum(node.work(node.full()) for node in order if node.is_field and not isinstance(node, (Input, AsField)))
    return Schedule(source, output, steps, peak, max(files, default=0), sum(step.work for step in steps), plain)


def topological(output: Node) -> list[Node]:
    """Return every node that ``output`` is computed from, inputs before what is made of them, and itself."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(output, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.inputs))
    return order


# -- steps


def _steps(order: Sequence[Node], output: Node) -> list[Step]:
    consumers: dict[Node, list[Node]] = {node: [] for node in order}
    for node in order:
        for parent in dict.fromkeys(node.inputs):
            consumers[parent].append(node)
    chain: dict[Node, int] = {}
    kept: set[Node] = set()
    for node in order:
        if not node.is_field or isinstance(node, Input):
            chain[node] = 0
            continue
        behind = max((chain[p] for p in node.inputs if p not in kept), default=0)
        if node.heavy and behind >= CHAIN:
            deep = [p for p in node.inputs if p.is_field and p not in kept and chain[p] >= CHAIN]
            kept.update(deep)
            behind = max((chain[p] for p in node.inputs if p not in kept), default=0)
        chain[node] = behind + int(node.heavy)
        readers = [c for c in consumers[node] if not isinstance(c, Reduce)]
        summed = len(readers) < len(consumers[node])
        if chain[node] and node is not output and (summed or len(readers) > 1):
            kept.add(node)
    steps: list[Step] = []
    sweeps: dict[Node, Step] = {}
    for node in order:
        if isinstance(node, Reduce):
            swept = node.inputs[0]
            if swept not in sweeps:
                sweeps[swept] = Step(swept)
                steps.append(sweeps[swept])
            sweeps[swept].reduces.append(node)
        elif node in kept or node is output:
            sweeps[node] = Step(node, keep=node in kept)
            steps.append(sweeps[node])
        elif not node.is_field and not isinstance(node, Constant):
            steps.append(Step(node))
    return steps


def _lifetimes(steps: Sequence[Step]) -> None:
    known = {step.node for step in steps if step.keep or not step.node.is_field} | {
        reduce for step in steps for reduce in step.reduces
    }
    for step in steps:
        step.reads = _sources(step.node, known)
    last: dict[Node, Step] = {}
    for step in steps:
        for node in step.reads:
            last[node] = step
    for node, step in last.items():
        step.frees.append(node)


def _sources(node: Node, known: set[Node]) -> list[Node]:
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(node.inputs)
    while stack:
        parent = stack.pop()
        if parent in seen:
            continue
        seen.add(parent)
        if parent in known:
            found[parent] = None
        else:
            stack.extend(parent.inputs)
    return list(found)


# -- memory


def _stays(step: Step) -> bool:
    """Whether a step's value is in memory whatever the budget."""
    return (not step.node.is_field) or (step.keep and step.in_memory)


def _live(steps: Sequence[Step], counted: Sequence[Step]) -> list[int]:
    """Return the bytes of the values of some steps that are alive during each step."""
    chosen = {step.node: step.node.num_bytes for step in counted}
    alive, live = 0, []
    for step in steps:
        alive += chosen.get(step.node, 0)
        live.append(alive)
        alive -= sum(chosen.get(node, 0) for node in step.frees)
    return live


def _place(steps: Sequence[Step], fixed: Sequence[int], memory: int) -> None:
    """Keep small values in memory, as many as fit beside the tiles; the others go to files."""
    ends = {node: i for i, step in enumerate(steps) for node in step.frees}
    free = [int(KEPT * (memory - taken)) for taken in fixed]
    for begin, step in sorted(enumerate(steps), key=lambda pair: pair[1].node.num_bytes):
        if not step.keep or step.in_memory:
            continue
        span = range(begin, ends.get(step.node, len(steps) - 1) + 1)
        if all(free[i] >= step.node.num_bytes for i in span):
            step.in_memory = True
            for i in span:
                free[i] -= step.node.num_bytes


def _choose_tiles(step: Step, budget: int, taken: int, memory: int) -> None:
    node = step.field
    known = set(step.reads)
    splits = [1] * len(node.size)
    while True:
        step.splits = tuple(splits)
        lengths = [math.ceil(n / parts) for n, parts in zip(node.size, splits, strict=True)]
        middle = [(n - length) // 2 for n, length in zip(node.size, lengths, strict=True)]
        region = tuple((start, start + length) for start, length in zip(middle, lengths, strict=True))
        step.tile_bytes = tile_bytes(node, region, known, filed=step.keep and not step.in_memory)
        if step.tile_bytes <= budget:
            break
        # The last axis is contiguous in files and in the caches: it is cut when the others are short.
        weights = [length if axis < len(lengths) - 1 else length / 2 for axis, length in enumerate(lengths)]
        longest = max(range(len(lengths)), key=weights.__getitem__)
        if lengths[longest] <= 2:
            _refuse_tile(step, taken, memory)
        splits[longest] = math.ceil(node.size[longest] / math.ceil(lengths[longest] / 2))
    count = math.prod(math.ceil(n / length) for n, length in zip(node.size, lengths, strict=True))
    step.work = region_work(node, region, known) * count


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
    for parent, need in zip(node.inputs, node.needs(region), strict=True):
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
        if isinstance(parent, Constant):
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


# -- refusals


def _refuse_whole(steps: Sequence[Step], place: int, needed: int, memory: int) -> None:
    raise ValueError(
        f"{_blame(steps, place)}, which takes {format_bytes(needed)} of memory at once; got memory={format_bytes(memory)}: "
        f"give {_more(needed)}, or use mode='blended'"
    )


def _blame(steps: Sequence[Step], place: int) -> str:
    gathers = [step.node for step in steps[: place + 1] if isinstance(step.node, Gather)]
    if gathers:
        return f"{gathers[-1].module} relates all positions to each other"
    return f"{steps[place].node.module or 'the result'} is kept whole"


def _refuse_tile(step: Step, taken: int, memory: int) -> None:
    needed = taken + step.tile_bytes
    raise ValueError(
        f"the smallest tile of {step.node.module or 'the network'} takes {format_bytes(step.tile_bytes)} beside "
        f"{format_bytes(taken)} that is kept; got memory={format_bytes(memory)}: "
        f"give {_more(needed)}"
    )


def _more(needed: int) -> str:
    amount = 1.3 * needed
    text = f"{math.ceil(amount / 1e6)}MB" if amount < 1e9 else f"{math.ceil(amount / 1e8) / 10}GB"
    return f"memory='{text}' or more"
