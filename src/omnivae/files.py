"""Files that appear whole or not at all, and one clear sentence where they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the file size limit",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that can be written to",
    errno.EPERM: "choose a place that can be written to",
}


class CannotWrite(OSError):
    """A file could not be written; what was there before is untouched.

    Args:
        path: the file.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        there = "; the one written before is untouched" if _exists(path) else ""
        remedy = _REMEDIES.get(error.errno or 0, "mend that")
        reason = error.strerror or str(error)
        super().__init__(f"cannot write {path}: {reason}{there}: {remedy}, then repeat the command")
        self.errno = error.errno


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to disk and rename it: a reader sees the old file or the new one.

    Args:
        path: where; missing folders are made.
        content: what.

    Raises:
        CannotWrite: when the disk is full, the place cannot be written to, ...; the old file is untouched.
    """
    replace_atomic(path, lambda beside: beside.write_bytes(content))


def replace_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let a function write a file beside its place, flush it to disk and rename it.

    Args:
        path: where the file goes; missing folders are made.
        write: writes to the path that it is given.

    Raises:
        CannotWrite: as :func:`write_atomic`.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file has the permissions that this process gives its files; some libraries make theirs private.
        beside.touch()
        mode = beside.stat().st_mode
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.chmod(mode)
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what killed processes left half written in a folder.

    Args:
        directory: the folder; may be missing.
    """
    for path in directory.glob(".*.tmp"):
        owner = re.search(r"\.(\d+)\.tmp$", path.name)
        if owner and not _alive(int(owner[1])):
            path.unlink(missing_ok=True)


def system_error(error: Exception) -> OSError:
    """Return the system's error that a library has wrapped into its own, told by its text.

    Args:
        error: an error whose text holds ``os error NUMBER``, as those of libraries written in Rust do.

    Returns:
        The error to raise instead.
    """
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error))


def _alive(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    # The new name is on disk only when its folder is.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
