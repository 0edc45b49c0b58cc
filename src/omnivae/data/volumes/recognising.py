"""Whether a path holds volumes, told by names and first bytes alone."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

#: Ends of the names of files that are volumes.
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".dicom")
#: Files of a folder that are looked at before it is taken for something else.
_LOOKED_AT = 1000


def is_volumes(path: Path) -> bool:
    """Return whether a path is a volume or a folder that holds some: NIfTI, NRRD, MetaImage, DICOM, OME-Zarr; or lists pairs.

    Args:
        path: a file or folder.
    """
    if path.is_file():
        return path.name.lower().endswith(SUFFIXES) or is_dicom(path) or is_pairs(path) or _is_archive(path)
    if path.name.lower().endswith(".zarr") or _is_zarr(path):
        return True
    looked = 0
    for folder, subfolders, files in os.walk(path, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if any(name.lower().endswith(".zarr") for name in subfolders) or _is_zarr(Path(folder)):
            return True
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                return True
            if _is_numbered(name) and is_dicom(Path(folder) / name):
                return True
            if _is_archive(Path(folder) / name):
                return True
            looked += 1
            if looked >= _LOOKED_AT:
                return False
    return False


def is_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's mark behind its preamble.

    Args:
        path: a file.
    """
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_pairs(path: Path) -> bool:
    """Return whether a file is a table that lists pairs of volumes: CSV or TSV with the columns baseline and followup.

    Args:
        path: a file.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(10_000)
    except OSError:
        return False
    return {"baseline", "followup"} <= {column_name(cell) for cell in re.split(r"[,;\t]", first)}


def column_name(cell: str) -> str:
    """Return the name of a column without what people write in different ways.

    Args:
        cell: of a table's first line.

    Example:
        >>> column_name(' "Follow-up series"')
        'followupseries'
    """
    return re.sub(r"[^a-z0-9]", "", cell.lower())


def _is_numbered(name: str) -> bool:
    """Return whether a file is called as those of a series often are: by a number, without a suffix."""
    return Path(name).suffix.lower() in ("", ".ima") or name.replace(".", "").isdigit()


def _is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive with volumes in it."""
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if any(m.filename.lower().endswith(SUFFIXES) for m in members):
                return True
            numbered = [m for m in members if _is_numbered(Path(m.filename).name) and not m.flag_bits & 1]
            return any(archive.open(m).read(132)[128:] == b"DICM" for m in numbered[:_LOOKED_AT])
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (".zgroup", ".zattrs", "zarr.json"))
