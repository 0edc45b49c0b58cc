"""Which reader a path needs: an embedded or published data set by its name, packed images, or a folder of image files."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omnivae.component import suggestion
from omnivae.data.archives import is_cifar10, is_mnist, read_cifar10, read_mnist
from omnivae.data.config import EMBEDDED, VOLUMES, DataConfig
from omnivae.data.corpus import is_text
from omnivae.data.downloads import PUBLISHED, published_folder
from omnivae.data.embedded import DEFAULT_PHOTO_SIZE, read_digits, read_photos, read_world
from omnivae.data.folder import read_folder, walk
from omnivae.data.header import ReadOptions
from omnivae.data.huggingface import is_hub_name, is_saved, read_huggingface
from omnivae.data.images import SUFFIXES
from omnivae.data.shards import is_shards
from omnivae.data.sources import Found
from omnivae.data.tables import is_table, read_tables
from omnivae.data.video import is_videos, read_videos
from omnivae.data.volumes.recognising import is_volumes
from omnivae.data.webdataset import read_shards


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
        recognises: whether a path that exists is of this kind.
        read: reads it.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path, DataConfig], Found]


def _packed(recognises: Callable[[Path], bool]) -> Callable[[Path], bool]:
    # Images beside a table or an archive are the data; the table describes them, the archive is their download.
    return lambda path: recognises(path) and not (path.is_dir() and _has_images(path))


def _read_volumes(path: Path, config: DataConfig) -> Found:
    raise ValueError(f"{path} holds volumes, and this command is for images")


#: ``data.format`` -> its reader, in the order in which a path is tried.
READERS: dict[str, Reader] = {
    "mnist": Reader(
        lambda path: is_mnist(path) and "fashion" not in path.resolve().name.lower(),
        lambda path, config: read_mnist(path, fashion=False),
    ),
    "fashion-mnist": Reader(is_mnist, lambda path, config: read_mnist(path, fashion=True)),
    "cifar10": Reader(is_cifar10, read_cifar10),
    "huggingface": Reader(is_saved, lambda path, config: read_huggingface(config)),
    "webdataset": Reader(_packed(is_shards), lambda path, config: read_shards(str(path), config)),
    "volumes": Reader(_packed(is_volumes), _read_volumes),
    "video": Reader(_packed(is_videos), read_videos),
    "table": Reader(_packed(is_table), read_tables),
    "folder": Reader(
        lambda path: True,
        lambda path, config: read_folder(
            path, options=ReadOptions.of(config), verify=config.verify, on_error=config.on_error
        ),
    ),
}


def find(config: DataConfig) -> Found:
    """Find the reader for a configuration, and read what is there.

    The names of data sets come first: ``mnist`` is the published data set and ``./mnist`` the folder.

    Args:
        config: what to read.

    Returns:
        All images, and the splits that the data itself defines.

    Raises:
        FileNotFoundError: when ``config.path`` does not exist, or has not been downloaded.
        ValueError: when it holds no images, or damaged ones.
    """
    if is_text(config):
        raise ValueError(
            f"{config.path} is text, and images are needed here: give a folder of images, or use a model of text (text_vae)"
        )
    kind = recognise(config)
    if kind in VOLUMES:
        return _read_volumes(Path(kind), config)
    if kind in EMBEDDED:
        if kind == "photos":
            return read_photos(config.image_size or DEFAULT_PHOTO_SIZE)
        return read_digits() if kind == "digits" else read_world(kind)
    if kind == "huggingface":
        return read_huggingface(config)
    if config.path in PUBLISHED and kind == config.path:
        return READERS[kind].read(published_folder(kind, download=config.download), config)
    return READERS[kind].read(Path(config.path).expanduser(), config)


def holds_volumes(config: DataConfig) -> bool:
    """Return whether a configuration names volumes (CT, MR, microscopy) rather than images.

    Args:
        config: what to read.
    """
    return recognise(config) in ("volumes", *VOLUMES)


def recognise(config: DataConfig) -> str:
    """Return what kind of input a configuration names.

    Args:
        config: what to read.

    Returns:
        A value of ``data.format`` other than "auto".

    Raises:
        FileNotFoundError: when ``config.path`` does not exist.
        ValueError: when it is an address.
    """
    names = (*EMBEDDED, *PUBLISHED)
    if config.path in names and config.format in ("auto", config.path):
        return config.path
    if is_hub_name(config.path) and config.format in ("auto", "huggingface"):
        return "huggingface"
    if config.format == "huggingface":
        return config.format
    if "://" in config.path:
        raise ValueError(f"got data.path={config.path}; expected data on this machine: copy it here first")
    path = Path(config.path).expanduser()
    if not path.exists():
        if _is_pattern(config.path) and config.format in ("auto", "webdataset"):
            return "webdataset"
        raise FileNotFoundError(
            f"no such file or folder: {path}{suggestion(config.path, names)}; give data.path a folder of images, an image file, "
            f"a table or tar shards of them, or the name of a data set: {', '.join(EMBEDDED)} (embedded), {', '.join(PUBLISHED)} "
            "(with data.download true)"
        )
    if config.format != "auto":
        return config.format
    return next(kind for kind, reader in READERS.items() if reader.recognises(path))


def _is_pattern(path: str) -> bool:
    return path.lower().endswith(".tar") and (glob.has_magic(path) or "{" in path)


def _has_images(folder: Path) -> bool:
    return any(name.lower().endswith(SUFFIXES) for name in walk(folder))
