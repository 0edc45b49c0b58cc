"""How channels become colours: grey, RGB, RGB over white where there is alpha, and one colour for each of other channels.

Channels that are no colours (fluorescence, spectra, maps) are laid over each other as lights of distinct colours, those of two
channels told apart also by readers who cannot tell red from green (Wong, Points of view: Color blindness, 2011).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Colour of each channel in turn, from the first again after the last.
CHANNEL_COLOURS: dict[str, tuple[int, int, int]] = {
    "magenta": (1, 0, 1),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "yellow": (1, 1, 0),
    "red": (1, 0, 0),
    "blue": (0, 0, 1),
}


def colour_names(channels: int, *, alpha: bool = False) -> list[str]:
    """Return the colour that each channel is shown in, or nothing where channels are shown as grey or RGB.

    Args:
        channels: number of channels.
        alpha: whether the last one is alpha.

    Returns:
        One name for each channel, or an empty list.

    Example:
        >>> colour_names(2), colour_names(3), colour_names(4, alpha=True)
        (['magenta', 'green'], [], [])
    """
    if channels in (1, 3) or (alpha and channels in (2, 4)):
        return []
    names = list(CHANNEL_COLOURS)
    return [names[i % len(names)] for i in range(channels)]


#: Frames of a clip that a picture shows side by side.
STRIP = 5


def to_pixels(x: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), *, alpha: bool = False) -> np.ndarray:
    """Turn images into RGB pixels.

    One channel is grey and three are RGB. Two, four and more are lights of distinct colours laid over each other (screen
    blending: ``1 - prod_c (1 - u_c colour_c)``), unless the last one is alpha: then the image is laid on white.

    Args:
        x: images ``[N, C, H, W]``, or clips and volumes ``[N, C, D, H, W]``, shown by a strip of their frames.
        value_range: what becomes black and white; values outside are clamped.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[N, H, W, 3]`` uint8; of clips, W is that of the strip.

    Raises:
        ValueError: for another number of axes.

    Example:
        >>> to_pixels(torch.tensor([[[[0.0, 1.0]]]]), (0, 1))[0, 0].tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    x = strip(x).detach().float().cpu()
    low, high = value_range
    unit = ((x - low) / (high - low)).nan_to_num(0).clamp(0, 1)
    names = colour_names(unit.shape[1], alpha=alpha)
    if names:
        dark = torch.ones(len(unit), 3, *unit.shape[2:])
        for channel, name in zip(unit.split(1, dim=1), names, strict=True):
            dark *= 1 - channel * torch.tensor(CHANNEL_COLOURS[name])[:, None, None]
        unit = 1 - dark
    elif unit.shape[1] in (2, 4):
        opacity = unit[:, -1:]
        unit = unit[:, :-1] * opacity + (1 - opacity)
    return (unit.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def strip(x: Tensor) -> Tensor:
    """Return images as they are, and of clips and volumes a few frames side by side: first, last and evenly between.

    Args:
        x: ``[N, C, H, W]`` or ``[N, C, D, H, W]``.

    Returns:
        ``[N, C, H, W]``, or ``[N, C, H, K * W]`` of K = min(D, 5) frames.

    Raises:
        ValueError: for another number of axes.

    Example:
        >>> strip(torch.arange(9.0).reshape(1, 1, 9, 1, 1)).flatten().tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if x.ndim == 5:
        frames = strip_frames(x.shape[2])
        # Frames beside columns, then both one axis of columns.
        return x[:, :, frames].permute(0, 1, 3, 2, 4).flatten(3, 4)
    if x.ndim != 4:
        raise ValueError(
            f"got a tensor of shape {tuple(x.shape)}; expected images [N, C, H, W] or volumes [N, C, D, H, W]"
        )
    return x


def strip_frames(depth: int) -> list[int]:
    """Return which of ``depth`` frames a strip shows.

    Args:
        depth: number of frames.

    Returns:
        Ascending numbers, :data:`STRIP` at most.
    """
    shown = min(depth, STRIP)
    return [round(i * (depth - 1) / max(1, shown - 1)) for i in range(shown)]
