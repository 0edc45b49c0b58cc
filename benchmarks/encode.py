"""``omnivae encode`` on 100, 1,000 and 10,000 images: images a second, peak memory, and what reading the store costs.

Each count is encoded in a process of its own, so that its peak is its own. The images are generated: noise of 64 x 64 in
PNG files; the model is a small convolutional VAE, so that what is measured is reading, hashing, batching and writing. Shards
are of 8 MiB, so that the first of them is full within 1,100 images and the peak shows what grows after that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

COUNTS = (100, 1000, 10_000)
SIDE = 64

#: Runs in the process that is measured. The first ten images are encoded before: imports and kernels are not what is asked.
CHILD = """
import json, os, random, sys, time
import torch
from omnivae.data.latents import PosteriorStore
from omnivae.jobs.encode import encode_images
from omnivae.training.device import keep_freed_memory

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) / 1024

keep_freed_memory()
model, warm, pictures, store, workers = sys.argv[1:]
encode_images(model, store + "-warm", path=warm, num_workers=int(workers), progress=False)
started, begun = status("VmRSS"), time.perf_counter()
result = encode_images(model, store, path=pictures, num_workers=int(workers), shard_mib=8, progress=False)
seconds = time.perf_counter() - begun
peak = status("VmHWM")
again_begun = time.perf_counter()
encode_images(model, store, path=pictures, shard_mib=8, progress=False)
again = time.perf_counter() - again_begun
open_begun = time.perf_counter()
latents = PosteriorStore(store)
opened = time.perf_counter() - open_begun
numbers = [random.randrange(len(latents)) for _ in range(2000)]
read_begun = time.perf_counter()
for i in numbers:
    latents[i]
read = (time.perf_counter() - read_begun) / len(numbers)
print(json.dumps({
    "images": result.encoded, "seconds": seconds, "images_per_s": result.encoded / seconds, "rss_before_mib": started,
    "peak_rss_mib": peak, "again_s": again, "open_s": opened, "random_read_us": 1e6 * read,
    "open_files": len(os.listdir("/proc/self/fd")),
}))
"""


def run(num_workers: int = 0, counts: tuple[int, ...] = COUNTS) -> list[dict[str, Any]]:
    """Measure.

    Args:
        num_workers: processes that read images.
        counts: numbers of images.

    Returns:
        Figures of each count.

    Raises:
        RuntimeError: when encoding fails.
    """
    from omnivae.recipes import conv_vae

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = conv_vae(in_channels=3, image_size=SIDE, latent="spatial", latent_dim=4, channels=[16, 32])
        model.save_pretrained(folder / "model")
        _write(folder / "warm", 10)
        for count in counts:
            pictures = folder / str(count)
            _write(pictures, count)
            arguments = [folder / "model", folder / "warm", pictures, folder / f"store-{count}", num_workers]
            done = subprocess.run(
                [sys.executable, "-c", CHILD, *map(str, arguments)],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]) | {"num_workers": num_workers})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| images | workers | images/s | MiB before | peak MiB | again, s | open, ms | random read, µs | open files |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['images']:,} | {row['num_workers']} | {row['images_per_s']:.0f} | {row['rss_before_mib']:.0f} | "
        f"{row['peak_rss_mib']:.0f} | {row['again_s']:.2f} | {1e3 * row['open_s']:.1f} | {row['random_read_us']:.0f} | "
        f"{row['open_files']} |"
        for row in rows
    ]
    return "\n".join(lines)


def _write(folder: Path, count: int) -> None:
    from PIL import Image

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for i in range(count):
        pixels[0, :2, 0] = divmod(i, 256)
        Image.fromarray(pixels).save(folder / f"{i:05d}.png", compress_level=1)
