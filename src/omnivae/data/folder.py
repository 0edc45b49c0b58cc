"""Reader of image folders: split folders and class folders are recognised, every file is checked."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omnivae.data.checking import check_images
from omnivae.data.config import OnError, Verify
from omnivae.data.header import ReadOptions
from omnivae.data.images import SUFFIXES
from omnivae.data.naming import SPLIT_WORDS
from omnivae.data.sources import FileSource, Found, Split

logger = logging.getLogger(__name__)


def read_folder(
    path: Path, *, options: ReadOptions | None = None, verify: Verify = "auto", on_error: OnError = "stop"
) -> Found:
    """List the image files of a folder and check each.

    Folders ``train``, ``val`` (or ``valid``, ``validation``, ``dev``) and ``test`` (or ``training``, ``testing``; in capitals
    too) are splits. Below them, or below the folder
    itself, subfolders are classes if there are two or more and every image is in one. Hidden files are left out.

    Args:
        path: a folder, or one image file.
        options: how stored samples are to be understood.
        verify: how far to check, see :func:`omnivae.data.checking.check_images`.
        on_error: whether to stop at files that cannot be read, or to leave them out.

    Returns:
        The images, sorted by path, the splits, and the files left out.

    Raises:
        ValueError: for an empty folder, one without images, or files that cannot be read.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{path} is not an image file (expected {', '.join(SUFFIXES)}): give data.path such a file or a folder"
            )
        root, files = path.parent, [path.name]
    else:
        root, files = path, sorted(walk(path))
    paths = [file for file in files if Path(file).suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(_nothing_found(path, files))

    options = options or ReadOptions()
    members = split_members(root, paths)
    used = sorted(i for part in members.values() for i in part)
    if len(used) < len(paths):
        unused = next(paths[i] for i in sorted(set(range(len(paths))) - set(used)))
        logger.warning(
            "%s has split folders; %d images outside of them are not used, e.g. %s",
            root,
            len(paths) - len(used),
            unused,
        )
    paths = [paths[i] for i in used]
    checked = check_images(lambda i: root / paths[i], paths, options=options, verify=verify, on_error=on_error)
    # What is left out was as large a part of the whole when class and split folders were told: nothing else moves.
    labels, classes = _classes(paths, depth=1 if len(members) > 1 or _only_train(paths) else 0)
    new_index = {used[old]: new for new, old in enumerate(checked.kept.tolist())}
    splits: dict[Split, np.ndarray] = {
        name: np.array([new_index[i] for i in part if i in new_index], dtype=np.int64) for name, part in members.items()
    }
    empty = [name for name, part in splits.items() if not len(part)]
    if empty:
        raise ValueError(f"no file in the {empty[0]} folder of {root} is usable: {checked.skipped[0][1]}")
    source = FileSource(
        root,
        [paths[i] for i in checked.kept],
        checked.headers,
        name=path.resolve().name,
        options=options,
        labels=None if labels is None else labels[checked.kept],
        classes=classes,
    )
    return Found(source, splits, checked.skipped)


def walk(root: Path) -> Iterator[str]:
    """Yield all visible files, relative to ``root``, with forward slashes; links are followed, but not in circles.

    Raises:
        ValueError: for a folder that cannot be listed, or a name that is no text.
    """

    def stop(error: OSError) -> None:
        raise ValueError(
            f"{error.filename} cannot be listed ({error.strerror}): make it readable or remove it"
        ) from error

    above: dict[str, frozenset[str]] = {}
    for folder, subfolders, files in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        parents = above.get(os.path.dirname(folder), frozenset())
        if real in parents:
            # A link to a folder that it lies in.
            subfolders.clear()
            continue
        above[folder] = parents | {real}
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith("."):
                yield _as_text(relative / name, root)


def _as_text(path: Path, root: Path) -> str:
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        # Such a name could be opened, but neither be written into a card or a store, nor be printed.
        shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise ValueError(f"{root} holds a file whose name is no valid UTF-8 ({shown}): rename it") from error
    return name


def _nothing_found(path: Path, files: list[str]) -> str:
    from omnivae.data.video import SUFFIXES as VIDEOS
    from omnivae.data.volumes.recognising import SUFFIXES as VOLUMES

    looked_for = f"looked for {', '.join(SUFFIXES)} in it and its subfolders"
    others = f"volumes ({', '.join(VOLUMES)}, DICOM without a suffix, .zarr) or videos ({', '.join(VIDEOS)})"
    if not files:
        return f"the folder {path} is empty: {looked_for}; put images there, {others}, or correct data.path"
    kinds = Counter(Path(file).suffix.lower() or "no suffix" for file in files).most_common(5)
    found = ", ".join(f"{count} {suffix}" for suffix, count in kinds)
    return (
        f"no image in {path}: {looked_for}; found {len(files)} other files ({found}): give data.path images, {others}"
    )


def _only_train(paths: list[str]) -> bool:
    return all(SPLIT_WORDS.get(path.partition("/")[0].lower()) == "train" for path in paths)


def split_members(root: Path, paths: list[str]) -> dict[Split, list[int]]:
    """Return which files are in which split folder; all are "train" where there are none.

    Args:
        root: of the paths.
        paths: relative, with forward slashes.

    Returns:
        Split to numbers of paths.

    Raises:
        ValueError: for two folders of one split, or none for training.
    """
    members: dict[Split, list[int]] = {}
    folders: dict[Split, str] = {}
    for i, path in enumerate(paths):
        first, _, rest = path.partition("/")
        split = SPLIT_WORDS.get(first.lower())
        if not rest or split is None:
            continue
        if folders.setdefault(split, first) != first:
            what = {"train": "training", "val": "validation", "test": "test"}[split]
            raise ValueError(f"{root} has both {folders[split]}/ and {first}/ as {what} split: rename or remove one")
        members.setdefault(split, []).append(i)
    # A folder "train" among others may be a class of vehicles; it is a split beside another split, or when alone.
    if "train" in members and (len(members) > 1 or len(members["train"]) == len(paths)):
        return members
    if "train" not in members and sum(map(len, members.values())) == len(paths):
        raise ValueError(
            f"{root} has {' and '.join(folders.values())} but no train folder: add it, or give data.path one of these"
        )
    return {"train": list(range(len(paths)))}


def _classes(paths: list[str], depth: int) -> tuple[np.ndarray | None, list[str] | None]:
    parts = [path.split("/") for path in paths]
    if not all(len(part) > depth + 1 for part in parts):
        return None, None
    classes = sorted({part[depth] for part in parts})
    if len(classes) < 2:
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[part[depth]] for part in parts], dtype=np.int64), classes
