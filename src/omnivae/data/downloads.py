"""Published data sets by name: fetched on request into a cache folder, resumed when cut off, checked against checksums."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT_S = 30
_TRIES = 3  # for each mirror; every further one continues where the last was cut off


@dataclass(frozen=True)
class Resource:
    """One file of a published data set.

    Attributes:
        name: of the file.
        md5: checksum that its publisher states.
        members: files to take out of it, with their sizes in bytes, where it is a tar archive.
    """

    name: str
    md5: str
    members: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Published:
    """A data set that its authors publish.

    Attributes:
        mirrors: addresses of the folder that holds the files, tried in this order.
        resources: the files.
    """

    mirrors: tuple[str, ...]
    resources: tuple[Resource, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that lie in the cache in the end."""
        return tuple(name for r in self.resources for name in ([m for m, _ in r.members] if r.members else [r.name]))


_CIFAR10_BATCH = 10_000 * (1 + 3 * 32 * 32)
_CIFAR10_BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")

#: Name of a data set -> where it is. The checksums are the publishers', as torchvision records them too.
PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        (
            Resource("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Resource("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            Resource("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            Resource("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    "fashion-mnist": Published(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            Resource("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Resource("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            Resource("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            Resource("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    "cifar10": Published(
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            Resource(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                tuple((name, _CIFAR10_BATCH) for name in _CIFAR10_BATCHES),
            ),
        ),
    ),
}


def cache_folder() -> Path:
    """Return the folder for downloads: ``OMNIVAE_CACHE``, or ``omnivae`` in the platform's folder for caches."""
    given = os.environ.get("OMNIVAE_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "omnivae" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "omnivae"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnivae"


def published_folder(name: str, *, download: bool) -> Path:
    """Return the cached files of a published data set, fetching what is missing if that was asked for.

    Args:
        name: one of :data:`PUBLISHED`.
        download: whether missing files may be fetched.

    Returns:
        The folder that holds them.

    Raises:
        FileNotFoundError: when files are missing and ``download`` is false.
        OSError: when they cannot be fetched, or what was fetched does not have the published checksum.
    """
    published, folder = PUBLISHED[name], cache_folder() / "data" / name
    if _missing(folder, published):
        if not download:
            here = f", ./{name} for the folder of that name here" if Path(name).is_dir() else ""
            raise FileNotFoundError(
                f"{name} is not in {folder}: fetch it from its publisher with data.download true, or give data.path the "
                f"folder that holds its files{here} (with data.format {name})"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder):
            for resource in _missing(folder, published):
                _fetch_resource(resource, published.mirrors, folder)
    return folder


def _missing(folder: Path, published: Published) -> list[Resource]:
    """Return the resources that are not complete; a file gets its name only once it is checked."""

    def complete(resource: Resource) -> bool:
        if not resource.members:
            return (folder / resource.name).is_file()
        files = [(folder / name, size) for name, size in resource.members]
        return all(path.is_file() and path.stat().st_size == size for path, size in files)

    return [resource for resource in published.resources if not complete(resource)]


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold other processes (of a distributed run) back until the files are there."""
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield


def _fetch_resource(resource: Resource, mirrors: tuple[str, ...], folder: Path) -> None:
    target = folder / resource.name
    # An archive may have been put there by hand.
    if not (resource.members and target.is_file() and _md5(target) == resource.md5):
        fetch([mirror + resource.name for mirror in mirrors], target, md5=resource.md5)
    if resource.members:
        _extract(target, dict(resource.members), folder)
        target.unlink()


def fetch(urls: list[str], target: Path, *, md5: str) -> None:
    """Fetch a file, continue it where it was cut off, check it, and only then give it its name.

    Args:
        urls: where it is, tried in this order.
        target: where it goes; what has arrived so far lies beside it, with ``.part`` behind its name.
        md5: its checksum, hexadecimal.

    Raises:
        OSError: when none of the addresses gives a file with that checksum, naming what was wrong with each.
    """
    part = target.with_name(target.name + ".part")
    problems = []
    for url in urls:
        for attempt in range(_TRIES):
            resumed = part.is_file()
            try:
                _continue(url, part)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{url}: {getattr(error, 'reason', None) or error}"
                refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
                if refused or attempt == _TRIES - 1 or _is_offline(error):
                    problems.append(problem)
                    break
                logger.info("%s; trying again", problem)
                continue
            found = _md5(part)
            if found == md5:
                _sync(part)
                os.replace(part, target)
                return
            part.unlink()
            if resumed and attempt < _TRIES - 1:
                continue  # the beginning may stem from another version of the file
            problems.append(f"{url}: what arrived has the MD5 checksum {found}, the publisher states {md5}")
            break
    raise OSError(
        f"{target.name} could not be fetched ({'; '.join(problems)}): try again later, which continues where it was cut off, "
        f"or put the file into {target.parent} by hand"
    )


def _continue(url: str, part: Path) -> None:
    """Fetch the rest of a file that may have begun to arrive."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "omnivae"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send; the checksum decides whether that is right
            return
        raise
    with response:
        if have and response.status != 206:
            have = 0  # this server cannot continue
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with open(part, "r+b" if have else "wb") as file, _bar(part.name.removesuffix(".part"), have, total) as advance:
            file.seek(have)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise OSError(f"cut off after {part.stat().st_size} of {total} bytes")


def _is_offline(error: BaseException) -> bool:
    import socket

    return isinstance(getattr(error, "reason", None), socket.gaierror)


@contextmanager
def _bar(name: str, done: int, total: int | None) -> Iterator[Any]:
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Fetching {name}", total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def _extract(archive: Path, members: dict[str, int], folder: Path) -> None:
    """Take the expected files, and nothing else, out of a tar archive; their own names decide where they go."""
    found = set()
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if name not in members or not member.isreg():
                    continue
                if member.size != members[name]:
                    raise ValueError(f"{archive}: {name} has {member.size} bytes; expected {members[name]}")
                content = tar.extractfile(member)
                assert content is not None  # a regular file
                part = folder / f"{name}.part"
                with open(part, "wb") as file:
                    while chunk := content.read(_CHUNK):
                        file.write(chunk)
                _sync(part)
                os.replace(part, folder / name)
                found.add(name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged ({error}): remove it and fetch it again") from error
    if len(found) < len(members):
        raise ValueError(f"{archive} lacks {', '.join(sorted(set(members) - found))}: remove it and fetch it again")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
