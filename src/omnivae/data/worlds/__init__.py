"""Ground-truth worlds: pictures made from known factors, without any file or download."""

from omnivae.data.worlds.base import World
from omnivae.data.worlds.dsprites import DSPRITES, render_dsprites
from omnivae.data.worlds.known import WORLDS, world
from omnivae.data.worlds.moving_sprites import MOVING_SPRITES
from omnivae.data.worlds.shapes3d import SHAPES3D

__all__ = ["DSPRITES", "MOVING_SPRITES", "SHAPES3D", "WORLDS", "World", "render_dsprites", "world"]
