"""Pictures of clips: their frames from first to last, one column each.

Shapes: N clips, C channels, T frames, H and W pixels; every function of pictures returns ``[height, width, 3]`` uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from omnivae.metrics import psnr
from omnivae.report import figures
from omnivae.report.colours import strip_frames

#: Frames are enlarged by whole factors to at least this many pixels and reduced to at most that many.
MIN_FRAME, MAX_FRAME = 128, 192
GAP = 20


def clip_grid(
    originals: Tensor,
    reconstructions: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    samples: Tensor | None = None,
    alpha: bool = False,
) -> np.ndarray:
    """Show clips under each other: frames of the original, the reconstruction, their difference, and of a sample.

    Below each frame stands its number and its PSNR. The error is the absolute difference averaged over channels, on one scale
    for all frames of a clip.

    Args:
        originals: ``[N, C, T, H, W]``, N >= 1.
        reconstructions: of the same shape.
        value_range: what becomes black and white.
        samples: one further clip for each, ``[N, C, T, H, W]``.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: for unequal shapes, or no clip.

    Example:
        >>> import torch
        >>> clip_grid(torch.zeros(2, 1, 9, 8, 8), torch.zeros(2, 1, 9, 8, 8)).shape[0] > 6 * MIN_FRAME
        True
    """
    if originals.shape != reconstructions.shape or originals.ndim != 5 or not len(originals):
        raise ValueError(
            f"got originals {tuple(originals.shape)} and reconstructions {tuple(reconstructions.shape)}; expected equal shapes "
            "[N, C, T, H, W]"
        )
    low, high = value_range
    shown = strip_frames(originals.shape[2])
    drawn = []
    for i, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        x, decoded = (clip.detach().float().cpu()[:, shown].transpose(0, 1) for clip in (original, reconstruction))
        quality = psnr(decoded.clamp(low, high), x, data_range=high - low).tolist()
        drawn.append(
            figures.comparison_grid(
                x,
                decoded,
                value_range,
                labels=[f"frame {t + 1}, {q:.1f} dB" for t, q in zip(shown, quality, strict=True)],
                samples=None if samples is None else samples[i].detach().cpu()[:, shown].transpose(0, 1),
                min_tile=MIN_FRAME,
                max_tile=MAX_FRAME,
                alpha=alpha,
            )
        )
    return _stacked(drawn)


def clip_rows(
    clips: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), *, names: Sequence[str], alpha: bool = False
) -> np.ndarray:
    """Show one clip a row.

    Args:
        clips: ``[N, C, T, H, W]``, N >= 1.
        value_range: what becomes black and white.
        names: one for each.
        alpha: whether the last of two or four channels is alpha.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: for names that are not one for each clip.
    """
    shown = strip_frames(clips.shape[2])
    return figures.class_grid(
        clips.detach().cpu()[:, :, shown].transpose(1, 2),
        value_range,
        names=names,
        headings=[f"frame {t + 1}" for t in shown],
        min_tile=MIN_FRAME,
        max_tile=MAX_FRAME,
        alpha=alpha,
    )


def middle_frame(clips: Tensor) -> Tensor:
    """Return the frame in the middle of each clip.

    Args:
        clips: ``[..., T, H, W]``.

    Example:
        >>> import torch
        >>> middle_frame(torch.arange(5.0).reshape(1, 5, 1, 1)).item()
        2.0
    """
    return clips[..., clips.shape[-3] // 2, :, :]


def _stacked(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures under each other on white paper, their labels in line: they begin with labels of one width."""
    width = max(grid.shape[1] for grid in grids)
    padded = [np.pad(grid, ((0, 0), (0, width - grid.shape[1]), (0, 0)), constant_values=255) for grid in grids]
    gap = np.full((GAP, width, 3), 255, np.uint8)
    rows = [part for grid in padded for part in (grid, gap)][:-1]
    return np.concatenate(rows)
