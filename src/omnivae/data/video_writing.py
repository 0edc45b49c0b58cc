"""Clips to video files: the number of frames, their size and their rate are exactly those given."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.video import GIF, read_video_header

#: Suffix -> codec, pixel format of frames with even sides, of others, and options. FFV1 keeps every bit.
CODECS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    ".mkv": ("ffv1", "bgr0", "bgr0", {}),
    ".avi": ("ffv1", "bgr0", "bgr0", {}),
    ".mp4": ("libx264", "yuv420p", "yuv444p", {"crf": "12"}),
    ".m4v": ("libx264", "yuv420p", "yuv444p", {"crf": "12"}),
    ".mov": ("libx264", "yuv420p", "yuv444p", {"crf": "12"}),
    ".webm": ("libvpx-vp9", "yuv420p", "yuv444p", {"crf": "12", "b": "0"}),
}


def write_video(path: str | Path, frames: np.ndarray, *, rate: Fraction | float = 10) -> None:
    """Write a clip as a video file.

    Args:
        path: mkv and avi are lossless; mp4, m4v, mov, webm and gif are not.
        frames: ``[T, H, W, 1]`` or ``[T, H, W, 3]``, uint8.
        rate: frames a second.

    Raises:
        ValueError: for another suffix or array, or a file that does not hold every frame afterwards.
        ImportError: without PyAV.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if frames.ndim != 4 or frames.shape[-1] not in (1, 3) or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"got an array {frames.shape} of {frames.dtype}; expected [T, H, W, 1] or [T, H, W, 3], uint8")
    if suffix != GIF and suffix not in CODECS:
        raise ValueError(f"got {path.name}; expected a name that ends in {', '.join((*CODECS, GIF))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.stem}.part{suffix}")
    try:
        (_write_gif if suffix == GIF else _encode)(whole, frames, Fraction(rate).limit_denominator(100_000))
        written = len(read_video_header(whole).times)
        if written != len(frames):
            raise ValueError(
                f"{path.name} would hold {written} of {len(frames)} frames; write another format, such as mkv"
            )
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


def _encode(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    import av

    codec, even, odd, options = CODECS[path.suffix.lower()]
    height, width, channels = frames.shape[1:]
    if codec == "ffv1" and channels == 1:
        even = odd = "gray"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = height, width
        stream.pix_fmt = odd if height % 2 or width % 2 else even
        for image in frames:
            plain = image[..., 0] if channels == 1 else image
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(plain), format="gray" if channels == 1 else "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    from PIL import Image

    images = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in frames]
    # A writer that drops frames equal to their predecessor would change their number; each is therefore a page of its own.
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=max(10, round(1000 / float(rate))),
        loop=0,
        optimize=False,
    )
