"""Whether a path holds volumes, told by names and first bytes alone."""

from __future__ import annotations

import os
import re
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
        return path.name.lower().endswith(SUFFIXES) or is_dicom(path) or is_pairs(path)
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
            # The files of a series often have numbers for names, and no suffix.
            numbered = Path(name).suffix.lower() in ("", ".ima") or name.replace(".", "").isdigit()
            if numbered and is_dicom(Path(folder) / name):
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


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (".zgroup", ".zattrs", "zarr.json"))
