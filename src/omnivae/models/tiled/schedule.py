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

from omnivae.models.tiled.graph import AsField, Constant, Gather, Input, Local, Node, Reduce, Region
from omnivae.models.tiled.memory import format_bytes
from omnivae.models.tiled.regions import region_work, tile_bytes

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
        overwrites: a kept value that nothing needs afterwards and whose place this one takes, region by region.
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
    overwrites: Node | None = None
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
        recomputed: number of values that are computed again instead of kept, because the disk would not hold them.
    """

    source: Node
    output: Node
    steps: list[Step]
    peak_bytes: int = 0
    file_bytes: int = 0
    work: float = 0.0
    plain_work: float = 0.0
    recomputed: int = 0


def make_schedule(source: Node, output: Node, memory: int, *, keep_output: bool, disk: int | None = None) -> Schedule:
    """Return how to compute ``output`` within ``memory`` bytes, and where possible within ``disk`` bytes of temporary files.

    Args:
        source: the input, which is somewhere else.
        output: a field.
        memory: bytes for tiles, kept values and whole ones.
        keep_output: whether the output is kept in memory, not handed on tile by tile.
        disk: bytes for values in files. Where they do not do, those that are cheapest for their size are computed again
            whenever they are read; the schedule says what it takes in the end, which may still be more.

    Returns:
        The schedule.

    Raises:
        ValueError: when no tile is small enough, naming what needs the memory.
    """
    order = topological(output)
    steps, used, files = _arrange(order, output, memory, keep_output, set())
    dropped: set[Node] = set()
    while disk is not None and max(files, default=0) > disk:
        chosen = _recomputed(order, output, memory, keep_output, dropped, disk)
        if chosen is None:
            break  # not even that fits: whoever carries it out says how much is missing
        dropped.add(chosen)
        steps, used, files = _arrange(order, output, memory, keep_output, dropped)
    for node in [node for node in order if node in dropped]:
        # What was given up first may have room again.
        less = _arrange(order, output, memory, keep_output, dropped - {node})
        if disk is not None and max(less[2], default=0) <= disk:
            dropped.remove(node)
            steps, used, files = less
    peak = 0
    for step, taken in zip(steps, used, strict=True):
        if step.node.is_field or isinstance(step.node, Gather):
            _choose_tiles(step, memory - taken, taken, memory)
        else:
            step.tile_bytes, step.work = 0, float(math.prod(step.node.shape))
        peak = max(peak, taken + step.tile_bytes)
    return Schedule(
        source,
        output,
        steps,
        peak_bytes=peak,
        file_bytes=max(files, default=0),
        work=sum(step.work for step in steps),
        plain_work=sum(node.work(node.full()) for node in order if _is_computed(node)),
        recomputed=len(dropped),
    )


def _is_computed(node: Node) -> bool:
    return node.is_field and not isinstance(node, (Input, AsField))


def _arrange(
    order: Sequence[Node], output: Node, memory: int, keep_output: bool, dropped: set[Node]
) -> tuple[list[Step], list[int], list[int]]:
    """Return the steps, without tiles, and the bytes that are kept in memory and in files during each."""
    steps = _steps(order, output, dropped)
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
    _share(steps)
    used = _live(steps, [step for step in steps if _stays(step) or (step.keep and step.in_memory)])
    return steps, used, _live(steps, [step for step in steps if step.keep and not step.in_memory])


def _recomputed(
    order: Sequence[Node], output: Node, memory: int, keep_output: bool, dropped: set[Node], disk: int
) -> Node | None:
    """Return the value in a file that is best computed again whenever it is read: much room for little arithmetic."""
    steps, _, files = _arrange(order, output, memory, keep_output, dropped)
    over, work = _excess(files, disk), _sweep_work(steps)
    best, chosen = 0.0, None
    for step in steps:
        if not step.keep or step.in_memory or step.node is output:
            continue
        trial, _, left = _arrange(order, output, memory, keep_output, {*dropped, step.node})
        rate = (over - _excess(left, disk)) / max(_sweep_work(trial) - work, 1.0)
        if rate > best:
            best, chosen = rate, step.node
    return chosen


def _excess(files: Sequence[int], disk: int) -> float:
    return float(sum(max(taken - disk, 0) for taken in files))


def _sweep_work(steps: Sequence[Step]) -> float:
    return sum(region_work(step.field, step.field.full(), set(step.reads)) for step in steps if step.field.is_field)


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


def _steps(order: Sequence[Node], output: Node, dropped: set[Node]) -> list[Step]:
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
            kept.update(p for p in deep if p not in dropped)
            behind = max((chain[p] for p in node.inputs if p not in kept), default=0)
        # What is computed again by decision does not count, or something else of its size would be kept in its place.
        chain[node] = 0 if node in dropped else behind + int(node.heavy)
        readers = [c for c in consumers[node] if not isinstance(c, Reduce)]
        summed = len(readers) < len(consumers[node])
        if chain[node] and node is not output and node not in dropped and (summed or len(readers) > 1):
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
        shared = step.node in chosen and step.overwrites in chosen
        alive += 0 if shared else chosen.get(step.node, 0)
        live.append(alive)
        alive -= sum(chosen.get(node, 0) for node in step.frees if not (shared and node is step.overwrites))
    return live


def _share(steps: Sequence[Step]) -> None:
    """Let a sum take the place of the summand that it is the last to read, as additions in place do."""
    by_node = {step.node: step for step in steps}
    for step in steps:
        node = step.node
        if not step.keep or not node.is_field:
            continue
        for old in _read_pointwise(step):
            kept = by_node[old]
            alike = (old.shape, old.dtype, old.axes) == (node.shape, node.dtype, node.axes)
            if alike and old in step.frees and kept.keep and kept.in_memory == step.in_memory:
                step.overwrites = old
                break


def _read_pointwise(step: Step) -> list[Node]:
    """Return the kept fields of which every position is read for the same position of the result only."""
    known = set(step.reads)
    found: dict[Node, bool] = {}
    seen: set[tuple[Node, bool]] = set()
    stack = [(step.node, True)]
    while stack:
        node, same = stack.pop()
        if (node, same) in seen:
            continue
        seen.add((node, same))
        for parent in node.inputs:
            here = same and isinstance(node, Local) and parent.is_field and parent.size == node.size
            if parent in known and parent.is_field:
                found[parent] = found.get(parent, True) and here
            elif parent not in known and not isinstance(parent, Input):
                stack.append((parent, here))
    return [node for node, alone in found.items() if alone]


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
