"""The ``data`` section of a configuration: what to read and how to turn it into tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from omnivae.component import suggestion
from omnivae.data.volume_config import VolumeConfig

Format = Literal[
    "auto",
    "folder",
    "table",
    "huggingface",
    "webdataset",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "digits",
    "photos",
    "dsprites",
    "shapes3d",
    "moving_sprites",
    "text",
    "volumes",
    "video",
]
OnError = Literal["stop", "skip"]
Verify = Literal["auto", "full", "headers"]
Binarize = Literal["none", "threshold", "stochastic"]

#: Volumes that are made when they are read: CT with tissues in HU, MR-like scans, and a plate of microscopy.
VOLUMES = ("ct_phantoms", "mr_phantoms", "plate_phantoms")
EMBEDDED = ("digits", "photos", "dsprites", "shapes3d", "moving_sprites", *VOLUMES)
VALUE_RANGES = ((0.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class DataConfig:
    """Which images to read, how to split them and how to turn them into tensors.

    Args:
        path: a folder, an image file, a table (CSV, TSV, Parquet) that lists or holds images, a folder or pattern of tar
            shards (``shards/train-{000..010}.tar``), a folder that Hugging Face's ``save_to_disk`` wrote, a data set of their
            hub (``hf://user/name``), a volume or a folder of them (NIfTI, NRRD, MetaImage, DICOM series, OME-Zarr), or a name:
            digits, photos, the worlds dsprites, shapes3d and moving_sprites (also said as ``--world``) and the volumes
            ct_phantoms, mr_phantoms and plate_phantoms are embedded; mnist, fashion-mnist, cifar10 need ``download`` once. A
            bare name is the data set, ``./digits`` the folder.
        format: how to read ``path``; "auto" recognises MNIST's idx files, CIFAR-10's files, what ``save_to_disk`` wrote, and
            tar shards, tables and volumes with no image files beside them, and reads any other folder as image files.
        image_size: side in pixels of the square that is used: the shorter side is resized to it (antialiased bicubic)
            and the centre is cropped. None keeps the images as they are, which must then agree in size.
        channels: 1 (grey) or 3 (RGB) to convert every photograph to, dropping any alpha channel; another number is what
            every image must have. None keeps what is stored, alpha included; the images must then agree.
        value_range: (0, 1) or (-1, 1), what black and white become. None leaves the choice to the model.
        binarize: "threshold" sets pixels to black or white at the middle; "stochastic" draws them with the grey value
            as probability, anew in each epoch of training and always the same in validation and test.
        val_fraction: share of the images for validation, where the data has no validation split of its own.
        test_fraction: share of the images for testing, where the data has no test split of its own.
        split_seed: another number gives another split.
        limit: use at most so many images of each split, for quick tries.
        num_workers: processes that load images; 0 loads in the main process.
        flip: mirror training images left to right with probability 1/2.
        random_crop: cut a random square of side ``image_size`` from training images instead of resizing them (an image
            whose shorter side is smaller is enlarged first).
        resolutions: sides to train on instead of one ``image_size``; each batch has one of them, all equally often, in an
            order drawn by the seed. Validation and test use ``image_size``, or the first where that is not given.
        input_range: stored values that become black and white. By default 0 to the largest value of the stored type for
            integers (255, 65535), and 0 to 1 for floats. A value beyond it is an error, unless ``clip`` is set.
        clip: cut values beyond ``input_range`` off at its ends.
        channel_axis: where arrays (npy) hold their channels; "auto" tells by the shape and refuses what it cannot tell.
        pages_as_channels: take the pages of a TIFF file for the channels of one image.
        image_column: column of a table or data set that holds paths, bytes or images; found by its name and type by
            default. For tar shards: the suffix of the image members.
        label_column: column with class numbers or names; "label" where there is one, by default. For tar shards: the
            suffix of the label members.
        cond: what a conditional model is told about each image: "label" (its class), a column of the table or several
            (``[smiling, age]``; text is a class, 0 and 1 stay, other numbers are standardised, lists and ``.npy`` files are
            vectors), or "factors" (of a generated world). None for models without a condition.
        labels_per_class: keep the label of so many training images of each class, and hide all others, to train on a few
            labels (semi-supervised); which ones follows ``split_seed``.
        labelled_share: share of each training batch that has its label, where only some have: the labelled images come more
            often.
        on_error: "stop": a file that cannot be read stops the run before it starts, with its name; "skip": it is left
            out, counted and listed.
        verify: "full" decodes every file before the run starts; "headers" reads their headers and ends only; "auto" is
            full for up to 10,000 files.
        cache: keep decoded and resized images in memory from the first epoch on, shared by the loading processes;
            "auto" does so where decoding is random-free and all images fit into a quarter of the free memory.
        download: fetch ``mnist``, ``fashion-mnist`` or ``cifar10`` from their publishers (checksums are checked; the files
            stay in ``OMNIVAE_CACHE``, by default omnivae's folder in the user's cache), or a data set of the Hugging Face hub,
            where they are not there yet; nothing is downloaded unasked.
        tokens: of text (a ``.txt`` file with one sentence a line, or a folder of them): "word" or "character".
        lowercase: read text in lower case.
        max_length: tokens of the longest sentence, its end included; by default that of the longest there is, up to 256 words
            or 1,024 characters. A longer one stops the run, or is left out and listed with ``on_error`` skip.
        min_count: times that a word or character must occur in the training sentences; rarer ones become ``<unk>``.
        max_vocabulary: words or characters at most, the most frequent ones.
        text_column: column of a CSV or TSV table that holds sentences; makes the table a corpus.
        num_frames: frames of a clip of a video file (mp4, mov, avi, mkv, webm; GIF with ``data.format`` video); by default whole
            videos, which must then agree in length.
        frame_stride: a clip has every so many frames of its file.
        clips: "windows" cuts a file into clips side by side, the last one moved back to end with the file; "one" takes the
            middle of each file. Clips of one file are in one split.
        volume: how volumes are oriented, windowed and cut into patches.

    Raises:
        ValueError: for a value out of its range.

    Example:
        >>> DataConfig(path="photos", image_size=32).format
        'auto'
    """

    path: str = "digits"
    format: Format = "auto"
    image_size: int | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    binarize: Binarize = "none"
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    limit: int | None = None
    num_workers: int = 0
    flip: bool = False
    random_crop: bool = False
    resolutions: tuple[int, ...] = ()
    input_range: tuple[float, float] | None = None
    clip: bool = False
    channel_axis: Literal["auto", "first", "last"] = "auto"
    pages_as_channels: bool = False
    image_column: str | None = None
    label_column: str | None = None
    cond: str | tuple[str, ...] | None = None
    labels_per_class: int | None = None
    labelled_share: float = 0.5
    on_error: OnError = "stop"
    verify: Verify = "auto"
    cache: bool | Literal["auto"] = "auto"
    download: bool = False
    tokens: Literal["word", "character"] = "word"
    lowercase: bool = False
    max_length: int | None = None
    min_count: int = 2
    max_vocabulary: int = 20_000
    text_column: str | None = None
    num_frames: int | None = None
    frame_stride: int = 1
    clips: Literal["windows", "one"] = "windows"
    volume: VolumeConfig = field(default_factory=VolumeConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        if isinstance(self.volume, Mapping):
            object.__setattr__(self, "volume", VolumeConfig(**self.volume))
        _choice("format", self.format, get_args(Format))
        _choice("binarize", self.binarize, get_args(Binarize))
        _choice("on_error", self.on_error, get_args(OnError))
        _choice("verify", self.verify, get_args(Verify))
        _choice("channel_axis", self.channel_axis, ("auto", "first", "last"))
        if self.cache not in (True, False, "auto"):
            raise ValueError(f"got data.cache={self.cache!r}; expected true, false or auto")
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        for side in self.resolutions:
            _at_least("resolutions", side, 1)
        if self.cond is not None and not isinstance(self.cond, str):
            object.__setattr__(self, "cond", tuple(self.cond))
        if len(set(self.conditions)) < len(self.conditions) or not all(self.conditions):
            raise ValueError(f"got data.cond={self.cond}; expected different names, such as label or [smiling, age]")
        _choice("clips", self.clips, ("windows", "one"))
        _at_least("num_frames", self.num_frames, 1)
        _at_least("frame_stride", self.frame_stride, 1)
        _at_least("labels_per_class", self.labels_per_class, 1)
        if not 0 < self.labelled_share <= 1:
            raise ValueError(f"got data.labelled_share={self.labelled_share}; expected a share above 0, at most 1")
        _at_least("image_size", self.image_size, 1)
        _at_least("limit", self.limit, 1)
        _at_least("num_workers", self.num_workers, 0)
        _at_least("split_seed", self.split_seed, 0)
        _at_least("channels", self.channels, 1)
        _choice("tokens", self.tokens, ("word", "character"))
        for name, least in (("max_length", 2), ("min_count", 1), ("max_vocabulary", 1)):
            _at_least(name, getattr(self, name), least)
        if self.input_range is not None:
            low, high = (float(v) for v in self.input_range)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"got data.input_range={self.input_range}; expected two numbers, the lower first")
            object.__setattr__(self, "input_range", (low, high))
        if self.value_range is not None:
            object.__setattr__(self, "value_range", check_value_range(self.value_range, "data.value_range"))
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"got data.{name}={value}; expected a number between 0 and 1, both exclusive")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave nothing to "
                "train on: their sum must be below 1"
            )
        if self.format in EMBEDDED and self.path != self.format:
            raise ValueError(
                f"got data.format={self.format!r} with data.path={self.path!r}; this data set is embedded: set "
                f"data.path to {self.format} and leave data.format out"
            )
        if self.random_crop and self.image_size is None and not self.resolutions and self.path != "photos":
            raise ValueError("data.random_crop needs the side of the crop: set data.image_size")

    @property
    def conditions(self) -> tuple[str, ...]:
        """What ``cond`` names; empty without a condition."""
        return () if self.cond is None else (self.cond,) if isinstance(self.cond, str) else self.cond


def check_value_range(
    value_range: tuple[float, float], name: str = "value_range", *, volumes: bool = False
) -> tuple[float, float]:
    """Return ``value_range`` as a tuple of floats if images, or volumes, can have it.

    Args:
        value_range: lowest and highest value of a pixel.
        name: what to call it in an error.
        volumes: whether it is of volumes, whose models may see z-scores or other numbers.

    Returns:
        ``(0.0, 1.0)`` or ``(-1.0, 1.0)``; of volumes any two numbers, the lower first.

    Raises:
        ValueError: for any other.
    """
    values = tuple(float(v) for v in value_range)
    if volumes and (len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]):
        raise ValueError(f"got {name}={value_range}; expected two numbers, the lower first")
    if not volumes and values not in VALUE_RANGES:
        raise ValueError(f"got {name}={value_range}; expected (0, 1) or (-1, 1)")
    return values  # type: ignore[return-value]


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"unknown data.{name} {value!r}{suggestion(value, known)}; expected one of {', '.join(map(str, known))}"
        )


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ValueError(f"got data.{name}={value}; expected {low} or more")
