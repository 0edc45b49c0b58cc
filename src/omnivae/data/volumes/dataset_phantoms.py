"""The embedded volumes: phantoms that are drawn when they are first needed."""

from __future__ import annotations

from functools import partial

from omnivae.data.sources import array_hash
from omnivae.data.volumes.dataset_source import Entry
from omnivae.volume import Volume

#: Number of volumes of each embedded data set.
COUNTS = {"ct_phantoms": 24, "mr_phantoms": 24, "plate_phantoms": 24}
#: Changes with what is drawn, so that no older drawing is taken from the cache.
_VERSION = 1


def phantom_entries(name: str) -> list[Entry]:
    """Return the volumes of an embedded data set; number ``i`` is the phantom of seed ``i``.

    Args:
        name: "ct_phantoms" (chests of 64 x 64 x 64 voxels of 6 mm, in HU), "mr_phantoms" (heads of 64 x 64 x 64 voxels of 3.6 mm)
            or "plate_phantoms" (fields of view of 15 x 128 x 128 voxels with the channels Phase3D and Nuclei).
    """
    return [
        Entry(
            f"{name}/{number:03d}",
            partial(draw_phantom, name, number),
            partial(_fingerprint, name, number),
            partial(_content_hash, name, number),
        )
        for number in range(COUNTS[name])
    ]


def draw_phantom(name: str, number: int) -> Volume:
    """Draw one volume.

    Args:
        name: of the data set.
        number: of the volume.
    """
    if name == "ct_phantoms":
        from omnivae.data.volumes.phantom_ct import ct_phantom

        return ct_phantom(number, size=(64, 64, 64), spacing=(6.0, 6.0, 6.0)).volume
    if name == "mr_phantoms":
        from omnivae.data.volumes.phantom_mr import mr_phantom

        return mr_phantom(number, size=(64, 64, 64), spacing=(3.6, 3.6, 3.6)).volume
    from omnivae.data.volumes.phantom_plate import field_phantom

    return field_phantom(number, size=(15, 128, 128)).volume


def _fingerprint(name: str, number: int) -> str:
    return f"{name}-{_VERSION}-{number}"


def _content_hash(name: str, number: int) -> str:
    return array_hash(draw_phantom(name, number).array)
