"""Start the processes of a run on this machine, watch them, pass signals on, and say once what went wrong.

What ``torchrun`` does for one program on one machine, with two differences: a run that is asked to stop gets the time to save,
and a failure is one sentence.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from omnivae.training.config import TrainingConfig
from omnivae.training.distributed import CHECKPOINT, FAILURE, RESULT, SUPERVISOR, describe_loss, look_up
from omnivae.training.world import check_devices

#: Seconds that the other processes have to end by themselves after one has failed, or after a second signal.
GRACE_S = 10.0


def launch(command: Sequence[str], config: TrainingConfig) -> str:
    """Run a command in as many processes as a configuration asks for on this machine, and wait for them.

    Several machines find each other through ``MASTER_ADDR``, ``MASTER_PORT`` and ``NODE_RANK``, which are the same as
    ``torchrun``'s options of these names.

    Args:
        command: program and arguments; the processes learn their place from the environment, as from ``torchrun``.
        config: how to train: ``devices`` and ``num_nodes``.

    Returns:
        What rank 0 left in the store as ``result``; empty on machines without rank 0.

    Raises:
        ValueError: for more processes than GPUs, or several machines that do not know each other.
        ChildProcessError: what the first process that failed reported, or which one was lost.
        KeyboardInterrupt: when the processes ended at a signal before they had begun to train.
    """
    count = 1 if config.devices == "auto" else config.devices
    nodes = 1 if config.num_nodes == "auto" else config.num_nodes
    check_devices(count)
    store, place = _meeting_point(nodes)
    node = int(place["GROUP_RANK"])
    processes = []
    try:
        for local in range(count):
            environment = (
                os.environ
                | place
                | {
                    "RANK": str(node * count + local),
                    "LOCAL_RANK": str(local),
                    "WORLD_SIZE": str(nodes * count),
                    "LOCAL_WORLD_SIZE": str(count),
                    SUPERVISOR: str(os.getpid()),
                }
            )
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
        asked, first = _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    if first is not None:
        sentence = look_up(store, FAILURE)
        if sentence is None and asked:
            raise KeyboardInterrupt
        code = processes[first].returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        who = f"the process of rank {node * count + first} (of {nodes * count}; {how})"
        raise ChildProcessError(sentence or describe_loss(who, None, look_up(store, CHECKPOINT)))
    return (look_up(store, RESULT) or "") if node == 0 else ""


def _meeting_point(nodes: int) -> tuple[Any, dict[str, str]]:
    """Return the store that the processes meet in, and how they find it."""
    patience = timedelta(minutes=30)
    if nodes == 1:
        # The system chooses a free port, and the store outlives every single process.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GROUP_RANK": "0"}
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if loopback and "GLOO_SOCKET_IFNAME" not in os.environ:
            # By default gloo looks the machine's own name up, which fails where that is not in the name service.
            place["GLOO_SOCKET_IFNAME"] = loopback
    else:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if missing:
            raise ValueError(
                f"got training.num_nodes={nodes} without {' and '.join(missing)} in the environment: set MASTER_ADDR and "
                "MASTER_PORT to a machine and a free port on it, and NODE_RANK to this machine's number (0 there), or use "
                "torchrun --nnodes"
            )
        address, port, node = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], int(os.environ["NODE_RANK"])
        if not 0 <= node < nodes:
            raise ValueError(f"got NODE_RANK={node} and training.num_nodes={nodes}; expected 0 to {nodes - 1}")
        store = dist.TCPStore(address, int(port), is_master=node == 0, wait_for_workers=False, timeout=patience)
        place = {"MASTER_ADDR": address, "MASTER_PORT": port, "GROUP_RANK": str(node)}
    # The processes are clients of this store instead of opening one.
    return store, place | {"TORCHELASTIC_USE_AGENT_STORE": "True"}


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[bool, int | None]:
    """Wait for all processes to end; return whether they were asked to, and which one failed first."""
    deadline, first = float("inf"), None
    with _passing_on(processes) as received:
        while [process for process in processes if process.poll() is None]:
            now = time.monotonic()
            failed = [i for i, process in enumerate(processes) if process.returncode]
            if failed and first is None:
                first = failed[0]
            if failed or len(received) > 1:
                deadline = min(deadline, now + GRACE_S)
            if now > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.05)
        failed = [i for i, process in enumerate(processes) if process.returncode]
        return bool(received), first if first is not None or not failed else failed[0]


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass Ctrl-C and SIGTERM on to the processes."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may take signals over; elsewhere they are the host program's matter.
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
