"""Settings that a data set calls for: channels, the range of its values, the side of its images."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnivae.data import DataConfig
from omnivae.data.pixels import black_and_white
from omnivae.data.sources import ImageSource
from omnivae.data.survey import Measured

_NAMED = 5
#: Integers that fill less than this share of their type's range are dark pictures, or numbers of another depth.
_FILLED = 0.26


@dataclass(frozen=True)
class Need:
    """A setting, and why.

    Attributes:
        option: field of :class:`omnivae.data.DataConfig`.
        value: what to set it to; None where no setting helps, or one chosen elsewhere.
        reason: what was found.
        required: whether a run stops without it.
    """

    option: str
    value: Any
    reason: str
    required: bool


def advise(source: ImageSource, measured: Measured, config: DataConfig) -> list[Need]:
    """Say which settings the images call for.

    Args:
        source: the usable images.
        measured: their values.
        config: what was given; nothing is said about what it settles.

    Returns:
        Settings with reasons; empty where the images agree in everything.
    """
    needs = [_channels(source, config), _input_range(source, measured, config), _image_size(source, config)]
    return [need for need in needs if need is not None]


def plural(count: int, what: str) -> str:
    """Return a number and what it counts.

    Example:
        >>> plural(1, "image"), plural(2, "image")
        ('1 image', '2 images')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _channels(source: ImageSource, config: DataConfig) -> Need | None:
    counts = Counter(np.broadcast_to(source.channels, len(source)).tolist()).most_common()
    if config.channels is not None or len(counts) == 1:
        return None
    said = " and ".join(f"{plural(count, 'image')} with {plural(channels, 'channel')}" for channels, count in counts)
    rare = [i for i in range(len(source)) if int(source.channels[i]) != counts[0][0]]
    named = ", ".join(source.key(i) for i in rare[:_NAMED]) + (
        f" and {len(rare) - _NAMED} more" if len(rare) > _NAMED else ""
    )
    wanted = 3 if any(channels >= 3 for channels, _ in counts) else 1
    stuck = source.not_convertible(wanted)
    if len(stuck):
        odd = ", ".join(source.key(int(i)) for i in stuck[:_NAMED]) + (" ..." if len(stuck) > _NAMED else "")
        return Need(
            "channels",
            None,
            f"{said} (the fewer: {named}), and not all are colours that can be converted into each other (not: {odd}): put images "
            "of one kind into a folder of their own",
            True,
        )
    return Need("channels", wanted, f"{said} (the fewer: {named}), and a model takes one number", True)


def _input_range(source: ImageSource, measured: Measured, config: DataConfig) -> Need | None:
    if config.input_range is not None or not measured.groups:
        return None
    low = min(float(group.low.min()) for group in measured.groups)
    high = max(float(group.high.max()) for group in measured.groups)
    dtypes = sorted({group.dtype for group in measured.groups})
    kind = np.dtype(dtypes[0]).kind
    span = f"{'all values' if measured.complete else f'the values of {measured.num_images} images'} lie from {low:g} to {high:g}"
    if len(dtypes) > 1:
        tops = {dtype: _natural(dtype) for dtype in dtypes}
        if len(set(tops.values())) > 1 and None not in tops.values():
            said = ", ".join(f"{dtype} of {top[1]:g}" for dtype, top in tops.items() if top)
            return Need(
                "input_range",
                None,
                f"white is another number in images of each type ({said}), as their types say",
                False,
            )
    natural = _natural(dtypes[0])
    if natural is None or (kind == "f" and (low < 0 or high > 1)):
        why = (
            "their type says nothing about black and white"
            if natural is None
            else "floats are taken to lie from 0 to 1"
        )
        return Need(
            "input_range",
            _round_range(low, high, whole=all(g.whole for g in measured.groups)),
            f"{span}, and {why}",
            True,
        )
    if kind in "ui" and len(dtypes) == 1 and 0 < high < _FILLED * natural[1]:
        top = 1 << max(0, math.ceil(math.log2(high + 1)))
        return Need(
            "input_range",
            (0.0, float(top - 1)),
            f"{span}, {100 * high / natural[1]:.2g} % of what {dtypes[0]} can hold: without a range they are nearly black",
            False,
        )
    return None


def _natural(dtype: str) -> tuple[float, float] | None:
    from omnivae.data.header import ReadOptions

    try:
        return black_and_white(dtype, "", ReadOptions())
    except ValueError:
        return None


def _round_range(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """Return a range of round numbers that holds both ends."""
    if whole and low >= 0 and high <= 65535:
        return 0.0, 255.0 if 1 < high <= 255 else float((1 << max(1, math.ceil(math.log2(high + 1)))) - 1)
    if low == high:
        return low, low + 1
    step = 10.0 ** (math.floor(math.log10(high - low)) - 2)
    return round(math.floor(low / step) * step, 12), round(math.ceil(high / step) * step, 12)


def _image_size(source: ImageSource, config: DataConfig) -> Need | None:
    distinct = len(np.unique(source.sizes, axis=0))
    if config.image_size is not None or config.resolutions or distinct == 1 or len(source.sizes) != len(source):
        return None
    (low_height, low_width), (high_height, high_width) = source.sizes.min(axis=0), source.sizes.max(axis=0)
    return Need(
        "image_size",
        None,
        f"the images have {distinct} different sizes, {low_height} x {low_width} to {high_height} x {high_width}; without a "
        "configuration of your own, a side is chosen as below",
        False,
    )
