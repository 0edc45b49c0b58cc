"""Encoding more images takes more time, not more memory."""

import multiprocessing
import sys

import numpy as np
import pytest
from PIL import Image

from omnivae.jobs.encode import encode_images

SIDE = 64


def high_water_mark(model, pictures, output, answer):
    """Encode in a process of its own and tell how far its memory rose above where it began, in MiB."""

    def status(field):
        lines = open("/proc/self/status").read().splitlines()  # noqa: SIM115
        return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak of the parent
    before = status("VmRSS")
    encode_images(model, output, path=str(pictures), batch_size=8, shard_mib=0.25, progress=False)
    answer.put(status("VmHWM") - before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_number_of_images(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    peaks = []
    for count in (200, 1000):
        pictures = tmp_path / f"{count}"
        pictures.mkdir()
        for i in range(count):
            pixels[0, :2, 0] = divmod(i, 256)
            Image.fromarray(pixels).save(pictures / f"{i:04d}.bmp")
        context = multiprocessing.get_context("fork")
        answer = context.Queue()
        process = context.Process(target=high_water_mark, args=(model, pictures, tmp_path / f"store-{count}", answer))
        process.start()
        peaks.append(answer.get(timeout=120))
        process.join()
    # As float32 the 800 further images take 37.5 MiB and their latents 6.3 MiB; names, hashes and sizes of 800 images take
    # less than 2 MiB, and the allocator's mood a little more.
    assert peaks[1] - peaks[0] < 6, peaks
