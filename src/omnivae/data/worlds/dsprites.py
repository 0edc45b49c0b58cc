"""dSprites rendered on the fly (Matthey et al., dSprites: Disentanglement testing Sprites dataset, 2017).

The generative process of the original: a white square, ellipse or heart on black, 6 scales, 40 rotations and 32 x 32
positions, every combination once in the original's order, 64 x 64 binary pixels. The shapes are drawn analytically, so the
pixels at an outline are not those of the original file; their mean area is (the original's mean pixel is 0.0425).

As in the original, the last of the 40 rotations is a full turn, whose picture is that of none.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from omnivae.data.worlds.base import World

IMAGE_SIZE = 64

# Sizes in pixels at scale 1.
_SQUARE_HALF = 9.5
_ELLIPSE_AXES = (12.5, 6.25)
_HEART_UNIT = 8.7
_HEART_CENTRE = 0.12  # raises the curve's origin to the middle of its height

#: A sprite at the first position is within the first so many rows and columns; each step of position is one pixel.
_TILE = 33
_SHAPES, _SCALES, _ANGLES = np.array([1.0, 2.0, 3.0]), np.linspace(0.5, 1.0, 6), np.linspace(0.0, 2.0 * np.pi, 40)


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
    return DSPRITES.render(factors)[..., 0] // 255


def _draw(factors: np.ndarray) -> np.ndarray:
    shape, scale, angle, x, y = factors.T
    images = np.zeros((len(factors), IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    places = np.lib.stride_tricks.sliding_window_view(images, (_TILE, _TILE), axis=(1, 2), writeable=True)  # type: ignore[call-overload]
    places[np.arange(len(factors)), y, x] = _sprites()[shape, scale, angle]
    return images[..., None]


@cache
def _sprites() -> np.ndarray:
    """Return the 720 sprites at the first position, ``[shape, scale, orientation, 33, 33]`` uint8, 0 or 255."""
    scale, angle = _SCALES[:, None, None, None], _ANGLES[None, :, None, None]
    offset = np.arange(_TILE) - (_TILE - 1) / 2
    dx, dy = offset[None, None, None, :] / scale, offset[None, None, :, None] / scale
    # Into the sprite's own frame: u to its right, v upwards.
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.sin(angle) * dx - np.cos(angle) * dy
    return np.stack([_square(u, v), _ellipse(u, v), _heart(u, v)]).astype(np.uint8) * np.uint8(255)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # A hair of slack, so that rounding in a rotation by a full turn does not eat the outline.
    return np.maximum(np.abs(u), np.abs(v)) < _SQUARE_HALF + 1e-9


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u / _ELLIPSE_AXES[0]) ** 2 + (v / _ELLIPSE_AXES[1]) ** 2 < 1.0


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The heart curve (x² + y² - 1)³ = x² y³.
    x, y = u / _HEART_UNIT, v / _HEART_UNIT + _HEART_CENTRE
    return (x**2 + y**2 - 1.0) ** 3 < x**2 * y**3


#: The values are those of the original's ``latents_values``, which leaves out its constant colour.
DSPRITES = World(
    name="dsprites",
    names=("shape", "scale", "orientation", "position_x", "position_y"),
    values=(_SHAPES, _SCALES, _ANGLES, np.linspace(0.0, 1.0, 32), np.linspace(0.0, 1.0, 32)),
    image_shape=(IMAGE_SIZE, IMAGE_SIZE),
    channels=1,
    draw=_draw,
)
