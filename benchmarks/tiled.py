"""MaisiVAE larger than memory: seconds and peak memory of encode and decode, whole, in our tiles and with MONAI's ways.

``python -m benchmarks.tiled`` prints a table. Every row runs in a process of its own, after a tiny volume has gone through, and
its memory is the peak of the resident set above what the process held before the call. Weights are random, of the released
widths; one thread. Differences are to the whole result of the same size where there is one. The decode of every row takes the
same latent, and each part runs in a process of its own. ``--sizes 256x512x512 --settings exact`` is a matter of an hour on a
CPU: ask ``omnivae plan`` first.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import first_call
from omnivae.models.tiled.execute import TileProgress

SETTINGS = ("whole", "exact", "exact bf16", "blended", "MONAI whole", "MONAI num_splits", "MONAI sliding window")
PARTS = ("encode", "decode")
#: The share that MONAI's windows have in common.
OVERLAP = 0.25
#: Environment variables of the rows' processes: voxels along each axis of MONAI's window, and after how many to stop.
WINDOW, STOP = "OMNIVAE_BENCHMARK_WINDOW", "OMNIVAE_BENCHMARK_STOP"


def functions(setting: str, memory: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return encode (to means) and decode of one setting."""
    import omnivae

    torch.manual_seed(0)
    model = omnivae.MaisiVAE().eval()
    if setting == "whole":
        return lambda x: model.encode(x).mean, model.decode
    if setting == "exact bf16":
        model = model.to(torch.bfloat16)
    if setting in ("exact", "exact bf16", "blended"):
        mode: Any = "blended" if setting == "blended" else "exact"
        tiled = omnivae.Tiled(model, memory=memory, mode=mode, progress=_Told())
        return lambda x: tiled.encode(x).mean.float(), tiled.decode
    from monai.inferers.utils import sliding_window_inference

    from benchmarks.maisi import monai_twin

    window = int(os.environ.get(WINDOW, "32"))
    twin: Any = monai_twin(model)
    slide: Any = sliding_window_inference
    if setting == "MONAI num_splits":
        for module in twin.modules():
            if hasattr(module, "num_splits"):
                module.num_splits = 4  # legal where the axis is a multiple of 16 and at least 48
    if setting != "MONAI sliding window":
        return lambda x: twin.encode(x)[0], twin.decode

    def encode(x: Tensor) -> Tensor:
        roi = [min(window, n) for n in x.shape[2:]]
        return slide(x, roi, 1, _counted(lambda part: twin.encode(part)[0], x, roi), overlap=OVERLAP, mode="gaussian")

    def decode(z: Tensor) -> Tensor:
        roi = [min(window // 4, n) for n in z.shape[2:]]
        return slide(z, roi, 1, _counted(twin.decode, z, roi), overlap=OVERLAP, mode="gaussian")

    return encode, decode


class _Enough(Exception):
    """Enough windows were measured."""

    def __init__(self, share: float) -> None:
        super().__init__(f"stopped after {share:.1%} of the windows")
        self.share = share


def _counted(run: Callable[[Tensor], Tensor], whole: Tensor, roi: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Count windows, and stop after ``--windows`` of them: memory does not change after the first ones."""
    from monai.data.utils import dense_patch_slices

    step = [n if n == m else int(n * (1 - OVERLAP)) for n, m in zip(roi, whole.shape[2:], strict=True)]
    total, done, stop = len(dense_patch_slices(whole.shape[2:], roi, step)), 0, int(os.environ.get(STOP, "0"))

    def call(part: Tensor) -> Tensor:
        nonlocal done
        if total > done == stop > 0:
            raise _Enough(done / total)
        done += 1
        return run(part)

    return call


def _limit_memory() -> None:
    """Let an allocation fail that the machine has no memory for, rather than have the process killed."""
    if sys.platform != "linux":
        return
    import resource

    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + int(0.9 * free), resource.RLIM_INFINITY))


class _Told:
    """Says every minute how far a long run is."""

    def __init__(self) -> None:
        self.said = 60.0

    def __call__(self, now: TileProgress) -> None:
        if now.seconds < self.said:
            self.said = min(self.said, now.seconds + 60)
            return
        self.said = now.seconds + 60
        print(
            f"{now.fraction:.1%} after {now.seconds:.0f} s, {now.remaining_s:.0f} s left", file=sys.stderr, flush=True
        )


@torch.inference_mode()
def measure(setting: str, size: tuple[int, ...], memory: str, folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Run one row in this process, and leave its results in a folder."""
    torch.set_num_threads(1)
    _limit_memory()
    encode, decode = functions(setting, memory)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 1, *size, generator=generator)
    z = torch.randn(1, 4, *(n // 4 for n in size), generator=generator)
    tiny = [64 if setting == "MONAI num_splits" else 8] * 3
    decode(encode(torch.rand(1, 1, *tiny)))
    row: dict[str, Any] = {"setting": setting, "size": "x".join(map(str, size))}
    for name, function, given in (("encode", encode, x), ("decode", decode, z)):
        if name not in parts:
            continue
        begun, worked = time.perf_counter(), time.process_time()
        result, mib = first_call(functools.partial(_attempt, function, given))
        share = result if isinstance(result, float) else 1.0
        row[f"{name} s"] = (time.perf_counter() - begun) / share
        row[f"{name} CPU s"] = (time.process_time() - worked) / share
        row[f"{name} share"] = share
        row[f"{name} MB"] = None if mib is None else mib * 2**20 / 1e6
        if isinstance(result, Tensor):
            np.save(folder / f"{name}-{setting}.npy", result.numpy())
        del result
    return row


def _attempt(function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor | float:
    """Return the result, or the share of it after which the measurement ended."""
    try:
        return function(given)
    except _Enough as enough:
        return enough.share


def run(sizes: list[str], settings: list[str], memory: str, parts: Sequence[str]) -> None:
    """Measure every row in a process of its own and print the table."""
    print(f"budget {memory}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n")
    columns = [f"{part} s | CPU s | MB | largest difference" for part in PARTS]
    print(f"| size | setting | {' | '.join(columns)} |")
    print("|---|---|" + "--:|" * 8, flush=True)
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for setting in settings:
                command = [sys.executable, "-m", "benchmarks.tiled", "--row", setting, folder]
                cells = [size, setting]
                for part in PARTS:
                    cells += _cells(command, size, memory, part, folder) if part in parts else [""] * 4
                print("| " + " | ".join(cells) + " |", flush=True)


def _cells(command: list[str], size: str, memory: str, part: str, folder: str) -> list[str]:
    """Measure encode or decode in a process of its own."""
    given = [*command, "--sizes", size, "--memory", memory, "--parts", part]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        last = "killed"
        for line in child.stderr:
            last = line.strip() or last
            print(f"{part}: {last}", file=sys.stderr, flush=True)
        said = child.stdout.read()
    if child.returncode:
        return [f"failed: {last[:160]}", "", "", ""]
    row = json.loads(said.splitlines()[-1])
    mb, scaled = row[f"{part} MB"], "~" if row[f"{part} share"] < 1 else ""
    return [
        f"{scaled}{row[f'{part} s']:.1f}",
        f"{scaled}{row[f'{part} CPU s']:.1f}",
        "" if mb is None else f"{mb:.0f}",
        _difference(folder, part, row["setting"]),
    ]


def _difference(folder: str, name: str, setting: str) -> str:
    whole = Path(folder) / f"{name}-whole.npy"
    if setting == "whole" or not whole.exists():
        return ""
    want, got = np.load(whole), np.load(Path(folder) / f"{name}-{setting}.npy")
    return f"{np.abs(want - got).max():.1e}" if want.shape == got.shape else f"wrong shape {got.shape}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiled", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["16x64x64", "32x128x128", "64x128x128"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--memory", default="200MB", help="budget of our tiles")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--window", type=int, default=32, help="voxels along each axis of MONAI's window")
    parser.add_argument(
        "--windows", type=int, default=0, help="stop MONAI's sliding window after so many and scale its time (~)"
    )
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        size = tuple(int(n) for n in options.sizes[0].split("x"))
        assert math.prod(size) > 0
        print(json.dumps(measure(options.row[0], size, options.memory, Path(options.row[1]), options.parts)))
        return
    os.environ[STOP], os.environ[WINDOW] = str(options.windows), str(options.window)
    run(options.sizes, options.settings, options.memory, options.parts)


if __name__ == "__main__":
    main()
