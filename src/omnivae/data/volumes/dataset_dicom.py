"""DICOM series as volumes of a data set, under names that tell of no patient."""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from pathlib import Path

from omnivae.data.volumes.dataset_source import Entry
from omnivae.data.volumes.dicom_series import SeriesInfo, find_series
from omnivae.volume import Unit, Volume

log = logging.getLogger(__name__)


def dicom_entries(path: Path, *, unit: Unit | None, on_error: str) -> list[Entry]:
    """List the image series below a path; localizers, captures and other objects are set aside.

    Derived series (what this library writes, too) are taken where there are no others and their slices form a volume, of CT in
    Hounsfield units; beside original ones they are left out. Either is said.

    Args:
        path: a folder, a file or a zip archive.
        unit: "HU" takes CT alone.
        on_error: "skip" leaves files out that cannot be read.

    Returns:
        The volumes. A name is the modality and a hash of the series' UID; volumes of one patient are a group.

    Raises:
        ValueError: for files that cannot be read, unless they are to be skipped.
    """
    found = find_series(path)
    unreadable = [series for series in found if series.kind == "unreadable"]
    if unreadable:
        said = "; ".join(str(problem) for series in unreadable for problem in series.problems)
        if on_error != "skip":
            raise ValueError(f"{said} (data.on_error skip leaves such files out)")
        log.warning("%s: left out", said)
    images = [series for series in found if series.kind == "image"]
    derived = [series for series in found if series.kind == "derived"]
    if derived and images:
        log.warning(
            "%d series computed from other images left out, the original ones taken: %s", len(derived), _few(derived)
        )
    elif derived:
        known = [s for s in derived if s.modality != "CT" or s.unit == "HU"]
        images = [s for s in known if s.readable] or known  # where none is, reading says why
        if images:
            log.warning("no original images are there: %d series of derived ones taken: %s", len(images), _few(images))
        odd = [series for series in derived if series not in images]
        if odd:
            log.warning(
                "%d series of derived images form no volume in known units and are left out: %s", len(odd), _few(odd)
            )
    aside = [series for series in found if series.kind not in ("image", "derived", "unreadable")]
    if aside:
        log.info("%d series hold no images of a volume and are set aside: %s", len(aside), _few(aside))
    if unit == "HU":
        other = [series for series in images if series.unit != "HU"]
        if other:
            log.info("%d series are no CT in Hounsfield units and are left out: %s", len(other), _few(other))
        images = [series for series in images if series.unit == "HU"]
    return [series_entry(path, series) for series in images]


def series_entry(path: Path, series: SeriesInfo) -> Entry:
    """Return the entry of a series, under a name that tells of no patient: its modality and a hash of its UID.

    Args:
        path: where it was found.
        series: its headers.
    """
    place = series.uid or "/".join(sorted({item.folder.removeprefix(str(path)) for item in series.files}))
    told_apart = f"{place}\t{series.description}\t{series.size}\t{series.frames[0].about}"
    name = f"{series.modality.lower() or 'dicom'}-{hashlib.sha256(told_apart.encode()).hexdigest()[:12]}"
    return Entry(
        name,
        partial(_read, path, series),
        partial(_fingerprint, series),
        partial(_content_hash, series),
        series.frames[0].patient or None,
    )


def _few(series: list[SeriesInfo]) -> str:
    return "; ".join(map(str, series[:3])) + (f"; and {len(series) - 3} more" if len(series) > 3 else "")


def _read(path: Path, series: SeriesInfo) -> Volume:
    from omnivae.data.volumes.dicom import read_dicom

    return read_dicom(path, series=series)


def _fingerprint(series: SeriesInfo) -> str:
    """Return number and sizes of the files, and a hash of the whole middle one."""
    sizes = sorted(item.size() for item in series.files)
    middle = sorted(series.files, key=lambda item: (item.folder, item.name))[len(series.files) // 2]
    with middle.open() as file:
        digest = hashlib.sha256(file.read())
    digest.update(repr((sizes, series.size)).encode())
    return f"{len(sizes):x}-{digest.hexdigest()[:16]}"


def _content_hash(series: SeriesInfo) -> str:
    """Return the SHA-256 of the hashes of all files, in an order that does not depend on their names."""
    hashes = []
    for item in series.files:
        with item.open() as file:
            hashes.append(hashlib.sha256(file.read()).digest())
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()
