"""Several processes as one run: who is who, decisions in common, and one sentence when one of them is lost.

Processes are started by ``torchrun`` or by :mod:`omnivae.training.launch`; each finds its place in the environment that those
set. All of them compute every decision alike (when to save, when to stop, which checkpoint is the best), and only rank 0
writes files.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from omnivae.training.config import TrainingConfig
from omnivae.training.world import World, check_world, world

T = TypeVar("T")

#: How long a process waits for the others: long enough for rank 0 to draw and save, short enough to notice a dead machine.
TIMEOUT = timedelta(minutes=30)
#: Seconds in which a process that has found something wrong works out what to say.
PATIENCE_S = 120.0
#: Set by our launcher: its own process id.
SUPERVISOR = "OMNIVAE_SUPERVISOR"
#: What the processes leave in their store for the launcher.
FAILURE, RESULT, CHECKPOINT = "failure", "result", "checkpoint"
_PREFIX = "omnivae"
#: Words of the transports for a peer that is gone.
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "Timed out waiting", "gloo", "NCCL")


@dataclass(frozen=True)
class _Peers:
    """What is needed to speak of the other processes when one of them is gone."""

    world: World
    store: Any
    #: (host, process id) by rank.
    processes: list[tuple[str, int]]


_peers: _Peers | None = None


def join(place: World) -> None:
    """Connect the processes of the run; does nothing in a single one, or a second time.

    Args:
        place: this process.
    """
    global _peers
    if place.size == 1 or _peers is not None:
        return
    if place.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(place.local_rank)
    if not dist.is_initialized():
        # Decisions go over gloo also where gradients go over NCCL: they never wait for the device.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
    processes = gather((socket.gethostname(), os.getpid()))
    _peers = _Peers(place, dist.PrefixStore(_PREFIX, store), processes)


@contextmanager
def joined(config: TrainingConfig) -> Iterator[None]:
    """Be one of the processes of a run, from before anything is read until everything is written.

    Args:
        config: how to train.

    Raises:
        ValueError: where the launcher, the hardware and the configuration disagree.
        ChildProcessError: when another process is lost.
    """
    global _peers
    place = world()
    join(place)
    try:
        together(lambda: check_world(config, place))
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise ChildProcessError(lost_sentence()) from error
    if _peers is not None:
        _peers = None
        dist.destroy_process_group()


# -- decisions in common


def several() -> bool:
    """Return whether this process is connected to others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(value: T) -> list[T]:
    """Return the values of all processes, by rank.

    Args:
        value: this process's.
    """
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: T) -> T:
    """Return rank 0's value in every process."""
    if not several():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def largest(number: int) -> int:
    """Return the largest of the processes' numbers: a decision that any one of them can bring about."""
    if not several():
        return number
    box = torch.tensor([number])
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def asks_at(step: int, device: torch.device) -> bool:
    """Return whether the processes take a common decision after this step: not each time where that would hold a GPU up.

    Args:
        step: optimiser steps done.
        device: what trains.
    """
    return not several() or device.type == "cpu" or step % 10 == 0


def mean_rows(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Average tables over the processes, name by name; a number that only some of them have is their mean.

    Args:
        rows: as many in every process.

    Returns:
        The same in every process.
    """
    result = []
    for row, *others in zip(*gather(rows), strict=True):
        values = {name: [part[name] for part in (row, *others) if name in part] for name in row | merged(others)}
        result.append({name: sum(found) / len(found) for name, found in values.items()})
    return result


def merged(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return all rows in one; of equal names the last counts."""
    return {name: value for row in rows for name, value in row.items()}


def noise_seed(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of a process's noise: a stream of its own for every process.

    Args:
        seed: the run's.
        rank: the process's.
        step: step at which the stream starts.
    """
    return int.from_bytes(hashlib.sha256(f"noise {seed} {rank} {step}".encode()).digest()[:8]) >> 1


def copy_from_rank_zero(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of rank 0, in place.

    Args:
        tensors: the same shapes in the same order in every process.
    """
    if several():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


class _Whole(torch.autograd.Function):
    """All shares of a batch, by rank.

    Every process computes the same function L of the whole batch, so each knows dL for its own share and nothing has to be
    exchanged on the way back. Parameters get the mean of the processes' gradients: times N, that is the gradient of L.
    """

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, share)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def whole_batch(share: Tensor) -> Tensor:
    """Return the shares that the processes have of a batch, one after the other; with its gradient where they are averaged.

    Args:
        share: this process's ``[B, ...]``, of the same shape in every process.

    Returns:
        ``[N B, ...]``, to compute the same scalar from in every process.
    """
    return _Whole.apply(share.contiguous())


def together(work: Callable[[], T]) -> T:
    """Do something in every process that may be refused; where one refuses, all end, and one says why.

    Args:
        work: raises what is to be refused.

    Returns:
        What it returns here.

    Raises:
        Exception: what ``work`` raised, in the first process where it did.
        SystemExit: in the others.
    """
    failure: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failed = [rank for rank, bad in enumerate(gather(failure is not None)) if bad]
    if not failed:
        return result
    if failure is not None and (not several() or failed[0] == dist.get_rank()):
        raise failure
    raise SystemExit(2)


def first_on_each_machine(work: Callable[[], T]) -> T:
    """Do something in the first process of every machine, then in the others: what it downloads or caches is there then."""
    place = world()
    result: Any = None
    failure: Exception | None = None
    for turn in (True, False):
        if (place.local_rank == 0) is turn and failure is None:
            try:
                result = work()
            except Exception as error:
                failure = error
        if not several():
            break
        if largest(int(failure is not None)):
            break

    def outcome() -> T:
        if failure is not None:
            raise failure
        return result

    return together(outcome)


# -- when a process is lost


class FailedElsewhere(FloatingPointError):
    """This process ends because another one has found something wrong, which that one reports."""


def first_to_report(error: BaseException) -> bool:
    """Report why this process ends; of all processes of the run only the first to do so should say it.

    Args:
        error: what went wrong.

    Returns:
        Whether this is the first, or there is nobody left to ask.
    """
    if _peers is None:
        return True
    sentence = " ".join(str(error).split()) or type(error).__name__
    try:
        end = time.monotonic() + PATIENCE_S
        while isinstance(error, FailedElsewhere) and time.monotonic() < end and not _peers.store.check([FAILURE]):
            time.sleep(0.1)
        # Counting is one operation of the store: only one process can be the first.
        if _peers.store.add("failures", 1) > 1:
            return False
        _peers.store.set(FAILURE, sentence)
        return True
    except (RuntimeError, dist.DistError):
        # The store is gone with the process or the machine that held it.
        return True


def note(key: str, value: object) -> None:
    """Leave something for the launcher in the store: ``RESULT`` or ``CHECKPOINT``; only rank 0 of several processes does.

    Args:
        key: its name.
        value: written as text.
    """
    if _peers is not None and _peers.world.rank == 0:
        _peers.store.set(key, str(value))


def look_up(store: Any, key: str) -> str | None:
    """Return what the processes have left in their store, or ``None``, also where the machine that holds it has ended.

    Args:
        store: the store that they were started with.
        key: ``RESULT``, ``CHECKPOINT``, or ``FAILURE`` of the first process that ended with one.
    """
    store = dist.PrefixStore(_PREFIX, store)
    try:
        return store.get(key).decode() if store.check([key]) else None
    except (RuntimeError, dist.DistError):
        return None


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an exception means that another process of the run is gone or does not answer.

    Args:
        error: what a collective operation raised.
    """
    if not several():
        return False
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in _GONE)


def lost_sentence(step: int | None = None, checkpoint: int | None = None) -> str:
    """Return what to tell the user when another process is gone.

    Args:
        step: optimiser steps done.
        checkpoint: step of the last checkpoint, if there is one.
    """
    who = f"one of {dist.get_world_size()} processes"
    if _peers is not None:
        # The launcher may need a moment to notice; processes that end because of the loss take longer.
        end = time.monotonic() + 2.0
        gone: list[int] = []
        while not gone and time.monotonic() < end:
            gone = [r for r, (host, pid) in enumerate(_peers.processes) if host == socket.gethostname() and _dead(pid)]
            time.sleep(0.02)
        if gone:
            pid = _peers.processes[gone[0]][1]
            who = f"the process of rank {gone[0]} (of {_peers.world.size}, process id {pid})"
    return describe_loss(who, step, checkpoint)


def describe_loss(who: str, step: int | None, checkpoint: int | str | None) -> str:
    """Return the sentence about a lost process.

    Args:
        who: which one.
        step: optimiser steps done, if known.
        checkpoint: step of the last checkpoint, if there is one.
    """
    when = "" if step is None else f" after step {step}"
    kept = "there is no checkpoint yet" if checkpoint is None else f"the last checkpoint is from step {checkpoint}"
    return (
        f"{who} was lost{when}: it was killed, crashed or does not answer; {kept}, and the same command "
        f"{'starts again' if checkpoint is None else 'continues from it'}"
    )


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    if sys.platform == "linux":
        # A process that its parent has not waited for yet still has a number.
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"
    return False
