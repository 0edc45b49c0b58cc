"""What commands on many volumes share: which volumes, under which names, how they are read and written, and what is done."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omnivae.data.volumes.listing import VolumeEntry
from omnivae.files import remove_leftovers, write_atomic
from omnivae.jobs.volumes import UNITLESS, OnGaps, bare_name, choose_entries, find_entries, read_entry
from omnivae.volume import Unit, Volume

log = logging.getLogger(__name__)

Format = Literal["auto", "nifti", "dicom", "ome-zarr"]
#: End of the name of a volume in each format.
ENDS = {"nifti": ".nii.gz", "dicom": "", "ome-zarr": ".ome.zarr"}
#: Ends of the names of label maps, which are no images to reconstruct.
_MASKS = ("_seg", "_mask", "_masks", "_label", "_labels", "_segmentation")


class Record:
    """What a command has written so far, in a file of its output directory, so that the same command goes on.

    Args:
        file: the record; made where missing.
        settings: that the results are made with; other ones are refused.
        done: what was done to volumes, for errors, such as "reconstructed".
        renew: whether a volume that has changed since is done again; otherwise it is refused.

    Raises:
        ValueError: when the directory holds results of other settings, or the record is damaged.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], done: str, *, renew: bool = False) -> None:
        self.file, self._done, self._renew = file, done, renew
        root = file.parent
        self.content: dict[str, Any] = {"format": 1, "settings": json.loads(json.dumps(settings)), "volumes": {}}
        if self.file.is_file():
            try:
                known = json.loads(self.file.read_text())
                before, volumes = known["settings"], known["volumes"]
                for volume in volumes.values():
                    if not (root / volume["result"]["output"]).resolve().is_relative_to(root.resolve()):
                        raise ValueError("a result lies outside of its folder")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.file} is damaged ({error}): remove it, or give another --output") from error
            other = sorted(name for name, value in self.content["settings"].items() if before.get(name) != value)
            if other:
                raise ValueError(
                    f"{root} holds volumes {done} with another {' and '.join(other)}: give another --output, or remove it"
                )
            self.content["volumes"] = volumes
        remove_leftovers(root)

    def done(self, name: str, mark: str) -> dict[str, Any] | None:
        """Return the result of a volume that was finished and still lies there.

        Args:
            name: of the volume.
            mark: text that changes with it.

        Raises:
            ValueError: when it has changed since, unless such volumes are done again.
        """
        known = self.content["volumes"].get(name)
        if known is None:
            return None
        place = self.file.parent / known["result"]["output"]
        if known["state"] == "writing":
            if place.is_dir():
                shutil.rmtree(place)  # begun by this record, never finished
            return None
        if known["source"] != mark and self._renew:
            if place.is_dir():
                shutil.rmtree(place)
            return None
        if known["source"] != mark:
            raise ValueError(
                f"{name} has changed since it was {self._done}: give another --output, or remove {self.file.parent}"
            )
        if not place.exists():
            return None
        return {key: tuple(v) if isinstance(v, list) else v for key, v in known["result"].items()}

    def begin(self, name: str, mark: str, result: Mapping[str, Any]) -> None:
        """Note that a result is being written.

        Args:
            name: of the volume.
            mark: text that changes with it.
            result: ready for JSON; ``output`` is the file or folder, relative to the record's.

        Raises:
            FileExistsError: when something else lies there.
        """
        place = self.file.parent / result["output"]
        if place.exists() and name not in self.content["volumes"]:
            raise FileExistsError(
                f"{place} is there already and not of this command: give another --output, or remove it"
            )
        self._set(name, mark, result, "writing")

    def finish(self, name: str, mark: str, result: Mapping[str, Any]) -> None:
        """Note that a result is whole.

        Args:
            name: of the volume.
            mark: text that changes with it.
            result: as before.
        """
        self._set(name, mark, result, "done")

    def _set(self, name: str, mark: str, result: Mapping[str, Any], state: str) -> None:
        self.content["volumes"][name] = {"state": state, "source": mark, "result": dict(result)}
        write_atomic(self.file, (json.dumps(self.content, indent=2, allow_nan=False) + "\n").encode())


def volumes_at(paths: Sequence[str | Path], series: str | None = None, *, output: Path) -> list[VolumeEntry]:
    """List the volumes at some paths, without the label maps that lie beside them.

    Args:
        paths: files, folders, archives of DICOM.
        series: number of one DICOM series, as ``omnivae inspect`` lists them.
        output: directory of the results, which may lie among the volumes and are none of them.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for a place without volumes.
    """
    found: list[VolumeEntry] = []
    for path in paths:
        entries, aside = find_entries(path)
        entries = [e for e in entries if not e.path.resolve().is_relative_to(output.resolve())]
        chosen = choose_entries(entries, aside, series)
        if len(chosen) > 1:
            names = {bare_name(e) for e in chosen}
            masks = [
                e for e in chosen if any(bare_name(e).lower().endswith(m) for m in _MASKS) and _image_of(e) in names
            ]
            if masks:
                log.info("left out as label maps: %s", ", ".join(e.name for e in masks))
                chosen = [e for e in chosen if e not in masks]
        if not chosen:
            raise ValueError(_no_series(path, aside, output))
        found += chosen
    if series is not None and len(paths) > 1:
        raise ValueError("got --series and several paths; a number counts in one path: give one of them")
    return found


def _no_series(path: str | Path, aside: Sequence[Any], output: Path) -> str:
    """Say why a path has no volume to work on; only series with images can be taken anyway."""
    series = "; ".join(str(s) for s in aside if s.frames)
    broken = "; ".join(problem.text for s in aside if s.kind == "unreadable" for problem in s.problems)
    if series:
        unread = f" (unreadable: {broken})" if broken else ""
        return f"{path} holds no image series, only {series}{unread}: choose one with --series NUMBER to take it anyway"
    if broken:
        return f"{path} holds no volume that can be read: {broken}: mend what is broken, or give the path of a volume"
    return f"{path} holds no volume but those in the output directory {output}: give the path of a volume"


def _image_of(entry: VolumeEntry) -> str:
    name = bare_name(entry)
    return next(name[: -len(mask)] for mask in sorted(_MASKS, key=len, reverse=True) if name.lower().endswith(mask))


def names_of(entries: Sequence[VolumeEntry], root: Path) -> list[str]:
    """Return names for results: those of the volumes without the suffix of their format.

    Args:
        entries: the volumes.
        root: the directory of the results.

    Raises:
        ValueError: for equal names, and a directory that lies where volumes are looked for.
    """
    names = [bare_name(entry) for entry in entries]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"several volumes are named {twice[0]}; their reconstructions would overwrite each other: reconstruct them one by one"
        )
    for entry in entries:
        if entry.path.is_dir() and root.resolve().is_relative_to(entry.path.resolve()):
            raise ValueError(
                f"the output directory {root} lies in {entry.path}, where volumes are looked for: give another --output"
            )
    return names


def read_for(model_unit: Unit, entry: VolumeEntry, *, unit: Unit | None, time: int | None, on_gaps: OnGaps) -> Volume:
    """Read a volume for a model.

    Args:
        model_unit: of the values that the model takes.
        entry: the volume.
        unit: of the values of formats that state none; what the model takes by default, where that is HU.
        time: which of several time points.
        on_gaps: what to do about missing slices of a DICOM series.

    Raises:
        ValueError: for damaged files, geometry that is none, and values that cannot be of the unit.
    """
    if unit is None and model_unit == "HU" and entry.format in UNITLESS:
        # The model says that its values are HU, and reading checks that these can be.
        unit = "HU"
    return read_entry(entry, unit=unit, time=time, on_gaps=on_gaps)


def format_for(volume: Volume, format: Format) -> str:
    """Return the format of a result: NIfTI of patients and OME-Zarr of everything else, unless one is asked for.

    Args:
        volume: the result.
        format: "auto" or the one that is asked for.
    """
    if format == "auto":
        return "nifti" if volume.space == "patient" else "ome-zarr"
    return format


def write_result(
    volume: Volume, path: Path, kind: str, entry: VolumeEntry | None = None, *, keep_identifiers: bool = False
) -> None:
    """Write a result.

    Args:
        volume: the result.
        path: of the file or folder.
        kind: "nifti", "ome-zarr" or "dicom".
        entry: the volume that it was made of, for DICOM.
        keep_identifiers: whether DICOM keeps patient, study and frame of reference.
    """
    if kind == "dicom":
        from omnivae.data.volumes.dicom_write import write_dicom

        write_dicom(
            volume,
            path,
            like=None if entry is None else entry.series,
            keep_identifiers=keep_identifiers,
            description="omnivae reconstruction",
        )
        return
    from omnivae.data.volumes import write_volume

    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume, path)


def fingerprint(entry: VolumeEntry) -> str:
    """Return a digest of the sizes and times of the files of a volume.

    Args:
        entry: the volume.
    """
    if entry.series is not None:
        files = sorted({item.path for item in entry.series.files})
    elif entry.path.is_dir():
        files = [p for p in sorted(entry.path.rglob("*")) if p.is_file()]
    else:
        files = [entry.path]
    facts = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([facts, entry.position, None if entry.series is None else entry.series.number])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
