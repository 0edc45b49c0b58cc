"""Where patches are cut: at random with a share in the foreground, or at fixed places of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from omnivae.data.volumes.dataset_cache import BLOCK


def random_corner(
    size: Sequence[int], patch: Sequence[int], blocks: np.ndarray, *, foreground: float, random: np.random.Generator
) -> tuple[int, ...]:
    """Return the first corner of a random patch; negative along axes where the volume is smaller, which is then centred.

    With probability ``foreground`` the patch's centre is drawn from the foreground (a block of 8 x 8 x 8 voxels in proportion
    to its foreground, a voxel in it uniformly), and moved inside as far as the border demands; otherwise every place is
    equally likely.

    Args:
        size: of the volume.
        patch: its edges.
        blocks: foreground share of each block, 0 to 255.
        foreground: share of such patches, 0 to 1.
        random: where numbers come from; the same number of them is drawn either way.

    Returns:
        The corner.

    Example:
        >>> random_corner((8, 8, 9), (8, 8, 8), np.ones((1, 1, 2)), foreground=1, random=np.random.default_rng(0))[:2]
        (0, 0)
    """
    wants, where, inside, anywhere = random.random(), random.random(), random.random(3), random.random(3)
    total = np.cumsum(blocks.ravel(), dtype=np.float64)
    if wants < foreground and total[-1] > 0:
        block = int(np.searchsorted(total, where * total[-1], side="right"))
        first = np.array(np.unravel_index(min(block, total.size - 1), blocks.shape)) * BLOCK
        length = np.minimum(BLOCK, np.asarray(size) - first)
        corner = first + np.floor(inside * length).astype(int) - np.asarray(patch) // 2
    else:
        corner = np.floor(anywhere * (np.asarray(size) - np.asarray(patch) + 1)).astype(int)
    return tuple(
        min(max(int(c), 0), n - p) if n >= p else -((p - n) // 2) for c, n, p in zip(corner, size, patch, strict=True)
    )


def grid_corners(size: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """Return the corners of patches that cover a volume, as few as possible, evenly spread where they overlap.

    Args:
        size: of the volume.
        patch: its edges.

    Returns:
        ``[N, 3]``; negative along axes where the volume is smaller.

    Example:
        >>> grid_corners((10, 4, 2), (4, 4, 4)).tolist()
        [[0, 0, -1], [3, 0, -1], [6, 0, -1]]
    """
    axes = []
    for n, p in zip(size, patch, strict=True):
        count = math.ceil(n / p)
        axes.append([-((p - n) // 2)] if n <= p else [round(i * (n - p) / (count - 1)) for i in range(count)])
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def fixed_corners(size: Sequence[int], patch: Sequence[int], blocks: np.ndarray, count: int) -> np.ndarray:
    """Return a fixed choice of a grid's patches: spread over those that hold foreground, the fullest first where these are few.

    Args:
        size: of the volume.
        patch: its edges.
        blocks: foreground share of each block, 0 to 255.
        count: how many, fewer where the grid has no more.

    Returns:
        ``[M, 3]`` in the order of the grid.
    """
    corners = grid_corners(size, patch)
    if len(corners) <= count:
        return corners
    shares = np.array([_share(corner, patch, blocks) for corner in corners])
    full = np.flatnonzero(shares >= 0.1)
    if len(full) >= count:
        chosen = (
            full[np.round(np.linspace(0, len(full) - 1, count)).astype(int)] if count > 1 else full[[len(full) // 2]]
        )
    else:
        chosen = np.argsort(-shares, kind="stable")[:count]
    return corners[np.sort(chosen)]


def cut(values: np.ndarray, corner: Sequence[int], patch: Sequence[int], fill: np.ndarray) -> np.ndarray:
    """Return a copy of a patch, filled up where it reaches beyond the volume.

    Args:
        values: ``[C, I, J, K]``.
        corner: first voxel, may be negative.
        patch: edges.
        fill: value of each channel outside, ``[C]``.

    Returns:
        ``[C, *patch]``; in the type of the values, or float32 where the fill needs it.

    Example:
        >>> cut(np.ones((1, 1, 1, 1), np.int16), (-1, 0, 0), (2, 1, 1), np.array([-1000])).ravel().tolist()
        [-1000, 1]
    """
    start = [max(0, c) for c in corner]
    stop = [min(n, c + p) for n, c, p in zip(values.shape[1:], corner, patch, strict=True)]
    inner = values[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]
    if inner.shape[1:] == tuple(patch):
        return np.array(inner)
    dtype = values.dtype if np.array_equal(fill.astype(values.dtype), fill) else np.dtype(np.float32)
    out = np.empty((len(values), *patch), dtype)
    out[...] = fill.reshape(-1, 1, 1, 1)
    at = [a - c for a, c in zip(start, corner, strict=True)]
    i, j, k = (slice(a, a + (e - s)) for a, s, e in zip(at, start, stop, strict=True))
    out[:, i, j, k] = inner
    return out


def _share(corner: np.ndarray, patch: Sequence[int], blocks: np.ndarray) -> float:
    """Return the foreground share of a patch, by whole blocks."""
    first = [max(0, int(c)) // BLOCK for c in corner]
    last = [-(-(int(c) + p) // BLOCK) for c, p in zip(corner, patch, strict=True)]
    part = blocks[first[0] : last[0], first[1] : last[1], first[2] : last[2]]
    return float(part.mean()) / 255 if part.size else 0.0
