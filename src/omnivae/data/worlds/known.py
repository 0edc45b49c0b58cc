"""The worlds by name."""

from __future__ import annotations

from omnivae.component import suggestion
from omnivae.data.worlds.base import World
from omnivae.data.worlds.dsprites import DSPRITES
from omnivae.data.worlds.moving_sprites import MOVING_SPRITES
from omnivae.data.worlds.shapes3d import SHAPES3D

#: What ``data.path`` and ``--world`` may name.
WORLDS: dict[str, World] = {made.name: made for made in (DSPRITES, SHAPES3D, MOVING_SPRITES)}


def world(name: str) -> World:
    """Return a world by name.

    Args:
        name: "dsprites", "shapes3d" or "moving_sprites".

    Returns:
        The world.

    Raises:
        ValueError: for an unknown name; lists the known ones.

    Example:
        >>> world("dsprites").names
        ('shape', 'scale', 'orientation', 'position_x', 'position_y')
    """
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}{suggestion(name, WORLDS)}; expected one of {', '.join(WORLDS)}")
    return WORLDS[name]
