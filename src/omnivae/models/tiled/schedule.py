"""Decide in which order a graph is computed, what is kept, where, and in tiles of which size.

Statistics need a value everywhere before anything behind them can be computed. So a value that statistics are taken of, or that
two branches read, is computed once, tile by tile, and kept; what lies between kept values is computed again for every
tile, with as many neighbours as it needs. A network with a normalisation before every convolution is swept layer by layer,
and no convolution is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omnivae.models.tiled.arrange import Arrangement, Step, arrange, enough, plain_work, topological
from omnivae.models.tiled.graph import Gather, Node, Region
from omnivae.models.tiled.memory import format_bytes
from omnivae.models.tiled.regions import region_work, tile_bytes

#: Times the arithmetic of a run without tiles above which values are not computed again, whatever the disk holds.
MOST_WORK = 16
#: Shares of the memory that kept values may take, tried in turn; the rest is for tiles.
KEPT = (0.45, 0.15, 0.0)


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
        wanted_bytes: the most in files at once if none were computed again.
    """

    source: Node
    output: Node
    steps: list[Step]
    peak_bytes: int = 0
    file_bytes: int = 0
    work: float = 0.0
    plain_work: float = 0.0
    recomputed: int = 0
    wanted_bytes: int = 0

    @property
    def factor(self) -> float:
        """Arithmetic in units of that of a run without tiles."""
        return self.work / max(self.plain_work, 1.0)


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
    sizes: dict[Any, int] = {}
    for share in KEPT:
        try:
            return _schedule(source, order, memory, keep_output, disk, share, sizes)
        except ValueError:
            # A tile does not fit beside what is kept in memory, which may go to files.
            if share == KEPT[-1]:
                raise
    raise AssertionError("the last share returns or raises")


def _schedule(
    source: Node,
    order: Sequence[Node],
    memory: int,
    keep_output: bool,
    disk: int | None,
    share: float,
    sizes: dict[Any, int],
) -> Schedule:
    output = order[-1]

    def arranged(dropped: set[Node]) -> Arrangement:
        return arrange(order, output, memory, share=share, keep_output=keep_output, dropped=dropped)

    plan, dropped = arranged(set()), set[Node]()
    wanted, needed = plan.file_bytes, set[Node]()
    most = MOST_WORK * plain_work(order)
    while True:
        if disk is not None and wanted > disk:
            plan, dropped = _within_disk(order, arranged, disk, needed)
        crowded = _tile(plan, memory, dropped, most, sizes)
        if crowded is None:
            break
        needed.add(crowded)
    peak = max(taken + step.tile_bytes for step, taken in zip(plan.steps, plan.used, strict=True))
    return Schedule(
        source,
        output,
        plan.steps,
        peak_bytes=peak,
        file_bytes=plan.file_bytes,
        work=sum(step.work for step in plan.steps),
        plain_work=plain_work(order),
        recomputed=len(dropped),
        wanted_bytes=wanted,
    )


def _tile(plan: Arrangement, memory: int, dropped: set[Node], most: float, sizes: dict[Any, int]) -> Node | None:
    """Choose the tiles of every step, or return a value that is to be kept because tiles or their margins grow too large."""
    for step, taken in zip(plan.steps, plan.used, strict=True):
        if not step.node.is_field and not isinstance(step.node, Gather):
            step.tile_bytes, step.work = 0, float(math.prod(step.node.shape))
            continue
        try:
            _choose_tiles(step, memory - taken, taken, memory, sizes)
        except ValueError:
            crowded = _nearest(step, dropped)
            if crowded is None:
                raise
            return crowded
    if sum(step.work for step in plan.steps) <= most:
        return None
    swept = sorted((step for step in plan.steps if step.splits), key=lambda step: -step.work)
    return next(filter(None, (_nearest(step, dropped) for step in swept)), None)


def _nearest(step: Step, dropped: set[Node]) -> Node | None:
    """Return the last value that a step computes again on the way to its own."""
    return next((node for node in reversed(topological(step.field, set(step.reads))) if node in dropped), None)


def _within_disk(
    order: Sequence[Node], arranged: Callable[[set[Node]], Arrangement], disk: int, needed: set[Node]
) -> tuple[Arrangement, set[Node]]:
    """Return a plan whose files fit the disk, and the values that it computes again whenever they are read.

    Values are given up one by one, those first that make much room for little arithmetic. Where no value makes room alone, because
    what it is computed from is then needed for longer, the one that costs least goes, and the next one may. Where nothing
    fits, or only at an absurd price, the plan is the smallest one: whoever carries it out says how much is missing.

    Args:
        order: the graph.
        arranged: arranges the steps without some values.
        disk: bytes.
        needed: values that are kept in any case.

    Returns:
        The plan, and what is computed again.
    """

    plan = best = arranged(set())
    most = MOST_WORK * max(plan.work, plain_work(order))

    def tried(without: set[Node]) -> Arrangement | None:
        try:
            made = arranged(without)
        except ValueError:
            return None  # a whole value would have to stay for longer than the memory allows
        return made if made.work <= most else None

    dropped, fewest = set[Node](), set[Node]()
    while plan.file_bytes > disk:
        over, chosen = plan.excess(disk), None
        rank = (-math.inf, -math.inf)
        for step in plan.steps:
            if not step.keep or step.in_memory or step.node is order[-1] or step.node in needed:
                continue
            trial = tried({*dropped, step.node})
            if trial is None:
                continue
            room, more = over - trial.excess(disk), max(trial.work - plan.work, 1.0)
            if (max(room / more, 0.0), -more) > rank:
                rank, chosen = (max(room / more, 0.0), -more), (step.node, trial)
        if chosen is None:
            return best, fewest
        dropped.add(chosen[0])
        plan = chosen[1]
        if plan.file_bytes < best.file_bytes:
            best, fewest = plan, set(dropped)
    for node in [node for node in order if node in dropped]:
        # What was given up first may have room again.
        less = tried(dropped - {node})
        if less is not None and less.file_bytes <= disk and less.work <= plan.work:
            dropped.remove(node)
            plan = less
    return plan, dropped


def _choose_tiles(step: Step, budget: int, taken: int, memory: int, sizes: dict[Any, int]) -> None:
    node = step.field
    known = set(step.reads)
    filed = step.keep and not step.in_memory
    splits = [1] * len(node.size)
    while True:
        step.splits = tuple(splits)
        lengths = [math.ceil(n / parts) for n, parts in zip(node.size, splits, strict=True)]
        step.tile_bytes = 0
        for region in _largest(node.size, lengths):
            key = (node, region, frozenset(known), filed)
            if key not in sizes:
                sizes[key] = tile_bytes(node, region, known, filed=filed)
            step.tile_bytes = max(step.tile_bytes, sizes[key])
            if step.tile_bytes > budget:
                break
        else:
            break
        # The last axis is contiguous in files and in the caches: it is cut when the others are short.
        weights = [length if axis < len(lengths) - 1 else length / 2 for axis, length in enumerate(lengths)]
        longest = max(range(len(lengths)), key=weights.__getitem__)
        if lengths[longest] <= 2:
            _refuse_tile(step, taken, memory)
        splits[longest] = math.ceil(node.size[longest] / math.ceil(lengths[longest] / 2))
    count = math.prod(math.ceil(n / length) for n, length in zip(node.size, lengths, strict=True))
    inner = next(_largest(node.size, lengths))
    step.work = region_work(node, inner, known) * count


def _largest(size: Sequence[int], lengths: Sequence[int]) -> Iterator[Region]:
    """Yield the tiles that may take the most memory: one inside, and one at the border of each axis, where padding copies."""
    inner = [(n - length) // 2 for n, length in zip(size, lengths, strict=True)]
    yield tuple((start, start + length) for start, length in zip(inner, lengths, strict=True))
    for axis, start in enumerate(inner):
        if start:
            yield tuple(
                (0, length) if i == axis else (begin, begin + length)
                for i, (begin, length) in enumerate(zip(inner, lengths, strict=True))
            )


def _refuse_tile(step: Step, taken: int, memory: int) -> None:
    needed = taken + step.tile_bytes
    raise ValueError(
        f"the smallest tile of {step.node.module or 'the network'} takes {format_bytes(step.tile_bytes)} beside "
        f"{format_bytes(taken)} that is kept; got memory={format_bytes(memory)}: "
        f"give {enough(needed)}"
    )
