"""Sources: numbered, named, still undecoded images; readers make them, datasets decode and transform them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from omnivae.data.header import ALPHA, Header, ReadOptions, can_convert
from omnivae.data.images import read_header, read_image
from omnivae.data.worlds.base import World

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


#: Bytes at each end of a file that its fingerprint looks at.
_ENDS = 32 * 1024


class ImageSource:
    """Base of the sources: images by number, with stable names.

    Attributes:
        name: name of the data set.
        sizes: height and width, ``[N, 2]``, or ``[1, 2]`` where all are equal.
        channels: stored channels, ``[N]``, or ``[1]`` where all are equal.
        modes: colour modes as in :class:`omnivae.data.header.Header`, ``[N]`` or ``[1]``; None for grey and RGB.
        dtypes: types of the stored samples, ``[N]`` or ``[1]``.
        bit_depth: bits of a stored sample, the largest among the images.
        options: how stored samples are to be understood.
        labels: class indices ``[N]`` int64, or None.
        classes: names of the classes, or None.
        attributes: what else is known about each image, by name: numbers, names, vectors or paths of ``.npy`` files, ``N`` each.
        in_memory: whether reading an image decodes nothing.
    """

    name: str
    in_memory: bool = False
    sizes: np.ndarray
    channels: np.ndarray
    modes: np.ndarray | None = None
    dtypes: np.ndarray = np.array(["uint8"])
    bit_depth: int = 8
    options: ReadOptions = ReadOptions()
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    attributes: Mapping[str, Sequence[Any]] = MappingProxyType({})

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} does not define a length")

    def key(self, index: int) -> str:
        """Return the stable name of an image."""
        raise TypeError(f"{type(self).__name__} does not name its images")

    def read(self, index: int) -> np.ndarray:
        """Return an image ``[H, W, C]``, upright, in its stored type (see :func:`omnivae.data.images.read_image`)."""
        raise TypeError(f"{type(self).__name__} does not read images")

    def read_many(self, index: np.ndarray) -> np.ndarray | None:
        """Return images ``[N, *S, C]`` at once where that is quicker than one by one, or None."""
        return None

    def header(self, index: int) -> Header | None:
        """Return what the file of an image says about itself, to write another like it; None for images without a file."""
        return None

    def content_hash(self, index: int) -> str:
        """Return the SHA-256, in hexadecimal, of an image as it is stored: of the file, or of the pixels in memory."""
        return array_hash(self.read(index))

    def fingerprint(self, index: int) -> str:
        """Return a short text that changes when an image does, cheaper than :meth:`content_hash` where that is possible."""
        return self.content_hash(index)[:16]

    def describe(self, headers: Sequence[Header]) -> None:
        """Take sizes, channels, modes and types from the headers of all images, in their order."""
        self.sizes = np.array([(h.height, h.width) for h in headers])
        self.channels = np.array([h.channels for h in headers])
        self.modes = np.array([h.mode for h in headers])
        self.dtypes = np.array([h.dtype for h in headers])
        self.bit_depth = max(h.bit_depth for h in headers)

    def has_alpha(self, index: int) -> bool:
        """Return whether the last channel of an image is alpha."""
        return self.modes is not None and str(self.modes[index if len(self.modes) > 1 else 0]) in ALPHA

    def not_convertible(self, channels: int) -> np.ndarray:
        """Return the numbers of the images that cannot be turned into ``channels`` channels, ``[M]``."""
        stored = np.broadcast_to(self.channels, len(self)).tolist()
        plain = {1: "L", 3: "RGB"}
        modes = [plain.get(n, "N") for n in stored] if self.modes is None else np.broadcast_to(self.modes, len(self))
        pairs = enumerate(zip(modes, stored, strict=True))
        return np.array([i for i, (mode, n) in pairs if not can_convert(str(mode), n, channels)], dtype=np.int64)

    def factor_values(self, index: np.ndarray) -> np.ndarray | None:
        """Return the values of the generating factors ``[N, F]``, or None where there are none."""
        return None

    def permutation(self, seed: int, epoch: int) -> np.ndarray | None:
        """Return an order of all images that suits how they are stored, anew in each epoch; None where any order does."""
        return None


@dataclass(frozen=True)
class Found:
    """What a reader found: a source, and the splits that the data itself defines.

    Attributes:
        source: all images.
        splits: indices by split; "train" is always there, a missing "val" or "test" is carved from it.
        skipped: name and reason of each image that could not be read and was left out.
    """

    source: ImageSource
    splits: dict[Split, np.ndarray]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class FileSource(ImageSource):
    """Image files below a folder.

    Args:
        root: the folder.
        paths: files relative to it, with forward slashes.
        headers: what each file says about itself.
        name: name of the data set.
        options: how stored samples are to be understood.
        labels: class indices ``[N]``, or None.
        classes: names of the classes, or None.
    """

    def __init__(
        self,
        root: Path,
        paths: list[str],
        headers: Sequence[Header],
        *,
        name: str,
        options: ReadOptions,
        labels: np.ndarray | None,
        classes: list[str] | None,
    ) -> None:
        self.root, self.paths, self.name, self.options = root, paths, name, options
        self.labels, self.classes = labels, classes
        self.describe(headers)

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        """See :meth:`ImageSource.key`."""
        return self.paths[index]

    def read(self, index: int) -> np.ndarray:
        """See :meth:`ImageSource.read`."""
        path = self.root / self.paths[index]
        if not path.is_file():
            raise FileNotFoundError(f"{path} was there when the data was listed and is gone: run again")
        return read_image(path, str(path), self.options)

    def header(self, index: int) -> Header:
        """See :meth:`ImageSource.header`."""
        path = self.root / self.paths[index]
        return read_header(path, str(path), self.options)

    def content_hash(self, index: int) -> str:
        """See :meth:`ImageSource.content_hash`."""
        with (self.root / self.paths[index]).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fingerprint(self, index: int) -> str:
        """See :meth:`ImageSource.fingerprint`: the size, and the SHA-256 of the first and last 32 KiB."""
        return file_fingerprint(self.root / self.paths[index])


class ArraySource(ImageSource):
    """Images in memory.

    Args:
        name: name of the data set.
        images: ``[N, H, W]`` (grey) or ``[N, H, W, C]``, uint8, or float32 in [0, 1].
        labels: class indices ``[N]``.
        classes: names of the classes.
        key_starts: prefix of the keys and the number of the first image that has it, in ascending order.
    """

    in_memory = True

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        *,
        labels: np.ndarray,
        classes: list[str],
        key_starts: dict[str, int],
    ) -> None:
        self.name, self.images, self.labels, self.classes = name, images, labels, classes
        self.sizes = np.array([images.shape[1:3]])
        self.channels = np.array([1 if images.ndim == 3 else images.shape[3]])
        self.dtypes = np.array([images.dtype.name])
        self._key_starts = key_starts

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        """See :meth:`ImageSource.key`."""
        return _numbered_key(self._key_starts, index)

    def read(self, index: int) -> np.ndarray:
        """See :meth:`ImageSource.read`."""
        image = self.images[index]
        return image[..., None] if image.ndim == 2 else image

    def content_hash(self, index: int) -> str:
        """See :meth:`ImageSource.content_hash`."""
        return array_hash(self.images[index])


class PhotoCropSource(ImageSource):
    """Photographs to be cropped at random for training, and fixed crops of other parts of them.

    Args:
        name: name of the data set.
        photos: RGB images ``[H, W, 3]``, uint8.
        names: their names.
        boxes: photo, left, top, right and bottom of each image, ``[N, 5]``.
        num_moving: how many images, from the first on, are larger than the crop that training takes from them.
    """

    in_memory = True

    def __init__(
        self, name: str, photos: list[np.ndarray], *, names: list[str], boxes: np.ndarray, num_moving: int
    ) -> None:
        self.name, self.photos, self.names, self.boxes, self.num_moving = name, photos, names, boxes, num_moving
        self.sizes, self.channels = np.array([photo.shape[:2] for photo in photos]), np.array([3])

    def __len__(self) -> int:
        return len(self.boxes)

    def key(self, index: int) -> str:
        """See :meth:`ImageSource.key`."""
        photo, left, top, *_ = self.boxes[index]
        if index < self.num_moving:
            return f"{self.name}/train/{index:05d}-{self.names[photo]}"
        return f"{self.name}/{self.names[photo]}/x{left}-y{top}"

    def fingerprint(self, index: int) -> str:
        """See :meth:`ImageSource.fingerprint`: these images are made by this package and cannot change by themselves."""
        return "generated"

    def read(self, index: int) -> np.ndarray:
        """See :meth:`ImageSource.read`."""
        photo, left, top, right, bottom = self.boxes[index]
        return self.photos[photo][top:bottom, left:right]


class WorldSource(ImageSource):
    """All pictures of a world, rendered when read; labels are the factor classes.

    Args:
        world: the world.
    """

    in_memory = True

    def __init__(self, world: World) -> None:
        self.world, self.name = world, world.name
        self.sizes, self.channels = np.array([world.image_shape]), np.array([world.channels])
        self.labels = world.factors(np.arange(world.num_images)).astype(np.float32)
        self._digits = len(str(world.num_images - 1))

    def __len__(self) -> int:
        return self.world.num_images

    def key(self, index: int) -> str:
        """See :meth:`ImageSource.key`."""
        return f"{self.name}/{index:0{self._digits}d}"

    def fingerprint(self, index: int) -> str:
        """See :meth:`ImageSource.fingerprint`: these images are made by this package and cannot change by themselves."""
        return "generated"

    def read(self, index: int) -> np.ndarray:
        """See :meth:`ImageSource.read`; a video is ``[T, H, W, C]``."""
        return self.read_many(np.array([index]))[0]

    def read_many(self, index: np.ndarray) -> np.ndarray:
        """See :meth:`ImageSource.read_many`."""
        return self.world.render(self.world.factors(index))

    def factor_values(self, index: np.ndarray) -> np.ndarray | None:
        """See :meth:`ImageSource.factor_values`."""
        return self.world.factor_values(self.world.factors(index))


def array_hash(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and values, the same on machines of either byte order.

    Args:
        array: any shape.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> array_hash(np.zeros(2, "<u2")) == array_hash(np.zeros(2, ">u2")) != array_hash(np.zeros(4, "u1"))
        True
    """
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{little.dtype.str}{array.shape}".encode() + little.tobytes()).hexdigest()


def _numbered_key(starts: dict[str, int], index: int) -> str:
    prefix, start = [(p, s) for p, s in starts.items() if s <= index][-1]
    return f"{prefix}/{index - start:05d}"


def file_fingerprint(path: Path) -> str:
    """Return a file's size and a hash of its two ends, which tells edited and truncated files from the original.

    Args:
        path: the file.

    Returns:
        Short text; independent of the file's name and time.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS))
        if size > 2 * _ENDS:
            file.seek(size - _ENDS)
        digest.update(file.read(_ENDS))
    return f"{size:x}-{digest.hexdigest()[:16]}"
