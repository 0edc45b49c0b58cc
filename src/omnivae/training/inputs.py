"""What a batch says about itself before it is trained on: values that are not finite, images and channels without contrast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["not_finite", "constant_image", "constant_channel"]


@dataclass(frozen=True)
class InputFinding:
    """One image of a batch with something wrong about it.

    Attributes:
        kind: "not_finite", "constant_image" (every value is the same) or "constant_channel" (those of one channel are,
            the image's other channels are not).
        row: place in the batch.
        file: the image's key, or "image ROW of the batch" where the data has none.
        detail: what was seen, in words.
    """

    kind: Kind
    row: int
    file: str
    detail: str


def inspect_inputs(batch: Mapping[str, Any]) -> list[InputFinding]:
    """Look at the values of a batch, one pass over them.

    Args:
        batch: with ``x [B, C, *S]`` and, where the data names its images, ``key``.

    Returns:
        Findings in the order of the batch; at most one an image.

    Example:
        >>> x = torch.rand(2, 1, 4, 4)
        >>> x[1, 0, 2, 3] = float("nan")
        >>> [f.detail for f in inspect_inputs({"x": x, "key": ["a.png", "b.png"]})]
        ['1 of 16 values is nan, the first at channel 0, position (2, 3)']
    """
    x: Tensor = batch["x"]
    if not x.is_floating_point() or x.ndim < 3 or x.numel() == 0:
        return []
    flat = x.detach().flatten(2)
    # NaN survives both, and an infinity is one of them: these two numbers a channel tell everything but the place.
    low, high = flat.amin(-1), flat.amax(-1)
    wrong = ~(torch.isfinite(low) & torch.isfinite(high))
    # One pixel is no evidence: a channel of a 1 x 1 image is constant by construction.
    flat_channels = (low == high) & (flat.shape[-1] > 1)
    suspicious = (wrong | flat_channels).any(1).nonzero().flatten().tolist()
    return [_describe(batch, row, wrong, flat_channels, low) for row in suspicious]


def _describe(batch: Mapping[str, Any], row: int, wrong: Tensor, flat: Tensor, low: Tensor) -> InputFinding:
    x: Tensor = batch["x"]
    file = name_of(batch, row)
    if bool(wrong[row].any()):
        image = x[row]
        bad = ~torch.isfinite(image)
        first = bad.nonzero()[0].tolist()
        value = float(image[tuple(first)])
        count = int(bad.sum())
        detail = (
            f"{count} of {image.numel()} values {'is' if count == 1 else 'are'} {_values(image[bad], value)}, the first at "
            f"channel {first[0]}, position ({', '.join(map(str, first[1:]))})"
        )
        return InputFinding("not_finite", row, file, detail)
    channels = flat[row].nonzero().flatten().tolist()
    if len(channels) == x.shape[1]:
        levels = sorted({round(float(v), 4) for v in low[row]})
        return InputFinding("constant_image", row, file, f"every value is {', '.join(f'{v:g}' for v in levels)}")
    named = ", ".join(map(str, channels))
    return InputFinding("constant_channel", row, file, f"channel {named} holds the same value everywhere")


def _values(bad: Tensor, first: float) -> str:
    kinds = [("nan", torch.isnan(bad)), ("inf", bad == float("inf")), ("-inf", bad == float("-inf"))]
    present = [name for name, where in kinds if bool(where.any())]
    return present[0] if len(present) == 1 else " or ".join(present)


def name_of(batch: Mapping[str, Any], row: int) -> str:
    """Return an image's key, or its place in the batch where the data has no keys."""
    keys = batch.get("key")
    return str(keys[row]) if keys is not None and row < len(keys) else f"image {row} of the batch"


def names_of(batch: Mapping[str, Any]) -> list[str]:
    """Return the names of all images of a batch."""
    return [name_of(batch, row) for row in range(len(batch["x"]))]
