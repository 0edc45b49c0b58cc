"""Errors of reconstructed CT volumes in Hounsfield units: PSNR, SSIM and MAE in display windows, and in each structure.

A window of level L and width W shows L - W/2 as black and L + W/2 as white; what lies outside looks the same. A metric of a window
therefore sees what a reader sees: both volumes clipped to it, counted from its black end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from omnivae import similarity
from omnivae.metrics.registry import GROUPS, metric

#: Slabs of so many values are converted to float64 at once.
_SLAB = 2**22


@dataclass(frozen=True)
class Window:
    """A display window in Hounsfield units.

    Attributes:
        level: value shown as middle grey.
        width: from black to white, > 0.
    """

    level: float
    width: float

    @property
    def low(self) -> float:
        """Value shown as black, and all below it."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """Value shown as white, and all above it."""
        return self.level + self.width / 2

    def __str__(self) -> str:
        return f"{self.level:g}/{self.width:g}"


#: The usual windows of a chest and abdomen CT, level/width in HU.
WINDOWS: dict[str, Window] = {
    "lung": Window(-600, 1500),
    "soft_tissue": Window(40, 400),
    "bone": Window(400, 1800),
}


@dataclass(frozen=True)
class WindowErrors:
    """Errors of volumes in one window.

    Attributes:
        psnr: ``20 log10(width) - 10 log10(MSE)`` of the clipped volumes in dB, ``[B]``; infinite where they are equal.
        ssim: mean structural similarity of the clipped volumes, ``[B]``.
        mae: mean absolute error in HU of voxels whose original value lies in the window, ``[B]``; the reconstruction is not
            clipped. NaN where there is no such voxel.
        share: share of such voxels, ``[B]``.
    """

    psnr: Tensor
    ssim: Tensor
    mae: Tensor
    share: Tensor


@dataclass(frozen=True)
class StructureErrors:
    """Errors of a volume inside one structure, in HU.

    Attributes:
        voxels: how many there are.
        mae: mean absolute error.
        bias: mean error, reconstruction minus original.
        rmse: root of the mean squared error.
    """

    voxels: int
    mae: float
    bias: float
    rmse: float


@dataclass(frozen=True)
class HUContract:
    """Which Hounsfield units a model's values stand for.

    Attributes:
        window: lowest and highest HU.
        range: the model's values of these.
    """

    window: tuple[float, float]
    range: tuple[float, float]

    def to_hu(self, x: Tensor) -> Tensor:
        """Return values of the model in Hounsfield units, float64 for float64 and float32 otherwise."""
        (low, high), (first, last) = self.window, self.range
        x = x if x.dtype == torch.float64 else x.float()
        return (x - first) * ((high - low) / (last - first)) + low


def hu_contract(model: Any) -> HUContract:
    """Return the contract of a model whose values are Hounsfield units.

    Args:
        model: a VAE; ``model.statistics["intensity"]`` says what its values stand for.

    Returns:
        The contract.

    Raises:
        ValueError: when the model has none, or one of another unit.
    """
    known = getattr(model, "statistics", {}).get("intensity")
    if not isinstance(known, Mapping) or known.get("unit") != "HU":
        has = (
            "has no intensity contract"
            if not known
            else f"has values of unit {known.get('unit') if isinstance(known, Mapping) else known!r}"
        )
        raise ValueError(
            f"metrics in Hounsfield units need a model that knows which HU its values stand for, and this one {has}; measure psnr, "
            "ssim, mse or l1, or train on CT volumes"
        )
    try:
        window, values = (tuple(float(v) for v in known[name]) for name in ("window", "range"))
        if not (len(window) == len(values) == 2 and window[0] < window[1] and values[0] < values[1]):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"got the intensity contract {dict(known)}; expected a window [lowest, highest] in HU and a range [lowest, highest] of "
            "the model's values"
        ) from None
    return HUContract((window[0], window[1]), (values[0], values[1]))


def window_errors(
    reconstruction: Tensor, x: Tensor, window: Window, *, mask: Tensor | None = None, with_ssim: bool = True
) -> WindowErrors:
    """Return the errors of volumes (or slices) in a window.

    Args:
        reconstruction: in HU, ``[B, C, *S]`` with two or three spatial axes.
        x: what it should be, in HU.
        window: what is looked at.
        mask: 1 where a voxel counts, ``[B, 1, *S]``.
        with_ssim: whether the structural similarity is computed; NaN otherwise.

    Returns:
        The errors; sums are taken in float64.

    Raises:
        ValueError: for unequal shapes.

    Example:
        >>> x = torch.full((1, 1, 4, 4), 40.0)
        >>> window_errors(x + 4, x, WINDOWS["soft_tissue"]).psnr.round(decimals=6)
        tensor([40.], dtype=torch.float64)
    """
    if reconstruction.shape != x.shape:
        raise ValueError(
            f"got shapes {tuple(reconstruction.shape)} of the reconstruction and {tuple(x.shape)} of the volume; expected one"
        )
    squared, absolute, inside, counted, similar = (torch.zeros(len(x), dtype=torch.float64) for _ in range(5))
    for a, b, weight in _slabs(reconstruction, x, mask):
        shown_a, shown_b = (v.clamp(window.low, window.high) for v in (a, b))
        seen = weight * ((b >= window.low) & (b <= window.high))
        squared += _sums((shown_a - shown_b).square() * weight)
        absolute += _sums((a - b).abs() * seen)
        inside += _sums(seen)
        counted += _sums(weight)
    if with_ssim:
        # From black on: the similarity of luminances is one of amounts of light, and HU are negative.
        shown = [v.clamp(window.low, window.high) - window.low for v in (reconstruction, x)]
        for part, values in _ssim(shown[0], shown[1], window.width):
            weight = torch.ones((), dtype=torch.float64) if mask is None else mask[:, :, part].double()
            similar += _sums(values * weight.to(values.device))
    nan = torch.full_like(squared, math.nan)
    return WindowErrors(
        psnr=20 * math.log10(window.width) - 10 * (squared / counted).log10(),
        ssim=similar / counted if with_ssim else nan,
        mae=torch.where(inside > 0, absolute / inside, nan),
        share=inside / counted,
    )


def structure_errors(
    reconstruction: Tensor, x: Tensor, labels: Tensor, *, names: Mapping[int, str] | None = None
) -> dict[str, StructureErrors]:
    """Return the errors of one volume in every structure of a label map.

    Args:
        reconstruction: in HU, ``[C, *S]``.
        x: what it should be, in HU.
        labels: number of the structure of each voxel ``[*S]``; 0 is none.
        names: of the numbers; "label 3" by default.

    Returns:
        Name to errors, in the order of the numbers.

    Raises:
        ValueError: for a label map of another size, or one without any structure.
    """
    if reconstruction.shape != x.shape or tuple(labels.shape) != tuple(x.shape[1:]):
        raise ValueError(
            f"got volumes of shapes {tuple(reconstruction.shape)} and {tuple(x.shape)} and labels of {tuple(labels.shape)}; "
            "expected one size for all"
        )
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise ValueError("got labels that are no whole numbers; expected a map of structures, 0 for none")
    numbers = [int(n) for n in labels.unique().tolist() if n != 0]
    if not numbers:
        raise ValueError("got labels that are 0 everywhere; expected at least one structure")
    found = {}
    for number in numbers:
        place = (labels == number).expand_as(x)
        error = (reconstruction[place].double() - x[place].double()).double()
        name = (names or {}).get(number, f"label {number}")
        found[name] = StructureErrors(
            voxels=int(place.sum()),
            mae=float(error.abs().mean()),
            bias=float(error.mean()),
            rmse=float(error.square().mean().sqrt()),
        )
    return found


# -- inside


def _slabs(a: Tensor, b: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield parts along the first spatial axis in float64, with the weight of each value."""
    thick = max(1, _SLAB // max(1, a[:, :, 0].numel()))
    for start in range(0, a.shape[2], thick):
        part = slice(start, min(a.shape[2], start + thick))
        x, y = a[:, :, part].double(), b[:, :, part].double()
        yield x, y, torch.ones_like(y) if mask is None else mask[:, :, part].double().expand_as(y)


def _ssim(a: Tensor, b: Tensor, data_range: float) -> Iterator[tuple[slice, Tensor]]:
    # In float32 a flat region's variance is rounding.
    if a.ndim == 5:
        yield from similarity.ssim_slabs(a, b, data_range=data_range, dtype=torch.float64)
    else:
        yield slice(0, a.shape[2]), similarity.ssim_map(a.double(), b.double(), data_range=data_range)


def _sums(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1).cpu()


_UNITS: dict[str, tuple[str, Literal["higher", "lower"], str]] = {
    "psnr": (
        "dB",
        "higher",
        "Peak signal-to-noise ratio in the {window} HU window ({name}): 10 log10(width² / MSE), both volumes clipped to it.",
    ),
    "ssim": (
        "",
        "higher",
        "Structural similarity in the {window} HU window ({name}), both volumes clipped to it; 1 is identical.",
    ),
    "mae": ("HU", "lower", "Mean absolute error of voxels whose original lies in the {window} HU window ({name})."),
}


def _define(kind: str, name: str, window: Window) -> Callable[..., Tensor]:
    """Register one metric of one window; its formula is :func:`window_errors`."""
    unit, better, meaning = _UNITS[kind]

    def function(reconstruction: Tensor, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        errors = window_errors(reconstruction, x, window, mask=mask, with_ssim=kind == "ssim")
        value: Tensor = getattr(errors, kind)
        return value

    function.__name__ = f"{kind}_{name}"
    function.__doc__ = meaning.format(window=window, name=name.replace("_", " "))
    return metric(unit=unit, better=better, meaning=function.__doc__, scope="hounsfield", masks=True)(function)


for _name, _window in WINDOWS.items():
    GROUPS[_name] = tuple(_define(_kind, _name, _window).__name__ for _kind in _UNITS)
GROUPS["windows"] = tuple(name for group in WINDOWS for name in GROUPS[group])


@metric(
    unit="HU",
    better="lower",
    meaning="Mean absolute error of all voxels in Hounsfield units, inside the model's own window.",
    scope="hounsfield",
    masks=True,
)
def mae_hu(reconstruction: Tensor, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean absolute error of each volume in Hounsfield units.

    Args:
        reconstruction: in HU, ``[B, C, *S]``.
        x: what it should be, in HU.
        mask: 1 where a voxel counts, ``[B, 1, *S]``.

    Returns:
        ``[B]`` float64.
    """
    total, counted = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for a, b, weight in _slabs(reconstruction, x, mask):
        total += _sums((a - b).abs() * weight)
        counted += _sums(weight)
    return total / counted


def hu_table(
    reconstruction: Tensor, x: Tensor, *, mask: Tensor | None = None, windows: Sequence[str] = tuple(WINDOWS)
) -> dict[str, float]:
    """Return every metric in Hounsfield units of one volume: ``mae_hu`` and those of each window, by name.

    Args:
        reconstruction: in HU, ``[C, *S]``.
        x: what it should be, in HU.
        mask: 1 where a voxel counts, ``[1, *S]``.
        windows: names from ``WINDOWS``.

    Returns:
        Numbers; the peak signal-to-noise ratio of equal volumes is infinite.
    """
    a, b = reconstruction[None], x[None]
    weight = None if mask is None else mask[None]
    found = {"mae_hu": float(mae_hu(a, b, mask=weight))}
    for name in windows:
        errors = window_errors(a, b, WINDOWS[name], mask=weight)
        found |= {f"{kind}_{name}": float(getattr(errors, kind)) for kind in _UNITS}
        found[f"share_{name}"] = float(errors.share)
    return found
