"""Measuring: interleaved repeats and their medians, the machine's matmul peak, model FLOPs, peak memory, tables."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_PEAKS: dict[str, float] = {}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Row:
    """One line of a table; times are medians of interleaved repeats."""

    work: str
    model: str
    setting: str
    seconds: float
    images: int
    #: Arithmetic of the plain model, whichever way it is computed.
    gflop: float
    dtype: str
    #: The same work's plain eager fp32 time over this one.
    speedup: float | None = None
    extra_mib: float | None = None

    def report(self) -> dict[str, Any]:
        """Return the row with what follows from it."""
        rate = self.gflop / self.seconds
        return asdict(self) | {
            "images_per_s": self.images / self.seconds,
            "gflop_per_s": rate,
            "share_of_peak": rate / matmul_peak(self.dtype),
        }


def wait() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def interleave(
    variants: Mapping[str, Callable[[], Any]], *, rounds: int = 5, budget_s: float = 60.0
) -> dict[str, list[float]]:
    """Time variants in turns, so that what else the machine does falls on all alike.

    Args:
        variants: name to function.
        rounds: repeats. Call each once before: :func:`first_call` does.
        budget_s: no further round is begun that would end later than this; there is one at least.

    Returns:
        Name to seconds, one for each round.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    begun = time.perf_counter()
    for done in range(rounds):
        spent = time.perf_counter() - begun
        if done and spent * (done + 1) / done > budget_s:
            break
        for name, function in variants.items():
            times[name].append(timed(function))
        for dtype in DTYPES:
            matmul_peak(dtype, again=True)
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_peak(dtype: str, *, again: bool = False) -> float:
    """Return the best GFLOP/s of a square matrix product in ``dtype`` seen so far.

    Args:
        dtype: "fp32" or "bf16".
        again: measure once more: a peak taken while the machine was busy with something else would flatter every share.
    """
    if again or dtype not in _PEAKS:
        n = 2048 if DEVICE.type == "cpu" else 8192
        a = torch.randn(n, n, device=DEVICE).to(DTYPES[dtype])
        rates = [2e-9 * n**3 / timed(lambda: a @ a) for _ in range(5)]
        _PEAKS[dtype] = max(_PEAKS.get(dtype, 0.0), *rates)
    return _PEAKS[dtype]


def first_call(function: Callable[[], T]) -> tuple[T, float | None]:
    """Call once, which also warms up.

    Returns:
        The result, and how much memory the call needed beyond what was held before it, in MiB (``None`` where unknown).
    """
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = function()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - held) / 2**20
    clear = Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not os.access(clear, os.W_OK):
        return function(), None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    clear.write_text("5")  # forget the process's peak
    before = _status("VmRSS")
    result = function()
    return result, (_status("VmHWM") - before) / 1024


def counted(function: Callable[[], T]) -> tuple[Callable[[], T], FlopCounterMode]:
    """Return the function under a counter of its arithmetic."""
    counter = FlopCounterMode(display=False)

    def run() -> T:
        with counter:
            return function()

    return run, counter


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def machine() -> dict[str, Any]:
    """Return what was measured on."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else capabilities.get("cpu_name", "CPU"),
        "amx_bf16": bool(capabilities.get("amx_bf16")),
        "avx512_bf16": bool(capabilities.get("avx512_bf16")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "matmul_gflop_per_s": {name: matmul_peak(name) for name in DTYPES},
    }


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| work | model | setting | ms | images/s | GFLOP/s | of matmul peak | vs plain fp32 | extra MiB |"]
    lines.append("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        r = row.report()
        speedup = "" if row.speedup is None else f"{row.speedup:.2f}x"
        memory = "" if row.extra_mib is None else f"{row.extra_mib:.0f}"
        lines.append(
            f"| {row.work} | {row.model} | {row.setting} | {1e3 * row.seconds:.0f} | {r['images_per_s']:.2f} | "
            f"{r['gflop_per_s']:.0f} | {r['share_of_peak']:.0%} | {speedup} | {memory} |"
        )
    return "\n".join(lines)
