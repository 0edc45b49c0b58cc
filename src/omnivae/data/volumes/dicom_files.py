"""Files that may be DICOM: of folders at any depth and of zip archives, which are read in place."""

from __future__ import annotations

import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO

from omnivae.data.volumes.recognising import SUFFIXES

#: Is called with how much is done and how much there is.
Progress = Callable[[int, int], None]

#: Largest member of an archive that is read into memory: beyond any CT, far below a bomb.
_MEMBER_LIMIT = 8 << 30
#: Archives that stay open: a folder of a thousand would take all files that a process may have.
_MOST_OPEN = 64
#: Ends of the names of volumes that are not read inside of archives.
_CLOSED = tuple(suffix for suffix in SUFFIXES if suffix not in (".dcm", ".dicom"))


@dataclass(frozen=True)
class Archive:
    """A zip archive, of which as many as a process may have open stay open; threads read it together.

    Args:
        path: of the archive.
    """

    path: Path

    @property
    def file(self) -> zipfile.ZipFile:
        """The open archive."""
        stat = self.path.stat()
        # Processes that were forked share the place in an open file, and would read each other's bytes.
        return _opened(self.path, (stat.st_mtime_ns, stat.st_size), os.getpid())


@lru_cache(maxsize=_MOST_OPEN)
def _opened(path: Path, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Open an archive; one that falls out of the cache is closed when nobody reads from it any more."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class Item:
    """A file that may be DICOM: on disk, or a member of a zip archive, which is read in place and never unpacked.

    Attributes:
        path: of the file, or of the archive.
        member: name in the archive.
        archive: the archive.
        flaw: why it cannot be looked into; "" where it can.
    """

    path: Path
    member: str = ""
    archive: Archive | None = field(default=None, repr=False, compare=False)
    flaw: str = ""

    @property
    def name(self) -> str:
        """Name for messages; of names that are UIDs only the end, since UIDs tell of persons."""
        name = Path(self.member or self.path).name
        return f"…{name[-12:]}" if re.match(r"\d+(\.\d+){4,}", name) else name

    @property
    def folder(self) -> str:
        """The folder that holds it."""
        return str(Path(self.member).parent if self.member else self.path.parent)

    @property
    def place(self) -> Path:
        """The folder that holds it, an archive being one; parts of a member's name that lead elsewhere are left out."""
        inside = [part for part in Path(self.member).parts if part not in ("/", "..")]
        return self.path.joinpath(*inside).parent

    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.archive is None else self.archive.file.getinfo(self.member).file_size

    def open(self) -> IO[bytes]:
        """Open for reading; a member of an archive may be sought in too."""
        return self.path.open("rb") if self.archive is None else self.archive.file.open(self.member)


def list_items(path: str | Path) -> list[Item]:
    """List the files of a folder at any depth and of the zip archives in it, of one such archive, or one file.

    Args:
        path: folder, ``.zip`` or file.

    Returns:
        Files in the order of their names; hidden ones left out. An archive of a folder that cannot be read, or that holds volumes
        which are not read inside of archives, is an item with a flaw; archives inside of archives are not entered.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for an archive that is damaged, locked by a password or holds oversized members.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        found = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        return [item for p in sorted(found) if p.is_file() for item in _looked_into(p)]
    return _members(path) if zipfile.is_zipfile(path) else [Item(path)]


def _looked_into(path: Path) -> list[Item]:
    """Return the members of an archive of a folder, or the file itself."""
    if path.suffix.lower() != ".zip":
        return [Item(path)]
    if not zipfile.is_zipfile(path):
        return [Item(path, flaw="it is a damaged zip archive: fetch it again")]
    try:
        return _members(path)
    except ValueError as error:
        return [Item(path, flaw=str(error).replace(str(path), "it"))]


def _members(path: Path) -> list[Item]:
    try:
        archive = Archive(path)
        members = [m for m in archive.file.infolist() if not m.is_dir() and not _hidden(m.filename)]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is a damaged zip archive ({error}): fetch it again") from error
    if any(m.flag_bits & 1 for m in members):
        raise ValueError(f"{path} is locked by a password: unpack it first")
    large = [m.filename for m in members if m.file_size > _MEMBER_LIMIT]
    if large:
        raise ValueError(f"{path} holds members of more than {_MEMBER_LIMIT >> 30} GB: unpack it first")
    items = [Item(path, m.filename, archive) for m in sorted(members, key=lambda m: m.filename)]
    closed = [item for item in items if item.member.lower().endswith(_CLOSED)]
    if not closed:
        return items
    text = f"{len(closed)} volumes lie in a zip archive (the first is {closed[0].name}), where only DICOM is read: unpack it"
    return [Item(path, flaw=text), *(item for item in items if item not in closed)]


def _hidden(member: str) -> bool:
    """Return whether a member, or a folder of it, is hidden, or is one of the doubles that macOS adds."""
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in member.split("/"))


@contextmanager
def quietly() -> Iterator[None]:
    """Keep pydicom from warning of odd values: it quotes them, so that names, UIDs and paths would reach logs."""
    logger, silence = logging.getLogger("pydicom"), _Silence()
    logger.addFilter(silence)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(silence)


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False
