"""What models of one plate say of the cells of another: ``python -m benchmarks.microscopy RUN ... --train FOLDER --test FOLDER``.

Measures runs of BetaVae25D and BetaVaeMonai on patches around each nucleus of a plate that they have not seen: PSNR and SSIM of
each channel, KL, active units, and what can be read off the posterior means. Classifiers are trained on cells of the run's plate
and tested on the other's: is a nucleus condensed (linear, of the nearest neighbours, linear from 20 cells of each kind; balanced
accuracy), and what is the condition of a well (linear, the mean over its cells) and of a patch anywhere in it. The same is done
with encoders of random weights and with principal components of the pixels. A FOLDER is what ``omnivae phantoms --kind plate
--conditions`` writes; docs/microscopy.md has the commands. Prints a Markdown table and writes
``benchmarks/results/microscopy.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.common import machine
from omnivae import VAE, similarity
from omnivae.component import from_config, to_config
from omnivae.data import load_data
from omnivae.data.volumes import read_volume
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.data.volumes.dataset_patches import cut
from omnivae.jobs.run_data import data_for, run_data
from omnivae.metrics import evaluate
from omnivae.models.storage import find_model

RESULTS = Path(__file__).parent / "results" / "microscopy.json"
#: Encoders of random weights that a trained one is compared with, and draws of 20 labelled cells of each kind.
UNTRAINED, DRAWS, FEW = 3, 20, 20


class Cells(Dataset):  # type: ignore[type-arg]
    """Patches around the nuclei of a plate, prepared as in a run's training.

    Args:
        fields: the plate as the run sees it.
        folder: of ``labels.ome.zarr`` and ``plate_map.csv``.
        volumes: fields to take, as numbers of the source.

    Attributes:
        wells: of each cell.
        odd: whether its nucleus is condensed.
        condition: of each well.
    """

    def __init__(self, fields: VolumeDataset, folder: Path, volumes: np.ndarray) -> None:
        from scipy import ndimage

        with (folder / "plate_map.csv").open(newline="") as file:
            table = {row["well"]: row for row in csv.DictReader(file)}
        self.condition = {well: row["condition"] for well, row in table.items()}
        source, intensity = fields.source, fields.transform.intensity
        patch = fields.transform.shape[1:]
        self.keys: list[str] = []
        self.patches: list[torch.Tensor] = []
        wells, odd = [], []
        for number in map(int, volumes):
            position = "/".join(source.key(number).split("/")[-3:])
            well = position.rsplit("/", 1)[0]
            labels = read_volume(folder / "labels.ome.zarr", position=position).array[0]
            facts, values = source.facts(number), source.values(number)
            low, _ = intensity.ends(facts)
            names = range(1, int(labels.max()) + 1)
            for name, middle in zip(names, ndimage.center_of_mass(labels > 0, labels, names), strict=True):
                corner = [round(m) - p // 2 for m, p in zip(middle, patch, strict=True)]
                corner[0] = min(max(corner[0], 0), facts.size[0] - patch[0])
                if any(c < 0 or c + p > n for c, p, n in zip(corner, patch, facts.size, strict=True)):
                    continue  # no border is filled up: training has shown none
                self.patches.append(torch.from_numpy(intensity.scaled(cut(values, corner, patch, low), facts)))
                self.keys.append(f"{position}#{name}")
                wells.append(well)
                odd.append(name <= int(table[well]["odd_nuclei"]))  # the generator draws the condensed ones first
        self.wells, self.odd = np.array(wells), np.array(odd)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.patches[index], "key": self.keys[index]}

    @cached_property
    def x(self) -> torch.Tensor:
        """All patches, ``[N, C, I, J, K]``."""
        return torch.stack(self.patches)


@dataclass(frozen=True)
class Run:
    """A trained model, and cells of its own plate and of another.

    Attributes:
        name: of the run's folder.
        model: in evaluation mode.
        train: cells of the wells that it was trained on.
        test: cells of the other plate.
        channels: names.
        grid: patches that cover both plates, ``[N, C, I, J, K]``, and the condition of each.
    """

    name: str
    model: VAE
    train: Cells
    test: Cells
    channels: list[str]
    grid: tuple[tuple[torch.Tensor, np.ndarray], tuple[torch.Tensor, np.ndarray]]


def opened(run: Path, train: Path, test: Path) -> Run:
    """Return a run with the cells of both plates.

    Args:
        run: its folder.
        train: folder of its plate.
        test: folder of the other plate.
    """
    model = VAE.from_pretrained(run).eval()
    config = data_for(model, None, run_data(find_model(run)))
    config = replace(config, volume=replace(config.volume, patches_per_volume=10_000))  # all of the grid
    own, other = (
        load_data(replace(config, path=str(folder / "plate.ome.zarr")), value_range=model.value_range)
        for folder in (train, test)
    )
    every = np.arange(len(other.test.source))
    cells = Cells(own.train, train, own.train.volumes), Cells(other.test, test, every)
    grids = [
        (torch.stack([item["x"] for item in fields]), np.array([part.condition[_well(key)] for key in fields.keys]))
        for fields, part in zip((own.train.fixed(), other.test.fixed(every)), cells, strict=True)
    ]
    return Run(run.name, model, *cells, list(config.volume.channel_names), (grids[0], grids[1]))


def _well(key: str) -> str:
    """Return the well in the name of a patch, such as "plate.ome.zarr/B/2/0@0,64,0"."""
    return "/".join(key.split("@")[0].split("/")[-3:-1])


def grid_probe(train: np.ndarray, test: np.ndarray, run: Run) -> dict[str, float]:
    """Return how often the condition is read off a patch that may hold any part of a cell, or none.

    Args:
        train: features of the patches that cover the run's plate.
        test: of the other plate.
        run: whose patches they are.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000)).fit(train, run.grid[0][1])
    return {"condition of a patch, linear": float((fitted.predict(test) == run.grid[1][1]).mean())}


@torch.inference_mode()
def codes(model: VAE, x: torch.Tensor) -> np.ndarray:
    """Return posterior means ``[N, F]``.

    Args:
        model: in evaluation mode.
        x: patches.
    """
    return np.concatenate([model.encode(part).mean.flatten(1).double().numpy() for part in x.split(32)])


def of_wells(features: np.ndarray, wells: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the mean over the cells of each well, and the wells.

    Args:
        features: of cells.
        wells: the well of each.
    """
    names = sorted(set(wells.tolist()))
    return np.stack([features[wells == name].mean(0) for name in names]), names


def probe(train: np.ndarray, test: np.ndarray, run: Run) -> dict[str, float]:
    """Return how well features of cells tell what the cells are.

    Args:
        train: features of the cells that classifiers are trained on.
        test: features of the cells of the other plate.
        run: whose cells they are.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def linear() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000, class_weight="balanced"))

    def score(classifier: Any, rows: np.ndarray) -> float:
        predicted = classifier.fit(train[rows], run.train.odd[rows]).predict(test)
        return float(balanced_accuracy_score(run.test.odd, predicted))

    every, random = np.arange(len(train)), np.random.default_rng(0)
    kinds = [np.flatnonzero(run.train.odd == kind) for kind in (False, True)]
    few = [
        score(linear(), np.concatenate([random.choice(rows, FEW, replace=False) for rows in kinds]))
        for _ in range(DRAWS)
    ]
    (here, names), (there, others) = of_wells(train, run.train.wells), of_wells(test, run.test.wells)
    wells = linear().fit(here, [run.train.condition[w] for w in names])
    return {
        "condensed, linear": score(linear(), every),
        "condensed, 5 nearest cells": score(make_pipeline(StandardScaler(), KNeighborsClassifier(5)), every),
        f"condensed, linear from {2 * FEW} cells": float(np.mean(few)),
        "condition of a well, linear": float(np.mean(wells.predict(there) == [run.test.condition[w] for w in others])),
    }


@torch.inference_mode()
def per_channel(run: Run) -> dict[str, dict[str, float]]:
    """Return PSNR and SSIM of the reconstructions of each channel, relative to the width of the value range.

    Args:
        run: the model and its cells.
    """
    low, high = run.model.value_range
    found: dict[str, list[list[float]]] = {name: [[], []] for name in run.channels}
    for x in run.test.x.split(32):
        again = run.model.decode(run.model.encode(x)).clamp(low, high)
        for number, name in enumerate(run.channels):
            a, b = again[:, number : number + 1], x[:, number : number + 1]
            error = (a - b).double().square().flatten(1).mean(1)
            found[name][0] += (20 * np.log10(high - low) - 10 * error.log10()).tolist()
            found[name][1] += similarity.ssim(a, b, data_range=high - low).tolist()
    return {name: {"psnr": float(np.mean(p)), "ssim": float(np.mean(s))} for name, (p, s) in found.items()}


def measure(run: Run) -> dict[str, Any]:
    """Measure one run.

    Args:
        run: the model and its cells.
    """
    from sklearn.decomposition import PCA

    figures = evaluate(run.model, run.test, ["kl", "active_units"], progress=False)  # type: ignore[arg-type]
    (first, _), (second, _) = run.grid
    xs = (run.train.x, run.test.x, first, second)

    def of(features: list[np.ndarray]) -> dict[str, float]:
        return probe(*features[:2], run) | grid_probe(*features[2:], run)

    random = []
    for seed in range(UNTRAINED):
        torch.manual_seed(seed)
        fresh = from_config(to_config(run.model)).eval()
        random.append(of([codes(fresh, x) for x in xs]))
    means = [codes(run.model, x) for x in xs]
    # Every third plane, every second row and column: all voxels of all cells would be gigabytes in float64.
    pixels = [x[:, :, 1::3, ::2, ::2].flatten(1).double().numpy() for x in xs]
    around, anywhere = (PCA(means[0].shape[1], random_state=0).fit(pixels[part]) for part in (0, 2))
    components = [around.transform(rows) for rows in pixels[:2]] + [anywhere.transform(rows) for rows in pixels[2:]]
    return {
        "run": run.name,
        "model": type(run.model).__name__,
        "parameters": run.model.num_parameters(),
        "channels": per_channel(run),
        "kl": figures.metrics["kl"].mean,
        "active_units": figures.metrics["active_units"].mean,
        "latent_dim": means[0].shape[1],
        "cells": {"train": len(run.train), "test": len(run.test)},
        "wells": {"train": len(set(run.train.wells)), "test": len(set(run.test.wells))},
        "probe": {
            "posterior means": of(means),
            "untrained encoder": {name: float(np.mean([r[name] for r in random])) for name in random[0]},
            "principal components of pixels": of(components),
        },
    }


def lines(results: list[dict[str, Any]]) -> list[str]:
    """Return the Markdown table.

    Args:
        results: of the runs.
    """
    rows: list[tuple[str, list[str]]] = []
    for channel in dict.fromkeys(c for r in results for c in r["channels"]):
        cells = [r["channels"].get(channel) for r in results]
        rows.append((f"PSNR, {channel}", [f"{c['psnr']:.1f} dB" if c else "" for c in cells]))
        rows.append((f"SSIM, {channel}", [f"{c['ssim']:.2f}" if c else "" for c in cells]))
    rows.append(("KL", [f"{r['kl']:.0f} nats" for r in results]))
    rows.append(("active units", [f"{r['active_units']:.0f} of {r['latent_dim']}" for r in results]))
    for question in results[0]["probe"]["posterior means"]:
        for kind in results[0]["probe"]:
            cells = [f"{100 * r['probe'][kind][question]:.0f} %" for r in results]
            rows.append((f"{question}: {kind}", cells))
    names = [f"{r['model']}, {' and '.join(r['channels'])}" for r in results]
    head = [f"| | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 1)}"]
    return [*head, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)]


def draw(runs: list[Run], path: Path) -> None:
    """Draw cells of the other plate over their reconstructions (middle plane), and wells' codes on two principal axes.

    Args:
        runs: models and cells.
        path: of the PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    heights = [2 * len(run.channels) for run in runs]
    figure = plt.figure(figsize=(9.6, 0.85 * sum(heights) + 0.8), layout="constrained")
    outer = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)
    for (part,), run in zip(outer, runs, strict=True):
        left, right = part.subfigures(1, 2, width_ratios=(5, 4.3))
        _draw_cells(left, run)
        _draw_wells(right.subplots(), run)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_cells(figure: Any, run: Run) -> None:
    kinds = [np.flatnonzero(run.test.odd == kind) for kind in (False, True)]
    chosen = [int(rows[at * len(rows) // 3 + 2]) for rows in kinds for at in range(3)]
    x = run.test.x[chosen]
    with torch.inference_mode():
        again = run.model.decode(run.model.encode(x)).clamp(*run.model.value_range)
    axes = figure.subplots(2 * len(run.channels), len(chosen), squeeze=False)
    low, high = run.model.value_range
    for column, i in enumerate(chosen):
        axes[0][column].set_title("condensed" if run.test.odd[i] else "ordinary", fontsize=7)
        for channel, name in enumerate(run.channels):
            for row, stack in enumerate((x, again)):
                axis = axes[2 * channel + row][column]
                axis.imshow(stack[column, channel, x.shape[2] // 2], cmap="gray", vmin=low, vmax=high)
                axis.set(xticks=[], yticks=[])
                if column == 0:
                    axis.set_ylabel("rebuilt" if row else name, fontsize=7)


def _draw_wells(axis: Any, run: Run) -> None:
    from sklearn.decomposition import PCA

    parts = [(*of_wells(codes(run.model, part.x), part.wells), part.condition) for part in (run.train, run.test)]
    pca = PCA(2, random_state=0).fit(parts[0][0])
    shown = sorted(set(run.train.condition.values()), key=lambda c: (c != "control", c))
    for number, condition in enumerate(shown):
        for (features, wells, of), face, label in zip(parts, ("none", f"C{number}"), (None, condition), strict=True):
            rows = features[[of[well] == condition for well in wells]]
            axis.scatter(*pca.transform(rows).T, s=26, color=face, edgecolors=f"C{number}", label=label)
    axis.legend(fontsize=7, title="wells; filled: the other plate", title_fontsize=7)
    for label, share in zip((axis.set_xlabel, axis.set_ylabel), pca.explained_variance_ratio_, strict=True):
        label(f"{100 * share:.0f} % of the variance", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.set_title(type(run.model).__name__, fontsize=9)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("runs", type=Path, nargs="+", help="runs of models of a plate")
    parser.add_argument("--train", type=Path, required=True, help="folder of their plate, its labels and its map")
    parser.add_argument("--test", type=Path, required=True, help="as --train, of a plate that they have not seen")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = [opened(run, given.train, given.test) for run in given.runs]
    results = [measure(run) for run in runs]
    print(*lines(results), sep="\n")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": results}, indent=2) + "\n")
    if given.picture is not None:
        draw(runs, given.picture)


if __name__ == "__main__":
    main()
