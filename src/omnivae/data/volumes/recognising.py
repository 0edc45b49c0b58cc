"""Whether a path holds volumes, told by names and first bytes alone."""

from __future__ import annotations

import os
from pathlib import Path

#: Ends of the names of files that are volumes.
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".dicom")
#: Files of a folder that are looked at before it is taken for something else.
_LOOKED_AT = 1000


def is_volumes(path: Path) -> bool:
    """Return whether a path is a volume or a folder that holds some: NIfTI, NRRD, MetaImage, DICOM, OME-Zarr.

    Args:
        path: a file or folder.
    """
    if path.is_file():
        return path.name.lower().endswith(SUFFIXES) or is_dicom(path)
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


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (".zgroup", ".zattrs", "zarr.json"))
