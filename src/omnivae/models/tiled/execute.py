"""Carry a schedule out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnivae.models.tiled.arrange import Step
from omnivae.models.tiled.graph import Gather, Input, Node, Reduce, Region
from omnivae.models.tiled.memory import format_bytes, give_back
from omnivae.models.tiled.regions import Source, compute, evaluate
from omnivae.models.tiled.schedule import Schedule
from omnivae.models.tiled.storage import Buffer, scratch_folder

log = logging.getLogger(__name__)

#: Times the arithmetic of a run without tiles above which the user is told.
TELL = 1.5
#: What the user was told already: the reason, and how many times it was.
_told: dict[str, float] = {}

#: Called with a region and its values.
Sink = Callable[[Region, Tensor], None]


@dataclass(frozen=True)
class TileProgress:
    """How far a tiled run is.

    Attributes:
        fraction: of the work that is done: arithmetic, and numbers that go through memory.
        seconds: since it began.
        step: sweep that runs, from 1.
        num_steps: number of sweeps.
    """

    fraction: float
    seconds: float
    step: int
    num_steps: int

    @property
    def remaining_s(self) -> float:
        """Seconds that are left at the present rate."""
        return self.seconds * (1 / self.fraction - 1) if self.fraction > 0 else float("inf")


Progress = Callable[[TileProgress], None]


class _Values(Source):
    """Kept values, whole values and the input of a run."""

    def __init__(self, read: Callable[[Region], Tensor], device: torch.device) -> None:
        self.read, self.device = read, device
        self.buffers: dict[Node, Buffer] = {}
        self.wholes: dict[Node, Tensor] = {}

    def field(self, node: Node, region: Region) -> Tensor | None:
        if isinstance(node, Input):
            return self.read(region).to(self.device, node.dtype)
        buffer = self.buffers.get(node)
        return None if buffer is None else buffer.read(region).to(self.device)

    def whole(self, node: Node) -> Tensor:
        return self.wholes[node]

    def close(self) -> None:
        for buffer in self.buffers.values():
            buffer.close()
        self.buffers.clear()
        self.wholes.clear()


@torch.no_grad()
def execute(
    schedule: Schedule,
    read: Callable[[Region], Tensor],
    *,
    device: torch.device,
    sink: Sink | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Tensor | None:
    """Compute the output of a schedule.

    Args:
        schedule: what to do.
        read: gives a region of the input as a tensor of its own.
        device: where tiles are computed.
        sink: takes the output region by region; without it the output is returned.
        scratch: folder for temporary files; :func:`~omnivae.models.tiled.storage.scratch_folder` by default.
        progress: called after every tile.

    Returns:
        The output, on the CPU, where there is no sink.

    Raises:
        OSError: when the disk has no room for the values that are kept, before anything is computed.
    """
    folder = scratch_folder(scratch)
    check_disk(folder, schedule.file_bytes)
    values = _Values(read, device)
    report = _Report(schedule, progress)
    output: Tensor | None = None
    try:
        for number, step in enumerate(schedule.steps, start=1):
            report.step = number
            if isinstance(step.node, Gather):
                values.wholes[step.node] = _gather(step, values, report)
            elif not step.node.is_field:
                tiles = [_argument(parent, values) for parent in step.node.inputs]
                values.wholes[step.node] = step.node.compute(tiles, step.node.tensors, ())
                report.add(step.cost)
            else:
                last = step.node is schedule.output
                _sweep(step, values, report, folder, sink if last else None)
                if last and sink is None and step.keep and step.in_memory:
                    output = values.buffers[step.node].whole()
            for node in step.frees:
                values.wholes.pop(node, None)
                buffer = values.buffers.pop(node, None)
                if buffer is not None:
                    buffer.close()
    finally:
        values.close()
    return output


def _sweep(step: Step, values: _Values, report: _Report, folder: Path, sink: Sink | None) -> None:
    """Compute a field tile by tile: keep it, hand it on, and take its statistics."""
    node = step.node
    over = None if step.overwrites is None else values.buffers[step.overwrites]
    buffer = Buffer(node, None if step.in_memory else folder, over) if step.keep else None
    states: dict[Reduce, Any] = dict.fromkeys(step.reduces)
    share = step.cost / step.num_tiles
    try:
        for region in step.tiles():
            tile = evaluate(node, region, values)
            for reduce in states:
                states[reduce] = reduce.update(states[reduce], tile, region)
            if buffer is not None:
                buffer.write(region, tile)
            if sink is not None:
                sink(region, tile)
            del tile
            give_back()
            report.add(share)
    except BaseException:
        if buffer is not None:
            buffer.close()
        raise
    for reduce, state in states.items():
        values.wholes[reduce] = reduce.finish(state, *reduce.tensors)
    if buffer is not None:
        values.buffers[node] = buffer
        if step.overwrites is not None:
            del values.buffers[step.overwrites]  # its file goes on as this one's


def _gather(step: Step, values: _Values, report: _Report) -> Tensor:
    field = step.field
    made = torch.empty(field.shape, dtype=field.dtype, device=values.device)
    share = step.cost / step.num_tiles
    for region in step.tiles():
        index = tuple(slice(None) if a is None else slice(*region[a]) for a in field.axes)
        made[index] = evaluate(field, region, values)
        give_back()
        report.add(share)
    return made


def _argument(node: Node, values: _Values) -> Any:
    if node.is_field:
        return compute(node, node.full(), values)
    return values.wholes[node] if node in values.wholes else node.tensors[0]


class _Report:
    def __init__(self, schedule: Schedule, progress: Progress | None) -> None:
        self.progress, self.count = progress, len(schedule.steps)
        self.total = max(sum(step.cost for step in schedule.steps), 1.0)
        self.done, self.step, self.begun = 0.0, 0, time.perf_counter()

    def add(self, work: float) -> None:
        self.done += work
        if self.progress is not None:
            seconds = time.perf_counter() - self.begun
            self.progress(TileProgress(min(self.done / self.total, 1.0), seconds, self.step, self.count))


def check_disk(folder: Path, needed: int) -> None:
    """Raise ``OSError`` where a folder has no room for temporary files.

    Args:
        folder: for them.
        needed: bytes.
    """
    if not needed:
        return
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"values between the layers need {format_bytes(needed)} in {folder}, which has {format_bytes(free)} free: give more "
            "memory, or scratch= another folder (the environment variable TMPDIR for commands)"
        )


def tell_price(schedule: Schedule, scratch: Path | None = None) -> None:
    """Say in one sentence why a run takes much more arithmetic than one without tiles, and what helps.

    A reason is named once in a process, and again only where its price is half as high again.

    Args:
        schedule: what will be carried out.
        scratch: folder for temporary files, as for :func:`execute`.
    """
    folder = scratch_folder(scratch)
    free = shutil.disk_usage(folder).free
    reason = "disk" if schedule.recomputed else "memory"
    if schedule.factor <= TELL * _told.get(reason, 1.0) or schedule.file_bytes > free:
        return  # said already, or refused at once
    _told[reason] = schedule.factor
    if schedule.recomputed:
        log.warning(
            "tiles take %.1f times the arithmetic of a run without them, because the %s of values between the layers do not fit "
            "into %s, which has %s free: free disk there, name another folder (scratch=, or the environment variable TMPDIR for "
            "commands), or give more memory",
            schedule.factor,
            format_bytes(schedule.wanted_bytes),
            folder,
            format_bytes(free),
        )
    else:
        log.warning(
            "tiles take %.1f times the arithmetic of a run without them, because those that fit into %s are small beside the "
            "neighbours that they need: give more memory",
            schedule.factor,
            format_bytes(schedule.peak_bytes),
        )
