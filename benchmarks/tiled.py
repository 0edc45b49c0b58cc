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
#: Voxels along each axis of MONAI's window and the share that windows have in common.
WINDOW, OVERLAP = 32, 0.25


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

    twin: Any = monai_twin(model)
    slide: Any = sliding_window_inference
    if setting == "MONAI num_splits":
        for module in twin.modules():
            if hasattr(module, "num_splits"):
                module.num_splits = 4  # legal where the axis is a multiple of 16 and at least 48
    if setting != "MONAI sliding window":
        return lambda x: twin.encode(x)[0], twin.decode

    def encode(x: Tensor) -> Tensor:
        roi = [min(WINDOW, n) for n in x.shape[2:]]
        return slide(x, roi, 1, lambda part: twin.encode(part)[0], overlap=OVERLAP, mode="gaussian")

    def decode(z: Tensor) -> Tensor:
        roi = [min(WINDOW // 4, n) for n in z.shape[2:]]
        return slide(z, roi, 1, twin.decode, overlap=OVERLAP, mode="gaussian")

    return encode, decode


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
        result, mib = first_call(functools.partial(function, given))
        row[f"{name} s"] = time.perf_counter() - begun
        row[f"{name} CPU s"] = time.process_time() - worked
        row[f"{name} MB"] = None if mib is None else mib * 2**20 / 1e6
        np.save(folder / f"{name}-{setting}.npy", result.numpy())
        del result
    return row


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
    child = subprocess.run(given, capture_output=True, text=True, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"killed by signal {-child.returncode}"])[-1]
        return [f"failed: {last[:120]}", "", "", ""]
    row = json.loads(child.stdout.splitlines()[-1])
    mb = row[f"{part} MB"]
    return [
        f"{row[f'{part} s']:.1f}",
        f"{row[f'{part} CPU s']:.1f}",
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
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        size = tuple(int(n) for n in options.sizes[0].split("x"))
        assert math.prod(size) > 0
        print(json.dumps(measure(options.row[0], size, options.memory, Path(options.row[1]), options.parts)))
        return
    run(options.sizes, options.settings, options.memory, options.parts)


if __name__ == "__main__":
    main()
