"""The check of image files before a run starts: every one is opened, and decoded where that is affordable."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.data.config import OnError, Verify
from omnivae.data.header import Header, ReadOptions
from omnivae.data.images import read_header, read_image
from omnivae.data.pixels import black_and_white, check_pixels

logger = logging.getLogger(__name__)

#: Up to so many files, ``verify: auto`` decodes every one.
FULL_UP_TO = 10_000
_PROGRESS_FROM = 500
_BLOCK = 1024

#: What was found in files that have not changed since, by path, size, time of change and how they were looked at.
_known: dict[tuple[Any, ...], Header] = {}


class UnusableImages(ValueError):
    """Images that cannot be used; the message names some of them.

    Args:
        message: one sentence.
        skipped: name and reason of every one.
    """

    def __init__(self, message: str, skipped: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.skipped = skipped


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        kept: numbers of the usable images, ascending, ``[M]``.
        headers: the header of each of them.
        skipped: name and reason of each of the others.
    """

    kept: np.ndarray
    headers: list[Header]
    skipped: list[tuple[str, str]]


def check_images(
    open_image: Callable[[int], Any],
    names: Sequence[str],
    *,
    options: ReadOptions | None = None,
    verify: Verify = "auto",
    on_error: OnError = "stop",
) -> Checked:
    """Look at every image before a run starts.

    Args:
        open_image: number of an image to its path, or to a binary file object; called from several threads.
        names: the image's names; a path is named by itself in messages.
        options: how stored samples are to be understood.
        verify: "full" decodes every image and checks its values, "headers" reads headers and the ends of files, "auto" is
            full for up to 10,000 images.
        on_error: "stop" to raise when an image is not usable, "skip" to leave it out and log it.

    Returns:
        The usable images and their headers, and what is left out and why.

    Raises:
        UnusableImages: a ``ValueError`` that says how many images are not usable and names the first three; also when all
            would be skipped.

    Example:
        >>> import io
        >>> files = [io.BytesIO(b"no image")]
        >>> check_images(files.__getitem__, ["a.png"])
        Traceback (most recent call last):
        ...
        omnivae.data.checking.UnusableImages: 1 of 1 images is not usable: a.png is damaged or not an image: repair or remove it
    """
    options = options or ReadOptions()
    full = verify == "full" or (verify == "auto" and len(names) <= FULL_UP_TO)

    shared: dict[Header, Header] = {}

    def look(index: int) -> Header | str:
        try:
            header = check_image(open_image(index), names[index], options, full=full)
            return shared.setdefault(header, header)  # images of one kind share one
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        # In blocks: a task for each of a million images would take more memory than what is known of them.
        blocks = (range(start, min(start + _BLOCK, len(names))) for start in range(0, len(names), _BLOCK))
        found = (result for block in blocks for result in pool.map(look, block))
        results = list(_progress(found, len(names), "Checking" if full else "Listing"))
    skipped = [(names[i], result) for i, result in enumerate(results) if isinstance(result, str)]
    kept = [i for i, result in enumerate(results) if isinstance(result, Header)]
    if skipped and (on_error == "stop" or not kept):
        shown = "; ".join(reason for _, reason in skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        verb = "is" if len(skipped) == 1 else "are"
        raise UnusableImages(f"{len(skipped)} of {len(names)} images {verb} not usable: {shown}", skipped)
    for _, reason in skipped:
        logger.warning("left out: %s", reason)
    if skipped:
        share = " (MORE THAN HALF)" if 2 * len(skipped) > len(names) else ""
        logger.warning("%d of %d images left out%s, see above", len(skipped), len(names), share)
    return Checked(np.array(kept, dtype=np.int64), [r for r in results if isinstance(r, Header)], skipped)


def check_image(file: Any, name: str, options: ReadOptions, *, full: bool) -> Header:
    """Look at one image.

    Args:
        file: a path or a binary file object.
        name: what to call it in an error, unless it is a path.
        options: how stored samples are to be understood.
        full: whether to decode it and check its values.

    Returns:
        Its header.

    Raises:
        ValueError: when it is not usable.
    """
    known = None
    if isinstance(file, (str, Path)):
        name = str(file)
        try:
            status = os.stat(file)
        except FileNotFoundError as error:
            what = "is a link that leads nowhere" if os.path.islink(file) else "is missing"
            raise ValueError(f"{name} {what}: repair or remove it") from error
        if status.st_size == 0:
            raise ValueError(f"{name} is empty: repair or remove it")
        known = (name, status.st_size, status.st_mtime_ns, status.st_ino, options, full)
        if known in _known:
            return _known[known]
    header = read_header(file, name, options)
    _, high = black_and_white(header.dtype, name, options)
    depth, of_type = header.bit_depth, 8 * np.dtype(header.dtype).itemsize
    if header.format == "TIFF" and header.mode != "P" and 1 < depth < of_type and high >= (1 << depth):
        raise ValueError(
            f"{name} holds samples of {depth} bits, of which {high:g} is not the largest: set data.input_range to "
            f"0 {(1 << depth) - 1}"
        )
    if full:
        array = read_image(file, name, options)
        if array.shape != (header.height, header.width, header.channels):
            raise ValueError(
                f"{name} decodes to {' x '.join(map(str, array.shape))} samples; its header says {header.height} x "
                f"{header.width} x {header.channels}: repair or remove it"
            )
        check_pixels(array, name, options)
    if known is not None:
        _known[known] = header
    return header


def _progress(results: Iterable[Header | str], total: int, title: str) -> Iterable[Header | str]:
    if total < _PROGRESS_FROM or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(f"{title} images", total=total, rate="")
        for result in results:
            yield result
            speed = bar.tasks[task].speed
            bar.update(task, advance=1, rate=f"{speed:.0f}/s" if speed else "")
