"""What a data set holds, measured: values by channel, duplicates, and the files that are not read."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from omnivae.data.sources import FileSource, ImageSource, Split
from omnivae.data.stored import StoredSource

T = TypeVar("T")

#: Samples (pixels times channels) up to which every image is measured; beyond, a seeded choice of images is.
MOST_SAMPLES = 400_000_000
#: Images up to which duplicates are looked for.
MOST_HASHED = 500_000
_PROGRESS_FROM = 500
#: Suffixes of volumes and videos, which are no pictures.
OTHER_MEDIA = frozenset({
    ".nii", ".nii.gz", ".dcm", ".dicom", ".mha", ".mhd", ".nrrd", ".zarr", ".ome.zarr", ".h5", ".hdf5", ".czi", ".lif", ".nd2",
    ".ims", ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v",
})  # fmt: skip


@dataclass
class ChannelValues:
    """The stored values of images of one type and one number of channels.

    Attributes:
        dtype: type of the samples.
        num_images: images measured.
        low: smallest value of each channel, ``[C]``.
        high: largest value of each channel, ``[C]``.
        mean: mean of each channel over all pixels, ``[C]``.
        std: standard deviation of each channel over all pixels, ``[C]``.
        whole: whether every value is a whole number.
    """

    dtype: str
    num_images: int = 0
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    std: np.ndarray = field(default_factory=lambda: np.zeros(0))
    whole: bool = True


@dataclass(frozen=True)
class Measured:
    """What was measured on the pixels.

    Attributes:
        num_images: images measured.
        complete: whether these are all.
        groups: one entry for each type and number of channels.
        constant: names of images of which every channel is constant.
        unreadable: name and reason of images that could not be decoded after all.
    """

    num_images: int
    complete: bool
    groups: list[ChannelValues]
    constant: list[str]
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class _Image:
    dtype: str
    count: int
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    whole: bool


def measure(source: ImageSource, *, seed: int = 0) -> Measured:
    """Measure the stored values of all images, or of a seeded choice where there are too many.

    Args:
        source: the images.
        seed: of the choice.

    Returns:
        Ranges, means and deviations by channel.
    """
    each = source.sizes.astype(np.int64).prod(axis=1)
    # Crops have no size of their own before they are cut: the largest they can have.
    samples = np.broadcast_to(each if len(each) == len(source) else each.max(), len(source)) * source.channels
    chosen = np.arange(len(source))
    if int(samples.sum()) > MOST_SAMPLES:
        chosen = np.random.default_rng(seed).permutation(len(source))
        within = int(np.searchsorted(np.cumsum(samples[chosen]), MOST_SAMPLES, side="right"))
        chosen = np.sort(chosen[: max(1, within)])

    def look(index: int) -> _Image | str:
        try:
            array = source.read(int(index))
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return f"{source.key(index)} holds values that are NaN or infinite: remove or repair it"
            return _look(array)
        except (ValueError, OSError) as error:
            return str(error)

    found: dict[tuple[str, int], list[_Image]] = defaultdict(list)
    constant, unreadable = [], []
    for index, result in zip(chosen.tolist(), _map(look, chosen.tolist(), "Measuring"), strict=True):
        if isinstance(result, str):
            unreadable.append((source.key(index), result))
            continue
        found[result.dtype, len(result.low)].append(result)
        if (result.low == result.high).all():
            constant.append(source.key(index))
    groups = [_together(dtype, images) for (dtype, _), images in sorted(found.items())]
    return Measured(len(chosen), len(chosen) == len(source), groups, constant, unreadable)


def _look(array: np.ndarray) -> _Image:
    pixels = array.reshape(-1, array.shape[-1])
    values = pixels.astype(np.float64)
    whole = array.dtype.kind in "bui" or bool((values == np.round(values)).all())
    return _Image(
        array.dtype.name,
        len(pixels),
        values.min(0),
        values.max(0),
        values.sum(0),
        ((values - values.mean(0)) ** 2).sum(0),
        whole,
    )


def _together(dtype: str, images: Sequence[_Image]) -> ChannelValues:
    count = np.array([image.count for image in images], dtype=np.float64)[:, None]
    totals = np.stack([image.total for image in images])
    mean = totals.sum(0) / count.sum()
    within = np.stack([image.squares for image in images]).sum(0)
    # Within and between images: the sum of squares of large values would lose the small differences between them.
    between = (count * (totals / count - mean) ** 2).sum(0)
    return ChannelValues(
        dtype,
        len(images),
        np.stack([image.low for image in images]).min(0),
        np.stack([image.high for image in images]).max(0),
        mean,
        np.sqrt((within + between) / count.sum()),
        all(image.whole for image in images),
    )


def find_duplicates(source: ImageSource, splits: dict[Split, np.ndarray]) -> list[list[tuple[str, Split]]]:
    """Find images whose stored bytes are equal.

    Args:
        source: the images.
        splits: the images of each split.

    Returns:
        Groups of two or more: name and split of each image, in the order of the splits.
    """
    part_of = {int(index): split for split, indices in splits.items() for index in indices}
    candidates = sorted(part_of)
    lengths = _stored_sizes(source, candidates)
    if lengths is not None:
        # Only files of one length can be equal; the others need not be read.
        often = Counter(lengths)
        candidates = [index for index, size in zip(candidates, lengths, strict=True) if often[size] > 1]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, digest in zip(candidates, _map(source.content_hash, candidates, "Comparing"), strict=True):
        groups[digest].append(index)
    order = list(splits)
    equal = [sorted(group, key=lambda i: (order.index(part_of[i]), i)) for group in groups.values() if len(group) > 1]
    return [[(source.key(i), part_of[i]) for i in group] for group in sorted(equal)]


def _stored_sizes(source: ImageSource, indices: list[int]) -> list[int] | None:
    if isinstance(source, FileSource):
        return [(source.root / source.paths[i]).stat().st_size for i in indices]
    if isinstance(source, StoredSource):
        return source.stored_sizes(indices)
    return None


def count_other_files(root: Path, suffixes: Sequence[str]) -> tuple[dict[str, int], dict[str, int], int]:
    """Count what lies in a folder beside images.

    Args:
        root: the folder.
        suffixes: of images, in lower case.

    Returns:
        Other files by suffix; volumes and videos by suffix (a ``.zarr`` folder is one); and the number of hidden files.
    """
    other: Counter[str] = Counter()
    media: Counter[str] = Counter()
    hidden = 0
    for folder, subfolders, files in os.walk(root):
        stores = [name for name in subfolders if name.lower().endswith(".zarr")]
        media.update(_suffix(name) for name in stores)
        subfolders[:] = [name for name in subfolders if name not in stores]
        inside_hidden = any(part.startswith(".") for part in Path(folder).relative_to(root).parts)
        for name in files:
            if inside_hidden or name.startswith("."):
                hidden += 1
            elif not name.lower().endswith(tuple(suffixes)):
                suffix = _suffix(name)
                (media if suffix in OTHER_MEDIA else other)[suffix or "no suffix"] += 1
    return dict(other.most_common()), dict(media.most_common()), hidden


def _suffix(name: str) -> str:
    lower = name.lower()
    return next((s for s in (".nii.gz", ".ome.zarr") if lower.endswith(s)), Path(lower).suffix)


def _map(function: Callable[[int], T], items: Sequence[int], title: str) -> Iterator[T]:
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        # In blocks: results of all images at once need not wait in memory, and Ctrl-C is heard.
        blocks = (items[start : start + 256] for start in range(0, len(items), 256))
        results = (result for block in blocks for result in pool.map(function, block))
        yield from _with_progress(results, len(items), title)


def _with_progress(results: Iterable[T], total: int, title: str) -> Iterable[T]:
    if total < _PROGRESS_FROM or not sys.stderr.isatty():
        return results
    from rich.console import Console
    from rich.progress import track

    return track(results, total=total, description=f"{title} images", console=Console(stderr=True), transient=True)
