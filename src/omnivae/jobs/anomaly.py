"""Anomalies: scores of images, a threshold calibrated on held-out normal images, a table, and pictures of the worst."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Subset

from omnivae.component import suggestion
from omnivae.data import DataSplits
from omnivae.files import write_atomic
from omnivae.jobs.arithmetic import class_number
from omnivae.jobs.evaluate import images_for
from omnivae.jobs.manifest import trained_on
from omnivae.metrics import MetricResult, evaluate
from omnivae.metrics.anomaly import Threshold, calibrate_threshold, detection
from omnivae.models.storage import find_model
from omnivae.training.device import Precision

log = logging.getLogger(__name__)

Score = Literal["reconstruction", "elbo", "nll", "regret"]
#: Score -> the metric that it is, and its sign: every score is higher for odder images.
METRIC_OF: dict[str, tuple[str, float]] = {
    "reconstruction": ("mse", 1.0),
    "elbo": ("elbo", -1.0),
    "nll": ("nll", 1.0),
    "regret": ("likelihood_regret", 1.0),
}
#: Names of classes that are taken for normal ones unless told.
NORMAL_NAMES = ("good", "normal", "healthy", "ok")
TABLE, SUMMARY, PICTURE = "scores.csv", "anomaly.json", "worst.png"


@dataclass(frozen=True)
class AnomalyReport:
    """Scores of images and what they say.

    Attributes:
        names: key of each image, sorted.
        scores: score -> value of each image, higher for odder ones.
        thresholds: score -> threshold.
        flagged: score -> whether each image lies above it.
        detection: score -> "auroc" and "average_precision", where labels say which images are anomalous.
        anomalous: whether each image is known to be anomalous, where that is known.
        notes: what a reader must know.
    """

    names: list[str]
    scores: dict[str, np.ndarray]
    thresholds: dict[str, Threshold]
    flagged: dict[str, np.ndarray]
    detection: dict[str, dict[str, MetricResult]] = field(default_factory=dict)
    anomalous: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def to_csv(self) -> str:
        """Return the table: name, each score, whether it is flagged by each, and whether it is known to be anomalous."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        known = [] if self.anomalous is None else ["anomalous"]
        writer.writerow(["name", *self.scores, *(f"flagged_by_{name}" for name in self.scores), *known])
        for i, name in enumerate(self.names):
            truth = [] if self.anomalous is None else [int(self.anomalous[i])]
            values = [repr(float(of[i])) for of in self.scores.values()]
            writer.writerow([name, *values, *(int(of[i]) for of in self.flagged.values()), *truth])
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return thresholds, detection and each image's values, ready for JSON; values that are not finite become ``None``."""
        return {
            "images": len(self.names),
            "thresholds": {name: asdict(t) for name, t in self.thresholds.items()},
            "detection": {name: {key: asdict(r) for key, r in of.items()} for name, of in self.detection.items()},
            "notes": self.notes,
            "scores": {
                name: {
                    "name": name,
                    **{score: float(of[i]) if math.isfinite(of[i]) else None for score, of in self.scores.items()},
                    "flagged_by": [score for score, of in self.flagged.items() if of[i]],
                    **({} if self.anomalous is None else {"anomalous": bool(self.anomalous[i])}),
                }
                for i, name in enumerate(self.names)
            },
        }

    def lines(self) -> list[str]:
        """Return a line for each score, and the notes."""
        lines = []
        for name, t in self.thresholds.items():
            line = (
                f"{name:<15} {int(self.flagged[name].sum()):>5} of {len(self.names)} flagged above {t.value:.5g}; false alarms "
                f"{t.rate:.3g} on average, with these {t.num_normal} normal images {t.low:.3f} to {t.high:.3f}"
            )
            for key, result in self.detection.get(name, {}).items():
                interval = "" if result.low is None else f" ({result.low:.3f} to {result.high:.3f})"
                line += f"; {key.replace('_', ' ')} {result.mean:.3f}{interval}"
            lines.append(line)
        return [*lines, *self.notes]


def find_anomalies(
    model: str | Path,
    path: str,
    output: str | Path | None = None,
    *,
    normal: str | None = None,
    scores: Sequence[str] | None = None,
    rate: float = 0.05,
    normal_label: str | None = None,
    num_worst: int = 8,
    num_samples_nll: int = 50,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision = "32",
    progress: bool = True,
) -> AnomalyReport:
    """Score images, calibrate a threshold on held-out normal ones, and flag what lies above it.

    Scores, each higher for odder images: "reconstruction", the mean squared error of a pixel; "elbo", the negative ELBO; "nll", the
    importance-weighted bound of -log p(x); "regret", the likelihood regret of Xiao et al. (2020), see
    :func:`omnivae.metrics.likelihood_regret`. The threshold is that of :func:`omnivae.metrics.anomaly.calibrate_threshold`.

    Args:
        model: a model directory or a run.
        path: images to score. Where they have classes, and one of them is the normal one, AUROC and average precision are measured.
        output: directory for ``scores.csv``, ``anomaly.json`` and ``worst.png`` (the images that the first score finds oddest, with
            maps of their reconstruction error); nothing is written where it is ``None``.
        normal: normal images that the model was not trained on; the run's own test images by default.
        scores: which; all that the model has by default.
        rate: share of normal images to be flagged.
        normal_label: the class of normal images in ``path``, by name or number; "good", "normal", "healthy" or "ok" by default.
        num_worst: images in the picture, fewer where there are not so many.
        num_samples_nll: K of the importance-weighted bound.
        limit: at most so many images of each of the two sets.
        seed: of the posterior noise and the intervals.
        precision: of the networks.
        progress: show progress on a terminal.

    Returns:
        The report.

    Raises:
        ValueError: for unknown scores, scores that the model lacks, too few normal images for the rate, or an unknown class.
    """
    if num_worst < 1 or (limit is not None and limit < 1):
        raise ValueError(f"got num_worst={num_worst}, limit={limit}; expected at least 1 each")
    loaded, calibration, _ = images_for(model, normal, "auto", None, precision)
    chosen = _scores(scores, loaded)
    _, dataset, splits = images_for(model, path, "all", None, precision, loaded=loaded)
    notes = overlaps(find_model(model).parent, calibration, dataset)
    known = _anomalous(dataset, splits, normal_label, notes)

    values = []
    for images in (calibration, dataset):
        some = images if limit is None else Subset(images, range(min(limit, len(images))))
        result = evaluate(
            loaded,
            some,
            [METRIC_OF[name][0] for name in chosen],
            num_samples_nll=num_samples_nll,
            seed=seed,
            bootstrap=0,
            progress=progress,
        )
        values.append({name: {k: s * v for k, v in result.per_image[m].items()} for name, (m, s) in _of(chosen)})
    normal_values, found = values
    thresholds = {name: calibrate_threshold(np.array(list(normal_values[name].values())), rate) for name in chosen}
    names = list(found[chosen[0]])
    table = {name: np.array([found[name][key] for key in names]) for name in chosen}
    anomalous = None if known is None else np.array([known[key] for key in names])
    measured = {}
    if anomalous is not None and anomalous.any() and not anomalous.all():
        measured = {name: detection(table[name], anomalous, seed=seed) for name in chosen}
    report = AnomalyReport(
        names=names,
        scores=table,
        thresholds=thresholds,
        flagged={name: ~(table[name] <= thresholds[name].value) for name in chosen},
        detection=measured,
        anomalous=anomalous,
        notes=notes,
    )
    for note in notes:
        log.warning("%s", note)
    if output is not None:
        directory = Path(output)
        if directory.exists() and not directory.is_dir():
            raise FileExistsError(f"{directory} is a file; give --output a directory")
        write_atomic(directory / TABLE, report.to_csv().encode())
        write_atomic(directory / SUMMARY, (json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        _draw_worst(loaded, dataset, report, directory / PICTURE, num_worst)
    return report


def overlaps(run: Path, calibration: Any, dataset: Any, what: str = "images") -> list[str]:
    """Say where images that must be apart are the same ones.

    Args:
        run: its directory.
        calibration: normal images.
        dataset: images to score.
        what: they are called.

    Returns:
        Notes.
    """
    notes = []
    seen = trained_on(run, calibration)
    if seen:
        notes.append(
            f"{seen} of the {len(calibration)} normal {what} are among those that the model was trained on: their scores are too "
            f"low, and more than the stated share of other normal {what} will be flagged"
        )
    contents = {calibration.content_hash(i) for i in range(len(calibration))}
    both = sum(dataset.content_hash(i) in contents for i in range(len(dataset)))
    if both:
        notes.append(
            f"{both} of the {len(dataset)} {what} to score are also among the normal ones that set the threshold"
        )
    return notes


# -- inside


def _scores(names: Sequence[str] | None, model: Any) -> list[str]:
    provides = getattr(model.posterior, "provides", frozenset({"density", "diagonal"}))
    has = [
        n
        for n in get_args(Score)
        if n == "reconstruction" or ("density" in provides and (n != "regret" or "diagonal" in provides))
    ]
    if names is None:
        return has
    for name in names:
        if name not in METRIC_OF:
            raise ValueError(f"unknown score {name!r}{suggestion(name, METRIC_OF)}; expected {', '.join(METRIC_OF)}")
        if name not in has:
            raise ValueError(
                f"the posterior of this model ({type(model.posterior).__name__}) does not have what the score {name!r} needs; use "
                f"{' or '.join(has)}"
            )
    if not names:
        raise ValueError(f"got no score; expected some of {', '.join(has)}")
    return list(dict.fromkeys(names))


def _of(chosen: list[str]) -> list[tuple[str, tuple[str, float]]]:
    return [(name, METRIC_OF[name]) for name in chosen]


def _anomalous(dataset: Any, splits: DataSplits, normal_label: str | None, notes: list[str]) -> dict[str, bool] | None:
    labels, classes = dataset.labels, [str(c) for c in splits.classes or ()]
    if normal_label is None:
        names = [name for name in classes if name.lower() in NORMAL_NAMES]
        if labels is None or labels.ndim != 1 or len(names) != 1:
            if classes:
                notes.append(
                    f"no AUROC: say which of the classes {', '.join(classes[:5])}{', ...' * (len(classes) > 5)} is the normal one "
                    "(--normal_label)"
                )
            return None
        normal_label = names[0]
    elif labels is None or labels.ndim != 1:
        raise ValueError(
            f"{splits.name} has no class labels, so none of them can be {normal_label!r}; drop --normal_label"
        )
    number = class_number(normal_label, splits)
    return dict(zip(dataset.keys, (labels != number).tolist(), strict=True))


def _draw_worst(model: Any, dataset: Any, report: AnomalyReport, file: Path, count: int) -> None:
    from PIL import Image

    from omnivae.files import replace_atomic
    from omnivae.report import comparison_grid, reconstruct
    from omnivae.report.latent_ops import has_alpha

    first = next(iter(report.scores))
    place = {key: i for i, key in enumerate(dataset.keys)}
    order = sorted(range(len(report.names)), key=lambda i: -report.scores[first][i])
    shown: list[tuple[torch.Tensor, torch.Tensor, str]] = []
    for i in order:
        item = dataset[place[report.names[i]]]
        x = item["x"]
        # Side by side stand images of one size; the table holds the others.
        if shown and x.shape != shown[0][0].shape:
            continue
        cond = None if item.get("cond") is None else item["cond"][None]
        # One line of some 13 letters fits under a tile; an exclamation mark says that the image is flagged.
        label = f"{Path(report.names[i]).stem[-6:]} {report.scores[first][i]:.2g}{'!' * bool(report.flagged[first][i])}"
        shown.append((x, reconstruct(model, x[None], cond)[0].cpu(), label))
        if len(shown) == count:
            break
    originals, decoded, labels = zip(*shown, strict=True)
    grid = comparison_grid(
        torch.stack(originals), torch.stack(decoded), model.value_range, labels=labels, alpha=has_alpha(model)
    )
    replace_atomic(file, lambda beside: Image.fromarray(grid).save(beside, format="PNG"))
