"""Decide which values of a graph are kept, until when, and where: in memory, in files, or in the place of another one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from omnivae.models.tiled.graph import AsField, Constant, Gather, Input, Local, Node, Reduce, Region
from omnivae.models.tiled.memory import format_bytes

#: Convolutions behind one another that are computed together before a value is kept.
CHAIN = 3
#: Multiplications for each element above which a value that is read twice is kept although no convolution lies behind it.
DEAR = 256
#: Multiplications in the time of one number that passes through memory and a file.
TOUCH = 400


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

    @property
    def cost(self) -> float:
        """How long it takes beside other steps: its multiplications, and every number that is read, written and summed."""
        return self.work + TOUCH * math.prod(self.field.shape)

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
class Arrangement:
    """Steps without tiles.

    Attributes:
        steps: in order.
        used: bytes that are kept in memory during each.
        files: bytes that are kept in files during each.
        work: multiplications, but for the margins of tiles.
    """

    steps: list[Step]
    used: list[int]
    files: list[int]
    work: float

    @property
    def file_bytes(self) -> int:
        """The most in files at once."""
        return max(self.files, default=0)

    def excess(self, disk: int) -> int:
        """Return by how much files are larger than the disk, summed over the steps."""
        return sum(max(taken - disk, 0) for taken in self.files)


def plain_work(order: Sequence[Node]) -> float:
    """Return the multiplications of a run without tiles."""
    return sum(node.work(node.full()) for node in order if _is_computed(node))


def _is_computed(node: Node) -> bool:
    return node.is_field and not isinstance(node, (Input, AsField))


def arrange(
    order: Sequence[Node], output: Node, memory: int, *, share: float, keep_output: bool, dropped: set[Node]
) -> Arrangement:
    """Return the steps, and where their values are kept.

    Args:
        order: the graph, inputs before what is made of them.
        output: its end.
        memory: bytes for tiles, kept values and whole ones.
        share: of the memory that kept values may take.
        keep_output: whether the output is kept in memory.
        dropped: values that are computed again whenever they are read.

    Raises:
        ValueError: when whole values alone take more than the memory, naming what needs it.
    """
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
    _place(steps, fixed, memory, share)
    _share(steps)
    used = _live(steps, [step for step in steps if _stays(step) or (step.keep and step.in_memory)])
    files = _live(steps, [step for step in steps if step.keep and not step.in_memory])
    return Arrangement(steps, used, files, sum(_sweep_work(step) for step in steps if step.field.is_field))


def _sweep_work(step: Step) -> float:
    """Return the multiplications of a sweep without those of margins: every node as often as paths lead to it."""
    known = set(step.reads)
    if step.field in known:
        return 0.0
    paths = {step.field: 1.0}
    total = 0.0
    for node in reversed(topological(step.field, known)):
        if node in known or not _is_computed(node):
            continue
        total += paths[node] * node.work(node.full())
        for parent in set(node.inputs):
            paths[parent] = paths.get(parent, 0.0) + paths[node]
    return total


def topological(output: Node, known: Collection[Node] = ()) -> list[Node]:
    """Return every node that ``output`` is computed from, inputs before what is made of them, and itself.

    Args:
        output: a node.
        known: nodes to stop at.
    """
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
            if node not in known:
                stack.extend((parent, False) for parent in reversed(node.inputs))
    return order


# -- steps


def _steps(order: Sequence[Node], output: Node, dropped: set[Node]) -> list[Step]:
    consumers: dict[Node, list[Node]] = {node: [] for node in order}
    for node in order:
        for parent in dict.fromkeys(node.inputs):
            consumers[parent].append(node)
    chain: dict[Node, int] = {}
    cost: dict[Node, float] = {}
    kept: set[Node] = set()
    for node in order:
        if not node.is_field or isinstance(node, Input):
            chain[node], cost[node] = 0, 0.0
            continue
        behind = max((chain[p] for p in node.inputs if p not in kept), default=0)
        if node.heavy and behind >= CHAIN:
            deep = [p for p in node.inputs if p.is_field and p not in kept and chain[p] >= CHAIN]
            kept.update(p for p in deep if p not in dropped)
            behind = max((chain[p] for p in node.inputs if p not in kept), default=0)
        # What is computed again by decision does not count, or something else of its size would be kept in its place.
        chain[node] = 0 if node in dropped else behind + int(node.heavy)
        cost[node] = node.work(node.full()) + sum(cost[p] for p in set(node.inputs) if p not in kept)
        if node is output or node in dropped or all(isinstance(c, Reduce) for c in consumers[node]):
            continue
        # Blocks of pointwise layers alone would be computed twice as often with each that follows.
        dear = chain[node] or cost[node] > DEAR * math.prod(node.shape)
        if dear and len({Reduce if isinstance(c, Reduce) else c for c in consumers[node]}) > 1:
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


def _place(steps: Sequence[Step], fixed: Sequence[int], memory: int, share: float) -> None:
    """Keep small values in memory, as many as fit beside the tiles; the others go to files."""
    ends = {node: i for i, step in enumerate(steps) for node in step.frees}
    free = [int(share * (memory - taken)) for taken in fixed]
    for begin, step in sorted(enumerate(steps), key=lambda pair: pair[1].node.num_bytes):
        if not step.keep or step.in_memory:
            continue
        span = range(begin, ends.get(step.node, len(steps) - 1) + 1)
        if all(free[i] >= step.node.num_bytes for i in span):
            step.in_memory = True
            for i in span:
                free[i] -= step.node.num_bytes


# -- refusals


def _refuse_whole(steps: Sequence[Step], place: int, needed: int, memory: int) -> None:
    raise ValueError(
        f"{_blame(steps, place)}, which takes {format_bytes(needed)} of memory at once; got memory={format_bytes(memory)}: "
        f"give {enough(needed)}, or use mode='blended'"
    )


def _blame(steps: Sequence[Step], place: int) -> str:
    gathers = [step.node for step in steps[: place + 1] if isinstance(step.node, Gather)]
    if gathers:
        return f"{gathers[-1].module} relates all positions to each other"
    return f"{steps[place].node.module or 'the result'} is kept whole"


def enough(needed: int) -> str:
    """Return a budget that holds a number of bytes with some room, as an advice."""
    amount = 1.3 * needed
    text = f"{math.ceil(amount / 1e6)}MB" if amount < 1e9 else f"{math.ceil(amount / 1e8) / 10}GB"
    return f"memory='{text}' or more"
