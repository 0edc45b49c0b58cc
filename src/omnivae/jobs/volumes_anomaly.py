"""``omnivae anomaly`` on volumes: maps of how badly a model rebuilds each voxel, and what they say about each volume."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from omnivae.component import suggestion
from omnivae.data import load_data
from omnivae.data.config import DataConfig
from omnivae.data.volumes.dataset_loading import FILES, MASKS, find_volumes
from omnivae.data.volumes.dataset_source import Entry, with_channels
from omnivae.files import remove_leftovers, write_atomic
from omnivae.jobs.anomaly import SUMMARY, TABLE, AnomalyReport, overlaps
from omnivae.jobs.evaluate import load
from omnivae.jobs.progress import progress_bar
from omnivae.jobs.run_data import data_for, run_data
from omnivae.jobs.volumes_codec import Mode, Rebuilt, VolumeCodec
from omnivae.metrics.anomaly import calibrate_threshold, detection, voxel_detection
from omnivae.models import VAE
from omnivae.models.storage import find_model, model_hash
from omnivae.training.device import Precision
from omnivae.volume import Volume

log = logging.getLogger(__name__)

VolumeScore = Literal["mean", "peak", "max"]
#: Percentile of a map that is its peak.
PEAK = 99.9
MAPS, FIGURES, RECORD = "maps", "figures", "progress.json"


@dataclass(frozen=True)
class VolumeAnomalyReport(AnomalyReport):
    """Scores of volumes, and how well their maps find lesions.

    Attributes:
        unit: of the maps and scores: "HU", or "of the window".
        voxels: of each volume with a mask of its lesions: "lesion_voxels", the map's mean "inside" and "outside", and, where there
            is a lesion, "auroc" and "average_precision" of the voxels.
        maps: file of each volume's map, relative to the output directory.
    """

    unit: str = "HU"
    voxels: dict[str, dict[str, float | None]] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)

    def to_csv(self) -> str:
        """Return the table of scores with what the masks say of each volume, and its map."""
        rows = list(csv.reader(io.StringIO(super().to_csv())))
        columns = list(dict.fromkeys(key for found in self.voxels.values() for key in found))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [*rows[0], *(f"voxels_{name}".replace("voxels_lesion_voxels", "lesion_voxels") for name in columns), "map"]
        )
        for name, row in zip(self.names, rows[1:], strict=True):
            cells = (self.voxels.get(name, {}).get(column) for column in columns)
            writer.writerow([*row, *("" if v is None else repr(v) for v in cells), self.maps.get(name, "")])
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        facts = super().to_dict()
        facts["volumes"] = facts.pop("images")
        for name, scores in facts["scores"].items():
            scores |= {"voxels": self.voxels[name]} if name in self.voxels else {}
            scores |= {"map": self.maps[name]} if name in self.maps else {}
        return {"unit": self.unit, **facts}

    def lines(self) -> list[str]:
        """Return a line for each score, one for each volume with a lesion, and the notes."""
        first, notes = super().lines()[: len(self.thresholds)], self.notes
        lines = [line.replace("normal images", "normal volumes") for line in first]
        for name, found in self.voxels.items():
            if found.get("auroc") is not None:
                lines.append(
                    f"{name}: {found['inside']:.4g} {self.unit} inside {found['lesion_voxels']:,} lesion voxels, "
                    f"{found['outside']:.4g} outside; voxels: AUROC {found['auroc']:.3f}, "
                    f"average precision {found['average_precision']:.3f}"
                )
        return [*lines, *notes]


def find_volume_anomalies(
    model: str | Path | VAE,
    path: str,
    output: str | Path | None = None,
    *,
    normal: str | None = None,
    masks: str | Path | None = None,
    smooth: float = 0.0,
    scores: Sequence[str] | None = None,
    rate: float = 0.05,
    limit: int | None = None,
    memory: str | None = None,
    mode: Mode = "exact",
    intensity: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: Precision = "32",
    loaded: VAE | None = None,
    progress: bool = True,
) -> VolumeAnomalyReport:
    """Map how badly a model rebuilds each voxel of volumes, and flag volumes above a threshold calibrated on normal ones.

    The map is ``|reconstruction - original|`` where the model sees the volume (values beyond its window count as the window's
    ends), in HU for a model in HU and as shares of the model's window otherwise, brought to the volume's own grid and smoothed
    there. Scores of a volume are the map's "mean", its "peak", the 99.9th percentile, and its "max", which one small lesion can
    raise and, without smoothing, a single voxel of noise. The threshold is that of
    :func:`omnivae.metrics.anomaly.calibrate_threshold`.

    What is done already in the output directory is not done again.

    Args:
        model: a model directory, a run, or a model.
        path: volumes to score: files, folders, DICOM series, or the name of an embedded data set.
        output: directory for ``scores.csv``, ``anomaly.json``, a map of each volume in ``maps/`` (NIfTI float32 in the volume's own
            geometry; OME-Zarr of microscopy) and a picture of it in ``figures/``; nothing is written where it is ``None``.
        normal: volumes without anomalies that the model was not trained on; the run's own test volumes by default.
        masks: label map of the one volume, or a folder of label maps under the volumes' names (``_seg`` and the like may follow):
            0 is normal, everything else a lesion.
        smooth: standard deviation of a Gaussian over the maps, in mm (micrometres of microscopy); 0 for none.
        scores: some of "mean", "peak" and "max"; all by default.
        rate: share of normal volumes to be flagged.
        limit: at most so many volumes of each of the two sets.
        memory: budget of encoding and decoding tile by tile, such as "4GB".
        mode: of the tiles.
        intensity: the contract of a model that has none of its own.
        seed: of the intervals.
        precision: of the networks.
        loaded: the model of that directory, where it is loaded already.
        progress: show progress on a terminal.

    Returns:
        The report.

    Raises:
        ValueError: for unknown scores, too few normal volumes for the rate, masks on another grid, and volumes that do not fit the
            model.
    """
    chosen = _chosen(scores)
    if smooth < 0 or not np.isfinite(smooth) or (limit is not None and limit < 1):
        raise ValueError(f"got smooth={smooth}, limit={limit}; expected a length of 0 or more, and at least 1 volume")
    root = None if output is None else Path(output)
    if root is not None and root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file; give --output a directory")
    if loaded is None:
        loaded = model if isinstance(model, VAE) else load(model, precision)
    codec = VolumeCodec(loaded, intensity=intensity, memory=memory, mode=mode)
    own = None if isinstance(model, VAE) else run_data(find_model(model))
    calibration = _volumes(loaded, normal, own, codec, limit)
    volumes = _volumes(loaded, path, own, codec, limit)
    calibrate_threshold(np.arange(float(len(calibration))), rate)  # too few are refused before anything is computed
    notes = [] if isinstance(model, VAE) else overlaps(find_model(model).parent, calibration, volumes, "volumes")
    truth = {} if masks is None else _masks(Path(masks), volumes)
    settings = {
        "model": None if isinstance(model, VAE) else model_hash(find_model(model)),
        "intensity": codec.contract,
        "smooth": smooth,
        "mode": mode if memory is not None else "whole",
        "masks": masks is not None,
    }
    record = _Record(root, settings)
    names = volumes.names
    unit = "HU" if codec.unit == "HU" else "of the window"
    tables: list[dict[str, dict[str, float]]] = []
    voxels: dict[str, dict[str, float | None]] = {}
    maps: dict[str, str] = {}
    worst = 0.0
    with progress_bar("mapping", len(calibration) + len(volumes), progress, "volumes") as advance:
        for part, some in (("normal", calibration), ("scored", volumes)):
            table = {}
            for entry, name in zip(some.entries, some.names, strict=True):
                key = f"{part}/{name}"
                # What files hold is known by their names: a map, its picture and the scores belong together.
                mark = [entry.fingerprint(), str(truth.get(name, ""))]
                known = record.get(key, mark)
                if known is None:
                    volume = _read(entry, some.config)
                    rebuilt, errors = codec.with_errors(volume)
                    errors = smoothed(errors, smooth)
                    known = {"scores": map_scores(errors), "mark": mark}
                    if part == "scored":
                        lesions = None if name not in truth else _mask(truth[name], volume)
                        known["voxels"] = None if lesions is None else against_mask(errors, lesions)
                        known["map"] = None if root is None else _written(errors, root, name)
                        if root is not None:
                            _draw(rebuilt, errors, lesions, worst, unit, root / FIGURES / f"{_flat(name)}.png")
                    record.set(key, known)
                table[name] = known["scores"]
                if part == "scored":
                    voxels |= {name: known["voxels"]} if known["voxels"] is not None else {}
                    maps |= {name: known["map"]} if known["map"] is not None else {}
                advance(1)
            tables.append(table)
            worst = max([worst, *(found["peak"] for found in table.values())])
    values = {score: np.array([tables[1][name][score] for name in names]) for score in chosen}
    limits = {score: calibrate_threshold(np.array([of[score] for of in tables[0].values()]), rate) for score in chosen}
    anomalous = None
    if masks is not None:
        anomalous = np.array([bool(voxels.get(name, {}).get("lesion_voxels")) for name in names])
        without = [name for name in names if name not in voxels]
        if without:
            notes.append(
                f"{len(without)} of {len(names)} volumes have no mask, such as {without[0]}: no AUROC of volumes, because whether "
                "these are normal is not known"
            )
            anomalous = None
    measured = {}
    if anomalous is not None and anomalous.any() and not anomalous.all():
        measured = {score: detection(values[score], anomalous, seed=seed) for score in chosen}
    report = VolumeAnomalyReport(
        names=names,
        scores=values,
        thresholds=limits,
        flagged={score: ~(values[score] <= limits[score].value) for score in chosen},
        detection=measured,
        anomalous=anomalous,
        notes=notes,
        unit=unit,
        voxels=voxels,
        maps=maps,
    )
    for note in notes:
        log.warning("%s", note)
    if root is not None:
        write_atomic(root / TABLE, report.to_csv().encode())
        write_atomic(root / SUMMARY, (json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n").encode())
    return report


def smoothed(errors: Volume, sigma: float) -> Volume:
    """Return a map smoothed by a Gaussian.

    Args:
        errors: the map.
        sigma: standard deviation in the volume's unit of length; 0 for none.

    Returns:
        The map, of the same mean but for its edges, which are continued outwards.
    """
    if not sigma:
        return errors
    from scipy.ndimage import gaussian_filter

    widths = (0.0, *(sigma / step for step in errors.spacing))
    return errors.with_array(gaussian_filter(errors.array, widths, mode="nearest"))


def map_scores(errors: Volume) -> dict[str, float]:
    """Return the mean of a map, its peak (the 99.9th percentile) and its highest value.

    Args:
        errors: the map.
    """
    return {
        "mean": float(errors.array.mean(dtype=np.float64)),
        "peak": float(np.percentile(errors.array, PEAK)),
        "max": float(errors.array.max()),
    }


def against_mask(errors: Volume, lesions: np.ndarray) -> dict[str, float | None]:
    """Return how a map tells lesions from the rest.

    Args:
        errors: the map.
        lesions: where they are, bool ``[I, J, K]``.

    Returns:
        "lesion_voxels", the map's mean "inside" and "outside", "auroc" and "average_precision" of the voxels; ``None`` where one
        of the two is empty.
    """
    values = errors.array[0]
    inside = int(np.count_nonzero(lesions))
    found: dict[str, float | None] = {
        "lesion_voxels": inside,
        "inside": float(values[lesions].mean(dtype=np.float64)) if inside else None,
        "outside": float(values[~lesions].mean(dtype=np.float64)) if inside < lesions.size else None,
    }
    both = 0 < inside < lesions.size
    return found | (dict(voxel_detection(values, lesions)) if both else {"auroc": None, "average_precision": None})


# -- inside


@dataclass(frozen=True)
class _Volumes:
    """Volumes that are read one at a time; counted and recognised like a data set."""

    entries: list[Entry]
    config: DataConfig

    @property
    def names(self) -> list[str]:
        stems = [_stem(entry.key) for entry in self.entries]
        return [stem if stems.count(stem) == 1 else e.key for stem, e in zip(stems, self.entries, strict=True)]

    @property
    def source(self) -> _Volumes:
        return self

    @property
    def indices(self) -> range:
        return range(len(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def fingerprint(self, index: int) -> str:
        return self.entries[index].fingerprint()

    def content_hash(self, index: int) -> str:
        return self.entries[index].content_hash()


class _Record:
    """What was done so far, in a file of the output directory."""

    def __init__(self, root: Path | None, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.content: dict[str, Any] = {"format": 1, "settings": json.loads(json.dumps(settings)), "volumes": {}}
        if root is None:
            return
        remove_leftovers(root)
        file = root / RECORD
        if file.is_file():
            try:
                known = json.loads(file.read_text())
                before, volumes = known["settings"], known["volumes"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} is damaged ({error}): remove it, or give another --output") from error
            other = sorted(name for name, value in self.content["settings"].items() if before.get(name) != value)
            if other:
                raise ValueError(
                    f"{root} holds maps with another {' and '.join(other)}: give another --output, or remove it"
                )
            self.content["volumes"] = volumes

    def get(self, key: str, mark: list[str]) -> dict[str, Any] | None:
        known = self.content["volumes"].get(key)
        if known is None or known["mark"] != mark:
            return None
        lost = self.root is not None and known.get("map") and not (self.root / known["map"]).exists()
        return None if lost else known

    def set(self, key: str, found: dict[str, Any]) -> None:
        self.content["volumes"][key] = found
        if self.root is not None:
            text = json.dumps(self.content, indent=2, allow_nan=False) + "\n"
            write_atomic(self.root / RECORD, text.encode())


def _chosen(scores: Sequence[str] | None) -> list[str]:
    known = get_args(VolumeScore)
    for name in scores or ():
        if name not in known:
            raise ValueError(
                f"unknown score of volumes {name!r}{suggestion(name, known)}; expected {' or '.join(known)}"
            )
    if scores is not None and not scores:
        raise ValueError(f"got no score; expected some of {', '.join(known)}")
    return list(dict.fromkeys(scores or known))


def _volumes(model: VAE, path: str | None, own: DataConfig | None, codec: VolumeCodec, limit: int | None) -> _Volumes:
    """List volumes at a path, or the test volumes of a run."""
    if path is None and own is None:
        raise ValueError(
            "this model directory is not part of a run, so its normal volumes are not known: say --normal DIR"
        )
    config = data_for(model, path, own) if own is not None or "data" in model.statistics else DataConfig(str(path))
    if path is None:
        test = load_data(config, value_range=model.value_range).test
        entries = [test.source.entries[int(i)] for i in np.unique(test.indices)]  # type: ignore[attr-defined]
    else:
        if codec.unit == "HU":
            # The model says that its values are HU, and reading checks that these can be.
            config = replace(config, volume=replace(config.volume, unit="HU", intensity="auto"))
        entries = find_volumes(config)[1]
    return _Volumes(entries[:limit], config)


def _read(entry: Entry, config: DataConfig) -> Volume:
    volume = entry.load()
    return with_channels(volume, config.volume.channel_names) if config.volume.channel_names else volume


def _stem(key: str) -> str:
    lower = key.lower()
    ends = (*FILES, ".ome.zarr", ".zarr", ".ome.tiff", ".ome.tif", ".tiff", ".tif")
    return next((key[: -len(end)] for end in ends if lower.endswith(end)), key)


def _flat(name: str) -> str:
    return name.replace("/", "-")


def _masks(place: Path, volumes: _Volumes) -> dict[str, Path]:
    """Return the file of each volume's mask."""
    if not place.exists():
        raise FileNotFoundError(f"no such file or folder: {place}")
    names = volumes.names
    if place.is_file():
        if len(names) != 1:
            raise ValueError(f"got one mask and {len(names)} volumes: give a folder of masks under the volumes' names")
        return {names[0]: place}
    found = {}
    for name in names:
        for end in (*(f"{mask}{suffix}" for mask in MASKS for suffix in FILES), *FILES):
            file = place / f"{name}{end}"
            # Masks may lie beside the volumes, which are not their own masks.
            if file.is_file() and not (
                end in FILES and (place / name).parent == Path(volumes.config.path).expanduser()
            ):
                found[name] = file
                break
    if not found:
        raise ValueError(f"{place} has no mask of any volume: expected files such as {names[0]}{FILES[0]}")
    return found


def _mask(file: Path, volume: Volume) -> np.ndarray:
    from omnivae.data.volumes.reading import read_volume

    marks = read_volume(file)
    if marks.size != volume.size or not np.allclose(marks.affine, volume.affine, atol=1e-3):
        raise ValueError(
            f"{file} lies on another grid ({marks.size}, {marks.orientation}) than the volume ({volume.size}, "
            f"{volume.orientation}): resample the mask onto it"
        )
    return np.asarray((marks.array != 0).any(axis=0))


def _written(errors: Volume, root: Path, name: str) -> str:
    from omnivae.data.volumes.reading import write_volume

    place = Path(MAPS) / f"{_flat(name)}{'.nii.gz' if errors.space == 'patient' else '.ome.zarr'}"
    (root / MAPS).mkdir(parents=True, exist_ok=True)
    if (root / place).is_dir():
        import shutil

        shutil.rmtree(root / place)  # a store of this command that was not finished, or of another volume before
    write_volume(errors, root / place)
    return place.as_posix()


def _draw(rebuilt: Rebuilt, errors: Volume, lesions: np.ndarray | None, worst: float, unit: str, file: Path) -> None:
    from omnivae.report.volumes import anomaly_picture

    png = anomaly_picture(rebuilt.original, rebuilt.reconstruction, errors, lesions=lesions, limit=worst, unit=unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, png)
