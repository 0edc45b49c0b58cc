"""dSprites rendered on the fly (Matthey et al., dSprites: Disentanglement testing Sprites dataset, 2017).

The generative process of the original: a white square, ellipse or heart on black, 6 scales, 40 rotations and 32 x 32
positions, every combination once, 64 x 64 binary pixels. The shapes are drawn analytically, so the pixels at an outline
are not those of the original file; their mean area is (the original's mean pixel is 0.0425).
"""

from __future__ import annotations

import numpy as np

FACTOR_NAMES = ("shape", "scale", "orientation", "position_x", "position_y")
FACTOR_SIZES = (3, 6, 40, 32, 32)
NUM_IMAGES = 737_280
IMAGE_SIZE = 64

# The values that the original's `latents_values` holds; a full turn is included, as there.
FACTOR_VALUES = (
    np.array([1.0, 2.0, 3.0]),
    np.linspace(0.5, 1.0, 6),
    np.linspace(0.0, 2.0 * np.pi, 40),
    np.linspace(0.0, 1.0, 32),
    np.linspace(0.0, 1.0, 32),
)

# Sizes in pixels at scale 1.
_SQUARE_HALF = 9.5
_ELLIPSE_AXES = (12.5, 6.25)
_HEART_UNIT = 8.7
_HEART_CENTRE = 0.12  # raises the curve's origin to the middle of its height


def index_to_factors(index: np.ndarray) -> np.ndarray:
    """Return the factor classes of images numbered as in the original (shape slowest, vertical position fastest).

    Args:
        index: ``[N]``, 0 to 737,279.

    Returns:
        Class indices ``[N, 5]`` in the order of ``FACTOR_NAMES``.

    Example:
        >>> index_to_factors(np.array([33])).tolist()
        [[0, 0, 0, 1, 1]]
    """
    return np.stack(np.unravel_index(np.asarray(index), FACTOR_SIZES), axis=-1)


def factor_values(factors: np.ndarray) -> np.ndarray:
    """Return the values that factor classes stand for: shape 1 to 3, scale, radians, positions in [0, 1].

    Args:
        factors: class indices ``[N, 5]``.

    Returns:
        Values ``[N, 5]``, float64.
    """
    factors = np.asarray(factors).astype(np.int64)
    return np.stack([values[factors[:, i]] for i, values in enumerate(FACTOR_VALUES)], axis=-1)


def render_dsprites(factors: np.ndarray) -> np.ndarray:
    """Draw sprites from their factors.

    Args:
        factors: class indices ``[N, 5]``: shape (square, ellipse, heart), scale, orientation, horizontal position from
            the left, vertical position from the top.

    Returns:
        Pixels ``[N, 64, 64]``, uint8: 1 inside the shape, 0 outside.

    Raises:
        ValueError: for another shape of array or a class out of its range.

    Example:
        >>> int(render_dsprites(np.array([[0, 5, 0, 16, 16]])).sum())  # a square of side 19
        361
    """
    factors = np.asarray(factors)
    if factors.ndim != 2 or factors.shape[1] != 5:
        raise ValueError(f"got factors of shape {factors.shape}; expected [N, 5]: {', '.join(FACTOR_NAMES)}")
    if (factors < 0).any() or (factors >= np.array(FACTOR_SIZES)).any():
        raise ValueError(f"a factor is out of its range: expected 0 <= factor < {FACTOR_SIZES}")
    values = factor_values(factors)
    scale, angle = values[:, 1, None, None], values[:, 2, None, None]
    # One pixel for each step of position; the largest sprite stays inside the frame at every rotation.
    centre_x = 16.5 + 31.0 * values[:, 3, None, None]
    centre_y = 16.5 + 31.0 * values[:, 4, None, None]
    pixel = np.arange(IMAGE_SIZE) + 0.5
    dx = (pixel[None, None, :] - centre_x) / scale
    dy = (pixel[None, :, None] - centre_y) / scale
    # Into the sprite's own frame: u to its right, v upwards.
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.sin(angle) * dx - np.cos(angle) * dy

    images = np.zeros((len(factors), IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    for shape, inside in enumerate((_square, _ellipse, _heart)):
        rows = factors[:, 0].astype(np.int64) == shape
        if rows.any():
            images[rows] = inside(u[rows], v[rows])
    return images


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # A hair of slack, so that rounding in a rotation by a full turn does not eat the outline.
    return np.maximum(np.abs(u), np.abs(v)) < _SQUARE_HALF + 1e-9


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u / _ELLIPSE_AXES[0]) ** 2 + (v / _ELLIPSE_AXES[1]) ** 2 < 1.0


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The heart curve (x² + y² - 1)³ = x² y³.
    x, y = u / _HEART_UNIT, v / _HEART_UNIT + _HEART_CENTRE
    return (x**2 + y**2 - 1.0) ** 3 < x**2 * y**3
