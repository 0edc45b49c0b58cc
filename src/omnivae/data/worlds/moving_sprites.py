"""Moving sprites: short videos of a coloured shape that flies straight and bounces off the walls."""

from __future__ import annotations

import numpy as np

from omnivae.data.worlds.base import World
from omnivae.data.worlds.shapes3d import hue_to_rgb

NUM_FRAMES, SIDE = 16, 32
#: A sprite's centre stays so far from the edges of the picture: the radius of the largest.
_MARGIN = 6.0
_RADII, _HUES = np.linspace(3.0, 5.5, 4), np.arange(6) / 6
_PLACES = np.linspace(_MARGIN + 1.0, SIDE - _MARGIN - 1.0, 8)
_TURNS, _SPEEDS = np.arange(8) / 8 * 360.0, np.linspace(0.5, 2.0, 4)
#: Directions of a triangle's sides, outward; the first points down.
_SIDES = np.deg2rad(np.array([90.0, 210.0, 330.0]))


def path(factors: np.ndarray) -> np.ndarray:
    """Return where the sprite's centre is in each frame.

    Args:
        factors: class indices ``[N, 7]``.

    Returns:
        Pixels from the left and from the top, ``[N, 16, 2]`` float64.
    """
    start = np.stack([_PLACES[factors[:, 3]], _PLACES[factors[:, 4]]], axis=-1)
    angle = np.deg2rad(_TURNS[factors[:, 5]])
    step = _SPEEDS[factors[:, 6], None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    straight = start[:, None] + np.arange(NUM_FRAMES)[None, :, None] * step[:, None]
    # Unfolded, a path between two mirrors is a straight line.
    width = SIDE - 2 * _MARGIN
    return _MARGIN + width - np.abs((straight - _MARGIN) % (2 * width) - width)


def _draw(factors: np.ndarray) -> np.ndarray:
    centre = path(factors)
    pixel = np.arange(SIDE) + 0.5
    dx = (pixel - centre[..., :1]).astype(np.float32)[..., None, :]  # [N, T, 1, W]
    dy = (pixel - centre[..., 1:]).astype(np.float32)[..., :, None]  # [N, T, H, 1]
    radius = _RADII[factors[:, 1]].astype(np.float32)[:, None, None, None]
    beyond = np.empty((len(factors), NUM_FRAMES, SIDE, SIDE), dtype=np.float32)
    for shape, outside in enumerate((_square, _disc, _triangle)):
        rows = factors[:, 0] == shape
        if rows.any():
            beyond[rows] = outside(dx[rows], dy[rows], radius[rows])
    # The share of a pixel that an edge at this distance from its centre leaves covered.
    covered = np.clip(0.5 - beyond, 0.0, 1.0)
    colour = (255.0 * hue_to_rgb(_HUES[factors[:, 2]])).astype(np.float32)
    return (covered[..., None] * colour[:, None, None, None] + np.float32(0.5)).astype(np.uint8)


# How far outside of each shape a point is, in pixels; negative inside. All have about the area of the disc.
def _square(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(dx), np.abs(dy)) - 0.886 * radius


def _disc(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.hypot(dx, dy) - radius


def _triangle(dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    sides = [np.float32(np.cos(a)) * dx + np.float32(np.sin(a)) * dy for a in _SIDES]
    return np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - 0.65 * radius


MOVING_SPRITES = World(
    name="moving_sprites",
    names=("shape", "size", "colour", "position_x", "position_y", "direction", "speed"),
    values=(np.arange(1.0, 4.0), _RADII, _HUES, _PLACES, _PLACES, _TURNS, _SPEEDS),
    image_shape=(NUM_FRAMES, SIDE, SIDE),
    channels=3,
    draw=_draw,
)
