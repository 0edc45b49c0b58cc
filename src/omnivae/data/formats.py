"""Which reader a path needs: an embedded data set, an archive, or a folder of image files."""

from __future__ import annotations

from pathlib import Path

from omnivae.component import suggestion
from omnivae.data.archives import is_cifar10, is_mnist, read_cifar10, read_mnist
from omnivae.data.config import EMBEDDED, DataConfig
from omnivae.data.embedded import DEFAULT_PHOTO_SIZE, read_digits, read_dsprites, read_photos
from omnivae.data.folder import read_folder
from omnivae.data.header import ReadOptions
from omnivae.data.sources import Found


def find(config: DataConfig) -> Found:
    """Find the reader for a configuration, and read what is there.

    Args:
        config: what to read.

    Returns:
        All images, and the splits that the data itself defines.

    Raises:
        FileNotFoundError: when ``config.path`` does not exist.
        ValueError: when it holds no images, or damaged ones.
    """
    if (config.format == "auto" and config.path in EMBEDDED) or config.format in EMBEDDED:
        if config.path == "photos":
            return read_photos(config.image_size or DEFAULT_PHOTO_SIZE)
        return read_digits() if config.path == "digits" else read_dsprites()
    path = Path(config.path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no such file or folder: {path}{suggestion(config.path, EMBEDDED)}; give data.path a folder of images, an "
            f"image file, or the name of an embedded data set: {', '.join(EMBEDDED)}"
        )
    if config.format == "mnist" or (config.format == "auto" and path.is_dir() and is_mnist(path)):
        return read_mnist(path)
    if config.format == "cifar10" or (config.format == "auto" and path.is_dir() and is_cifar10(path)):
        return read_cifar10(path)
    return read_folder(path, options=ReadOptions.of(config), verify=config.verify, on_error=config.on_error)
