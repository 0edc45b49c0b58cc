"""Images and volumes larger than memory: a model computed tile by tile."""

from omnivae.models.tiled.blended import SeamError
from omnivae.models.tiled.execute import TileProgress
from omnivae.models.tiled.memory import AllocationTracker, format_bytes, parse_bytes
from omnivae.models.tiled.wrapper import Tiled

__all__ = ["AllocationTracker", "SeamError", "TileProgress", "Tiled", "format_bytes", "parse_bytes"]
