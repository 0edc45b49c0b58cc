"""Data sets that need no download: scikit-learn's digits and photographs, and rendered worlds."""

from __future__ import annotations

import numpy as np

from omnivae.data.sources import ArraySource, Found, PhotoCropSource, WorldSource
from omnivae.data.worlds import world

PHOTO_CROPS_PER_EPOCH = 1024
DEFAULT_PHOTO_SIZE = 64
#: Share of a photograph's height that is held out at least: a band through its middle, where there is something to see.
_HELD_OUT = 0.2


def read_digits() -> Found:
    """Return the 1,797 handwritten digits, 8 x 8 with 17 grey levels (Alpaydin and Kaynak, 1998), from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = ArraySource(
        "digits",
        (digits.images / 16).astype(np.float32),
        labels=digits.target.astype(np.int64),
        classes=[str(i) for i in range(10)],
        key_starts={"digits": 0},
    )
    return Found(source, {"train": np.arange(len(source))})


def read_photos(crop_size: int) -> Found:
    """Return crops of scikit-learn's two photographs, china and flower, 427 x 640 pixels each.

    Validation and test crops are the cells of a grid over a band through the middle of a photograph, alternately. Training
    crops lie above and below it, 1,024 in a nominal epoch. No two splits share a pixel.

    Args:
        crop_size: side of a crop in pixels, at most 142.

    Returns:
        The source and all three splits.

    Raises:
        ValueError: when the middle of the photographs has no room for such crops.
    """
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    photos = [np.asarray(image) for image in sample.images]
    names = [str(name).replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in sample.filenames]
    height, width = photos[0].shape[:2]
    band = max(int(_HELD_OUT * height), crop_size)
    begin = (height - band) // 2
    end = begin + band
    if crop_size > begin:
        raise ValueError(f"photos offers crops of up to {height // 3} pixels, got data.image_size={crop_size}")
    sides = ((0, begin), (end, height))
    moving = [
        (i % len(photos), 0, top, width, bottom)
        for i in range(PHOTO_CROPS_PER_EPOCH)
        for top, bottom in [sides[i // len(photos) % 2]]
    ]
    fixed = [
        (photo, left, top, left + crop_size, top + crop_size)
        for top in range(begin, end - crop_size + 1, crop_size)
        for left in range(0, width - crop_size + 1, crop_size)
        for photo in range(len(photos))
    ]
    source = PhotoCropSource(
        "photos", photos, names=names, boxes=np.array(moving + fixed), num_moving=PHOTO_CROPS_PER_EPOCH
    )
    # Pairs of the two photographs go to validation and test by turns.
    held_out = np.arange(len(fixed))
    is_val = held_out // len(photos) % 2 == 0
    start = len(moving)
    return Found(
        source,
        {"train": np.arange(start), "val": start + held_out[is_val], "test": start + held_out[~is_val]},
    )


def read_world(name: str) -> Found:
    """Return all combinations of a world's factors, rendered when they are read.

    Args:
        name: a key of ``WORLDS``.
    """
    source = WorldSource(world(name))
    return Found(source, {"train": np.arange(len(source))})
