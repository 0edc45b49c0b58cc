"""Video files as clips: frames by number, upright, in their stored depth; a file's clips stay in one split.

PyAV (FFmpeg) decodes; ``pip install omnivae[video]``. Frames are found by their time stamps, read off the container without
decoding anything, so a clip in the middle of a file costs a seek and the frames since the last key frame.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omnivae.data.folder import split_members, walk
from omnivae.data.pixels import convert_channels, resize_and_crop
from omnivae.data.sources import Found, ImageSource, Split, file_fingerprint

if TYPE_CHECKING:
    from omnivae.data.config import DataConfig

logger = logging.getLogger(__name__)

#: Suffixes of files that are videos whatever lies beside them; a GIF is one where ``data.format`` is video.
SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
GIF = ".gif"


@dataclass(frozen=True)
class VideoFile:
    """What a video file says about itself.

    Attributes:
        path: the file.
        times: time stamps of its frames in the stream's unit, ascending, ``[T]``.
        height: of an upright frame.
        width: of an upright frame.
        channels: 1 (grey) or 3.
        dtype: "uint8", or "uint16" for more than 8 bits a sample.
        rate: frames a second; ``None`` where the file does not say.
    """

    path: Path
    times: np.ndarray
    height: int
    width: int
    channels: int
    dtype: str
    rate: Fraction | None = None


@dataclass(frozen=True)
class VideoListing:
    """The video files of a folder, each looked at.

    Attributes:
        root: of the names.
        names: all video files, relative to it, sorted.
        files: those that can be used.
        kept: their numbers among the names.
        skipped: name and reason of the others.
    """

    root: Path
    names: list[str]
    files: list[VideoFile]
    kept: list[int]
    skipped: list[tuple[str, str]]


class VideoSource(ImageSource):
    """Clips of video files.

    Args:
        root: folder of the files.
        files: the files.
        clips: number of the file and of the first frame of each clip, ``[N, 2]``.
        num_frames: frames of a clip.
        frame_stride: a clip has every so many frames of the file.
        image_size: side of the square that frames are resized to; ``None`` leaves them, and all must agree.
        channels: 1 or 3 to convert frames to; ``None`` leaves them, and all must agree.
        name: name of the data set.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[VideoFile],
        clips: np.ndarray,
        *,
        num_frames: int,
        frame_stride: int,
        image_size: int | None,
        channels: int | None,
        name: str,
    ) -> None:
        self.root, self.files, self.clips, self.name = root, list(files), clips, name
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.image_size = image_size
        first = files[0]
        height, width = (first.height, first.width) if image_size is None else (image_size, image_size)
        self._channels = channels or first.channels
        self.sizes = np.array([(num_frames, height, width)])
        self.channels = np.array([self._channels])
        self.dtypes = np.array([first.dtype])
        self.bit_depth = 16 if first.dtype == "uint16" else 8

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def file_of_clip(self) -> np.ndarray:
        """Number of the file of each clip, ``[N]``."""
        return self.clips[:, 0]

    def key(self, index: int) -> str:
        """Return the file's name and the first frame, such as ``walk.mp4#16``."""
        file, start = self.clips[index]
        return f"{self.files[file].path.relative_to(self.root).as_posix()}#{start}"

    def read(self, index: int) -> np.ndarray:
        """Return a clip ``[T, H, W, C]``."""
        number, start = (int(n) for n in self.clips[index])
        file = self.files[number]
        if not file.path.is_file():
            raise FileNotFoundError(f"{file.path} was there when the data was listed and is gone: run again")
        frames = read_frames(file, range(start, start + self.num_frames * self.frame_stride, self.frame_stride))
        if self.image_size is not None:
            frames = np.stack([resize_and_crop(frame, self.image_size) for frame in frames])
        if frames.shape[-1] != self._channels:
            frames = np.stack([convert_channels(frame, self._channels) for frame in frames])
        return frames

    def content_hash(self, index: int) -> str:
        """Return the SHA-256 of the file and the place of the clip in it."""
        number, start = self.clips[index]
        with self.files[number].path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(f"{start}+{self.num_frames}x{self.frame_stride}".encode())
        return digest.hexdigest()

    def fingerprint(self, index: int) -> str:
        """Return the file's fingerprint and the first frame."""
        number, start = self.clips[index]
        return f"{file_fingerprint(self.files[number].path)}@{start}"


def is_videos(path: Path) -> bool:
    """Return whether a path is a video file, or a folder that holds some.

    Args:
        path: a file or folder.
    """
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return any(Path(name).suffix.lower() in SUFFIXES for name in walk(path))


def list_videos(path: Path, config: DataConfig) -> VideoListing:
    """List the video files of a folder and look at each, whether they agree or not.

    Args:
        path: a folder, or one file.
        config: ``num_frames``, ``frame_stride``, ``verify`` and ``on_error``.

    Returns:
        The files, one or more of them usable.

    Raises:
        ValueError: for no videos, or files that cannot be read or are too short.
        ImportError: without PyAV.
    """
    suffixes = (*SUFFIXES, GIF)
    root, names = (path.parent, [path.name]) if path.is_file() else (path, sorted(walk(path)))
    names = [name for name in names if Path(name).suffix.lower() in suffixes]
    if not names:
        raise ValueError(
            f"no video in {path}: looked for {', '.join(suffixes)} in it and its subfolders; correct data.path"
        )
    files: list[VideoFile] = []
    skipped: list[tuple[str, str]] = []
    kept: list[int] = []
    needed = 1 if config.num_frames is None else (config.num_frames - 1) * config.frame_stride + 1
    for i, name in enumerate(names):
        try:
            file = _header_once(root / name)
            if len(file.times) < needed:
                raise ValueError(
                    f"{name} has {len(file.times)} frames and a clip takes {needed}: set data.num_frames or data.frame_stride to "
                    "less, or data.on_error to skip"
                )
            if config.verify == "full":
                for start in range(0, len(file.times), 64):
                    read_frames(file, range(start, min(start + 64, len(file.times))))
        except ValueError as error:
            if config.on_error != "skip":
                raise
            skipped.append((name, str(error)))
            continue
        kept.append(i)
        files.append(file)
    if not files:
        raise ValueError(f"no video in {path} is usable: {skipped[0][1]}")
    return VideoListing(root, names, files, kept, skipped)


def read_videos(path: Path, config: DataConfig) -> Found:
    """List the video files of a folder and cut them into clips.

    Args:
        path: a folder, or one file.
        config: ``num_frames``, ``frame_stride``, ``clips``, ``image_size``, ``channels``, ``verify`` and ``on_error``.

    Returns:
        The clips; folders train, val and test are splits.

    Raises:
        ValueError: for no videos, files that cannot be read or are too short, or that differ without a setting that unites
            them.
        ImportError: without PyAV.
    """
    listing = list_videos(path, config)
    root, names, files, skipped = listing.root, listing.names, listing.files, listing.skipped
    _check_agreement(files, root, config)
    num_frames = config.num_frames or len(files[0].times[:: config.frame_stride])
    clips = clip_starts([len(f.times) for f in files], num_frames, config.frame_stride, one=config.clips == "one")
    source = VideoSource(
        root,
        files,
        clips,
        num_frames=num_frames,
        frame_stride=config.frame_stride,
        image_size=config.image_size,
        channels=config.channels,
        name=path.resolve().stem if path.is_file() else path.resolve().name,
    )
    number = {old: new for new, old in enumerate(listing.kept)}
    splits: dict[Split, np.ndarray] = {}
    for split, members in split_members(root, names).items():
        mine = [number[i] for i in members if i in number]
        splits[split] = np.flatnonzero(np.isin(source.file_of_clip, mine))
        if not len(splits[split]):
            raise ValueError(f"no file in the {split} folder of {root} is usable: {skipped[0][1]}")
    return Found(source, splits, skipped)


def clip_starts(lengths: Sequence[int], num_frames: int, frame_stride: int, *, one: bool) -> np.ndarray:
    """Return where clips start: side by side from the first frame on, the last one moved back to end with the file.

    Args:
        lengths: frames of each file, at least those of a clip.
        num_frames: frames of a clip.
        frame_stride: a clip has every so many frames.
        one: one clip from the middle of each file instead.

    Returns:
        Number of the file and of the first frame, ``[N, 2]``.

    Example:
        >>> clip_starts([10], 4, 1, one=False).tolist(), clip_starts([10], 4, 2, one=True).tolist()
        ([[0, 0], [0, 4], [0, 6]], [[0, 1]])
    """
    span = (num_frames - 1) * frame_stride + 1
    found: list[tuple[int, int]] = []
    for file, length in enumerate(lengths):
        last = length - span
        starts = [last // 2] if one else sorted({*range(0, last + 1, num_frames * frame_stride), last})
        found += [(file, start) for start in starts]
    return np.array(found, dtype=np.int64)


def read_video_header(path: Path) -> VideoFile:
    """Return what a video file says about itself; its first frame is decoded, of the others the time stamps are read.

    Args:
        path: the file.

    Returns:
        The description.

    Raises:
        ValueError: for a file that is no video, or is damaged.
        ImportError: without PyAV.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream: remove it, or set data.on_error to skip")
            stream = container.streams.video[0]
            times = [packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.size]
            bits = max((component.bits for component in stream.format.components), default=8)
            grey = len(stream.format.components) == 1 and not stream.format.has_palette
            rate = Fraction(stream.average_rate) if stream.average_rate else None
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0), None)
            if frame is None:
                raise ValueError(f"{path} has no frames: remove it, or set data.on_error to skip")
            dtype = "uint16" if bits > 8 else "uint8"
            height, width = _array(frame, 1 if grey else 3, dtype).shape[:2]
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error.strerror}): repair or remove it") from error
    return VideoFile(path, np.sort(np.array(times, dtype=np.int64)), height, width, 1 if grey else 3, dtype, rate)


def _header_once(path: Path) -> VideoFile:
    """Return :func:`read_video_header`, read once for as long as the file stays as it is: it demuxes the whole of it."""
    try:
        known = path.stat()
    except OSError:
        return read_video_header(path)  # which says what is wrong
    return _header_of(path, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=4096)
def _header_of(path: Path, size: int, changed: int) -> VideoFile:
    return read_video_header(path)


def video_rate(path: Path) -> Fraction:
    """Return the frames a second of a video file; 10 where it does not say.

    Args:
        path: a file that :func:`read_video_header` reads.
    """
    with _av().open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    return Fraction(10) if not rate else Fraction(rate)


def read_frames(file: VideoFile, numbers: Sequence[int]) -> np.ndarray:
    """Return frames of a video by their numbers.

    Args:
        file: the video.
        numbers: ascending, each below ``len(file.times)``.

    Returns:
        ``[N, H, W, C]``, upright.

    Raises:
        ValueError: when a frame cannot be decoded, or has another size than the first.
    """
    av = _av()
    wanted = [int(file.times[n]) for n in numbers]
    place = {time: i for i, time in enumerate(wanted)}
    found: dict[int, np.ndarray] = {}
    try:
        with av.open(str(file.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"  # loading processes are the parallelism
            # A GIF cannot be entered in the middle.
            if numbers[0] > 0 and file.path.suffix.lower() != GIF:
                container.seek(wanted[0], stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts in place:
                    found[place[frame.pts]] = _array(frame, file.channels, file.dtype)
                    if len(found) == len(wanted):
                        break
    except av.error.FFmpegError as error:
        raise ValueError(f"{file.path} is damaged ({error.strerror}): repair or remove it") from error
    missing = [numbers[i] for i in range(len(wanted)) if i not in found]
    if missing:
        raise ValueError(f"frame {missing[0]} of {file.path} cannot be decoded: repair or remove the file")
    shapes = {frame.shape for frame in found.values()}
    if shapes != {(file.height, file.width, file.channels)}:
        raise ValueError(f"the frames of {file.path} change their size: {sorted(shapes)}; split or re-encode the file")
    return np.stack([found[i] for i in range(len(wanted))])


def _array(frame: Any, channels: int, dtype: str) -> np.ndarray:
    kind = {(1, "uint8"): "gray", (3, "uint8"): "rgb24", (1, "uint16"): "gray16le", (3, "uint16"): "rgb48le"}
    array = frame.to_ndarray(format=kind[channels, dtype])
    array = array[..., None] if array.ndim == 2 else array
    # Telephones store how they were held.
    return np.ascontiguousarray(np.rot90(array, frame.rotation // 90))


def _check_agreement(files: Sequence[VideoFile], root: Path, config: DataConfig) -> None:
    def values(*names: str) -> dict[tuple[Any, ...], Path]:
        return _firsts((tuple(getattr(f, name) for name in names), f.path) for f in files)

    asked: list[tuple[str, dict[tuple[Any, ...], Path], str]] = []
    if config.image_size is None:
        asked.append(("sizes (height, width)", values("height", "width"), "data.image_size"))
    if config.channels is None:
        asked.append(("numbers of channels", values("channels"), "data.channels"))
    if config.num_frames is None:
        lengths = _firsts(((len(f.times),), f.path) for f in files)
        asked.append(("numbers of frames", lengths, "data.num_frames"))
    for what, found, setting in asked:
        if len(found) > 1:
            (first, one), (second, other), *_ = found.items()
            raise ValueError(
                f"the videos of {root} have different {what}: {', '.join(map(str, first))} in {one.name} and "
                f"{', '.join(map(str, second))} in {other.name}: set {setting}"
            )
    depths = values("dtype")
    if len(depths) > 1:
        raise ValueError(f"the videos of {root} have 8 and more bits a sample: re-encode one kind, or train on one")


def _firsts(pairs: Iterable[tuple[tuple[Any, ...], Path]]) -> dict[tuple[Any, ...], Path]:
    found: dict[tuple[Any, ...], Path] = {}
    for value, path in pairs:
        found.setdefault(value, path)
    return found


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs PyAV: pip install omnivae[video]") from error
    return av
