"""Volumes: files to :class:`omnivae.volume.Volume` and back, transforms with an inverse, phantoms."""

from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.reading import read_volume, volume_header, write_volume
from omnivae.data.volumes.values import check_hu, from_stored, guess_unit, to_stored

__all__ = [
    "VolumeHeader",
    "check_hu",
    "from_stored",
    "guess_unit",
    "read_volume",
    "to_stored",
    "volume_header",
    "write_volume",
]
