"""Clips of photographs that a camera pans over, for training VideoVAE: ``python -m benchmarks.video photos/ clips/``.

Each clip is a square window of a photograph that moves straight on and grows or shrinks, at 12 frames a second, as mp4. One
seed gives the same clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from omnivae.data.video_writing import write_video

#: Side of the window at the beginning and at the end, as shares of the photograph's shorter side.
LEAST, MOST = 0.45, 0.9


def pan(photo: Image.Image, *, frames: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a clip of a window that moves over a photograph.

    Args:
        photo: RGB.
        frames: of the clip.
        side: of a frame in pixels.
        rng: draws where the window begins and ends, and its sizes.

    Returns:
        ``[T, H, W, 3]`` uint8.
    """
    shorter = min(photo.size)
    spans = rng.uniform(LEAST, MOST, 2) * shorter
    # Left and top corner, at the beginning and at the end.
    corners = rng.uniform(0, 1, (2, 2)) * (np.array(photo.size) - spans[:, None])
    drawn = []
    for share in np.linspace(0, 1, frames):
        left, top = (1 - share) * corners[0] + share * corners[1]
        span = (1 - share) * spans[0] + share * spans[1]
        box = (left, top, left + span, top + span)
        drawn.append(np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)))
    return np.stack(drawn)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photographs")
    parser.add_argument("clips", type=Path, help="folder to write to, a clip for each photograph")
    parser.add_argument("--frames", type=int, default=16, help="of a clip")
    parser.add_argument("--side", type=int, default=64, help="of a frame in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the windows")
    given = parser.parse_args()
    files = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    rng = np.random.default_rng(given.seed)
    for path in files:
        with Image.open(path) as photo:
            clip = pan(photo.convert("RGB"), frames=given.frames, side=given.side, rng=rng)
        write_video(given.clips / f"{path.stem}.mp4", clip, rate=12)
    print(f"{len(files)} clips in {given.clips}")


if __name__ == "__main__":
    main()
