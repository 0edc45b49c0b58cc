"""Ground-truth worlds: pictures made from known factors, without any file or download."""

from omnivae.data.worlds.base import World
from omnivae.data.worlds.dsprites import DSPRITES, render_dsprites
from omnivae.data.worlds.known import WORLDS, world

__all__ = ["DSPRITES", "WORLDS", "World", "render_dsprites", "world"]
