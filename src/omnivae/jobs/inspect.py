"""``omnivae inspect``: what a data set holds, what would stop a run on it, and a configuration to train with."""

from __future__ import annotations

import json
import logging
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnivae.data import DataConfig
from omnivae.data.checking import FULL_UP_TO, UnusableImages
from omnivae.data.config import EMBEDDED
from omnivae.data.formats import find, recognise
from omnivae.data.header import ReadOptions
from omnivae.data.images import SUFFIXES
from omnivae.data.loading import split_images
from omnivae.data.pixels import black_and_white
from omnivae.data.sources import Found, ImageSource, Split
from omnivae.data.survey import MOST_HASHED, Measured, count_other_files, find_duplicates, measure
from omnivae.data.video import GIF, VideoSource
from omnivae.data.video import SUFFIXES as VIDEO_SUFFIXES
from omnivae.files import write_atomic
from omnivae.jobs.advice import Need, advise, plural
from omnivae.jobs.choose import choose_for
from omnivae.jobs.videos_inspect import describe_videos, equal_videos, first_frames, settle_clips

_NAMED, _DRAWN = 10, 28


@dataclass(frozen=True)
class Inspection:
    """What a data set holds, and what a run on it would need.

    Attributes:
        path: as given.
        kind: how it is read, see ``data.format``.
        name: of the data set.
        counts: usable images in each split.
        carved: splits that the data does not define itself, and that a run would cut from its training images.
        videos: files, frames (fewest, median, most), frames a second, and frames and stride of a clip; what is counted in
            splits then are clips, and sizes and channels those of the files. None for images.
        classes: images of each class in each split; None without classes.
        sizes: smallest, median and largest height and width, and the number of different sizes.
        channels: number of images with each channel count.
        dtypes: number of images with each type of stored samples.
        bit_depth: bits of a stored sample, the largest among the images.
        checked: "full" where every image was decoded, "headers" where headers and ends of files were read.
        measured: images whose values were measured.
        all_measured: whether these are all.
        values: range, mean and standard deviation of each channel, for each type and channel count.
        constant_channels: channels that have one value in all images measured.
        constant_images: images of one value.
        duplicates: groups of images with equal files: name and split of each; None where they were not looked for.
        leaks: how many of these groups reach across splits.
        unreadable: name and reason of images that cannot be used.
        other_files: files that are no images, by suffix.
        other_media: volumes and videos, by suffix.
        hidden_files: how many hidden files there are.
        needs: settings that the data calls for.
        problems: what would stop a run as it was asked for, each with its remedy.
        remarks: what else deserves attention.
        configuration: sections of a proposed configuration; None where no setting makes the data usable.
        command: the command to run.
    """

    path: str
    kind: str
    name: str
    counts: dict[str, int] = field(default_factory=dict)
    carved: list[str] = field(default_factory=list)
    videos: dict[str, Any] | None = None
    classes: dict[str, dict[str, int]] | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    bit_depth: int = 0
    checked: str = "full"
    measured: int = 0
    all_measured: bool = True
    values: list[dict[str, Any]] = field(default_factory=list)
    constant_channels: list[str] = field(default_factory=list)
    constant_images: list[str] = field(default_factory=list)
    duplicates: list[list[tuple[str, str]]] | None = None
    leaks: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    other_files: dict[str, int] = field(default_factory=dict)
    other_media: dict[str, int] = field(default_factory=dict)
    hidden_files: int = 0
    needs: list[Need] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    configuration: dict[str, Any] | None = None
    command: str = ""

    @property
    def noun(self) -> str:
        """What a file of the data is: an image or a video."""
        return "video" if self.kind == "video" else "image"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    def to_yaml(self) -> str:
        """Return the proposed configuration as YAML.

        Raises:
            ValueError: when there is none.
        """
        import yaml

        if self.configuration is None:
            raise ValueError(f"no configuration makes {self.path} usable: {'; '.join(self.problems)}")
        return yaml.safe_dump(self.configuration, sort_keys=False, allow_unicode=True, default_flow_style=None)


def inspect_data(config: DataConfig, *, seed: int = 0, picture: str | Path | None = None) -> Inspection:
    """Look at a data set before anything is trained: what is there, what is wrong, what a run would need.

    Args:
        config: what to look at; settings count as given for a run.
        seed: of the choice of images that are measured or drawn, where not all are.
        picture: file for a contact sheet of a seeded choice of images.

    Returns:
        The findings. Data that cannot be used is no error: it is a finding.

    Raises:
        FileNotFoundError: when there is no such data.

    Example:
        >>> inspect_data(DataConfig("digits")).counts
        {'train': 1437, 'val': 180, 'test': 180}
    """
    kind = recognise(config)
    path = Path(config.path).expanduser()
    inspection = Inspection(config.path, kind, path.resolve().name if path.exists() else config.path)
    if path.is_dir() and kind not in EMBEDDED:
        read = {"folder": SUFFIXES, "video": (*VIDEO_SUFFIXES, GIF)}.get(kind, ())
        other, media, hidden = count_other_files(path, read)
        inspection = replace(inspection, other_files=other if read else {}, other_media=media, hidden_files=hidden)
    with _warnings() as said:
        try:
            settled, form = settle_clips(config) if kind == "video" else (config, [])
            found, unreadable = _find_usable(settled)
        except ValueError as error:
            skipped = _shorten(error.skipped, path) if isinstance(error, UnusableImages) else []
            return replace(inspection, unreadable=skipped, problems=[str(error)], remarks=_remarks(said))
        splits = split_images(found, config)
        videos = isinstance(found.source, VideoSource)
        shown = first_frames(found.source) if isinstance(found.source, VideoSource) else found.source
        measured = measure(shown, seed=seed)
        duplicates = None
        if isinstance(found.source, VideoSource):
            measured = replace(measured, complete=False)
            duplicates = equal_videos(found.source, splits)
        elif kind not in ("photos", "dsprites") and len(found.source) <= MOST_HASHED:
            duplicates = find_duplicates(found.source, splits)
        needs = form + advise(shown, measured, settled)
    few = not videos and len(found.source) + len(unreadable) <= FULL_UP_TO
    inspection = _describe(inspection, found, splits, measured, duplicates)
    inspection = replace(
        inspection,
        unreadable=_shorten(unreadable + measured.unreadable, path),
        needs=needs,
        checked="full" if config.verify == "full" or (config.verify == "auto" and few) else "headers",
    )
    if picture is not None:
        _draw(shown, needs, config, picture=Path(picture), seed=seed)
    return _propose(inspection, config, said)


def _find_usable(config: DataConfig) -> tuple[Found, list[tuple[str, str]]]:
    """Read what can be read; a range of values that is not stated is no reason to leave an image out here."""
    lenient = replace(config, on_error="skip")
    try:
        found = find(lenient)
        skipped = found.skipped
    except UnusableImages as error:
        found, skipped = None, error.skipped
        if config.input_range is not None or not _ask_for_range(skipped):
            raise
    if found is None or (config.input_range is None and _ask_for_range(skipped)):
        found = find(replace(lenient, input_range=(0.0, 1.0), clip=True))
    return found, found.skipped


def _ask_for_range(skipped: list[tuple[str, str]]) -> bool:
    return any("data.input_range" in reason for _, reason in skipped)


def _describe(
    inspection: Inspection,
    found: Found,
    splits: dict[Split, np.ndarray],
    measured: Measured,
    duplicates: list[list[tuple[str, Split]]] | None,
) -> Inspection:
    source = found.source
    counts: dict[str, int] = {split: len(part) for split, part in splits.items()}
    classes: dict[str, dict[str, int]] | None = None
    if source.classes is not None and source.labels is not None and source.labels.ndim == 1:
        per_split = {
            split: np.bincount(source.labels[part], minlength=len(source.classes)) for split, part in splits.items()
        }
        classes = {
            name: {split: int(number[i]) for split, number in per_split.items()}
            for i, name in enumerate(source.classes)
        }
    sizes = source.sizes
    values, constant = [], []
    for group in measured.groups:
        values.append({
            "dtype": group.dtype, "channels": len(group.low), "images": group.num_images,
            "low": group.low.tolist(), "high": group.high.tolist(),
            "mean": group.mean.tolist(), "std": group.std.tolist(), "whole_numbers": group.whole,
        })  # fmt: skip
        constant += [
            f"channel {c + 1} of the images with {len(group.low)} ({group.dtype}): always {group.low[c]:g}"
            for c in np.flatnonzero(group.low == group.high)
        ]
    described = replace(
        inspection,
        name=source.name,
        counts=counts,
        carved=[split for split in counts if split not in found.splits],
        classes=classes,
        sizes={
            "smallest": sizes.min(axis=0).tolist(),
            "median": np.median(sizes, axis=0).astype(int).tolist(),
            "largest": sizes.max(axis=0).tolist(),
            "distinct": len(np.unique(sizes, axis=0)),
        },
        channels=_count(source.channels, source),
        dtypes=_count(source.dtypes, source),
        bit_depth=source.bit_depth,
        measured=measured.num_images,
        all_measured=measured.complete,
        values=values,
        constant_channels=constant,
        constant_images=measured.constant,
        duplicates=None if duplicates is None else [[(name, str(split)) for name, split in g] for g in duplicates],
        leaks=sum(len({split for _, split in group}) > 1 for group in duplicates or []),
    )
    return replace(described, **describe_videos(source))


def _count(values: np.ndarray, source: ImageSource) -> dict[Any, int]:
    return {values[0].item(): len(source)} if len(values) == 1 else dict(Counter(values.tolist()).most_common())


def _propose(inspection: Inspection, config: DataConfig, said: list[str]) -> Inspection:
    """Add what would stop the run, and a configuration and a command with which it would not."""
    problems = []
    changes: dict[str, Any] = {need.option: need.value for need in inspection.needs if need.value is not None}
    if inspection.unreadable and config.on_error == "stop":
        names = ", ".join(name for name, _ in inspection.unreadable[:3])
        more = f" and {len(inspection.unreadable) - 3} more" if len(inspection.unreadable) > 3 else ""
        problems.append(
            f"{plural(len(inspection.unreadable), inspection.noun)} cannot be used ({names}{more}): repair or remove "
            "them, or leave them out with data.on_error skip"
        )
        changes["on_error"] = "skip"
    for need in inspection.needs:
        if need.required:
            remedy = f": set data.{need.option} to {_text(need.value)}" if need.value is not None else ""
            problems.append(f"{need.reason}{remedy}")
    proposed = replace(config, **changes)
    chosen: dict[str, Any] | None = None
    hopeless = any(need.required and need.value is None for need in inspection.needs)
    with _warnings() as more_said:
        try:
            chosen = None if hopeless else choose_for(proposed)
        except ValueError as error:
            problems.append(str(error))
    configuration = None
    if chosen is not None:
        data = _given(proposed) | chosen.pop("data", {})
        configuration = {
            "model": chosen["model"],
            "data": data,
            "losses": chosen["losses"],
            "training": chosen["training"],
        }
    options = " ".join(
        f"--data.{name} {_text(value)}" for name, value in (_given(config) | changes).items() if name != "path"
    )
    run = f"runs/{Path(inspection.name).name or 'mine'}"
    command = f"omnivae train --data.path {shlex.quote(config.path)} {options + ' ' if options else ''}--output {shlex.quote(run)}"
    return replace(
        inspection,
        problems=problems,
        remarks=[*_own_remarks(inspection), *_remarks(dict.fromkeys([*said, *more_said]))],
        configuration=configuration,
        command=command if configuration is not None else "",
    )


def _own_remarks(inspection: Inspection) -> list[str]:
    remarks = []
    if inspection.leaks:
        group = next(g for g in inspection.duplicates or [] if len({split for _, split in g}) > 1)
        equal = " = ".join(f"{name} ({split})" for name, split in group[:3])
        remarks.append(
            f"{plural(inspection.leaks, inspection.noun)} in more than one split, e.g. {equal}: what is measured on "
            "them is flattered; remove all but one of each"
        )
    if inspection.constant_channels:
        remarks.append(f"constant: {'; '.join(inspection.constant_channels[:_NAMED])}: nothing can be learnt from them")
    if inspection.other_media:
        found = ", ".join(f"{count} {suffix}" for suffix, count in inspection.other_media.items())
        what = "pictures" if inspection.kind != "video" else "videos"
        remarks.append(
            f"not {what}: {found}; data.format volumes reads NIfTI, NRRD, DICOM, OME-Zarr, data.format video videos"
        )
    return remarks


def _given(config: DataConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as plain data."""
    plain = DataConfig(config.path)
    changed = {
        f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name)
    }
    values = {"path": config.path} | changed
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return shlex.quote(f"[{', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in value)}]")
    return str(value).lower() if isinstance(value, bool) else shlex.quote(str(value))


def _shorten(skipped: list[tuple[str, str]], root: Path) -> list[tuple[str, str]]:
    """Return names and reasons without repeating the name, or the folder, in each reason."""
    short = []
    for name, reason in skipped:
        for prefix in (str(root / name), str(root.resolve() / name), name):
            reason = reason.removeprefix(prefix).lstrip(": ")
        short.append((name, " ".join(reason.split())))
    return short


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what reading the data warns of, instead of showing it at once."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("omnivae.data"), Collector(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _remarks(said: Iterator[str] | list[str] | Mapping[str, Any]) -> list[str]:
    # What is left out has a list of its own.
    return [message for message in said if "left out" not in message]


def _draw(source: ImageSource, needs: list[Need], config: DataConfig, *, picture: Path, seed: int) -> None:
    """Write a contact sheet of a seeded choice of images, as a run would see their values."""
    from omnivae.report import contact_sheet, to_pixels

    if picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"got --picture {picture}; expected the name of a picture, such as sheet.png")
    given = next((need.value for need in needs if need.option == "input_range"), None) or config.input_range
    options = ReadOptions(input_range=given, clip=True)
    numbers = np.sort(np.random.default_rng(seed).permutation(len(source))[:_DRAWN])
    tiles = []
    for number in numbers.tolist():
        array = source.read(number)
        array = array[len(array) // 2] if array.ndim == 4 else array
        low, high = black_and_white(array.dtype, source.key(number), options)
        x = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None]
        tiles.append((source.key(number), to_pixels(x, (low, high), alpha=source.has_alpha(number))[0]))
    picture.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(
        tiles,
        title=f"{source.name}: {len(numbers)} of {len(source):,} {'clips' if source.sizes.shape[1] > 2 else 'images'}",
    ).save(picture)
