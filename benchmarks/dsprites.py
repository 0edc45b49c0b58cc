"""β-VAE, β-TCVAE and FactorVAE on dSprites, at the literature's settings scaled to a budget of a CPU.

Networks, batch size (64) and weights are the papers': β = 4 (Higgins et al., 2017), β = 6 (Chen et al., 2018) and γ = 35 (Kim and
Mnih, 2018). What is scaled is the length, from 300,000 steps to ``steps``, and with it the learning rate, from 1e-4 to 1e-3 with a
cosine decay (that of FactorVAE's discriminator from 1e-4 to 5e-4). Each run is a directory that continues where it was stopped,
and a finished one is not trained again.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnivae.data import DataConfig, world
from omnivae.files import write_atomic
from omnivae.jobs.config import RunConfig
from omnivae.jobs.train import train
from omnivae.metrics.disentanglement import ProcessSampler, dci, factor_vae_score, mig, sap
from omnivae.models import VAE
from omnivae.recipes import RECIPES
from omnivae.training import TrainingConfig

RESULTS = Path(__file__).parent / "results"
STEPS, SEEDS, BATCH = 5_000, 3, 64
#: Method -> its losses; None is the network before any training.
METHODS: dict[str, dict[str, dict[str, Any]] | None] = {
    "beta_vae": {"nll": {}, "kl": {"weight": 4.0}},
    "beta_tc_vae": {"nll": {}, "tc": {"alpha": 1.0, "beta": 6.0, "gamma": 1.0, "estimator": "weighted"}},
    "factor_vae": {"nll": {}, "kl": {}, "factor": {"weight": 35.0, "discriminator_learning_rate": 5e-4}},
    "untrained": None,
}
TITLES = {
    "beta_vae": "β-VAE, β = 4",
    "beta_tc_vae": "β-TCVAE, β = 6",
    "factor_vae": "FactorVAE, γ = 35",
    "untrained": "untrained network",
}
SCORES = {
    "mig": "MIG",
    "sap": "SAP",
    "dci": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "factor_vae": "FactorVAE score",
}
#: Where most runs of 300,000 steps lie, approximately, read off the figures of Locatello et al., Challenging Common Assumptions in
#: the Unsupervised Learning of Disentangled Representations, 2019: six strengths and fifty seeds of each method on dSprites. The
#: methods' own papers, at strengths that their authors chose, report about: MIG up to 0.5 for β-TCVAE and 0.35 for β-VAE (Chen et
#: al., 2018, figure 4), a FactorVAE score of 0.82 at γ = 35 and of 0.63 for β-VAE at β = 4 (Kim and Mnih, 2018, figure 4).
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "beta_vae": {"mig": (0.02, 0.25), "sap": (0.01, 0.09), "dci": (0.08, 0.45), "factor_vae": (0.45, 0.8)},
    "beta_tc_vae": {"mig": (0.05, 0.35), "sap": (0.01, 0.09), "dci": (0.1, 0.5), "factor_vae": (0.5, 0.85)},
    "factor_vae": {"mig": (0.05, 0.3), "sap": (0.01, 0.09), "dci": (0.15, 0.45), "factor_vae": (0.55, 0.85)},
}
#: Rows of the tables, and batches of the FactorVAE score (Kim and Mnih's 800 votes).
ROWS, VOTES, JUDGED = 15_000, 800, 400


def run(*, steps: int = STEPS, seeds: int = SEEDS, runs: Path = Path("runs/dsprites-benchmark")) -> dict[str, Any]:
    """Train and score what is not there yet; print and write the table and the figure after each run.

    Args:
        steps: of each run, at 64 images.
        seeds: runs of each method.
        runs: where the runs are.

    Returns:
        What is written to ``benchmarks/results/dsprites.json``.
    """
    result: dict[str, Any] = {}
    for seed in range(seeds):
        for method in METHODS:
            directory = runs / f"{method}-{steps}-{seed}"
            known = directory / "scores.json"
            if not known.is_file():
                begun, used = time.perf_counter(), time.process_time()
                model = _trained(method, steps, seed, directory)
                trained = time.process_time()
                scores = score(model, seed=seed)
                scores |= {
                    "seconds": time.perf_counter() - begun,
                    "cpu_seconds_training": trained - used,
                    "cpu_seconds_scoring": time.process_time() - trained,
                }
                write_atomic(known, (json.dumps(scores, indent=1) + "\n").encode())
            result = summary(steps, seeds, runs)
            write_atomic(RESULTS / "dsprites.json", (json.dumps(result, indent=1) + "\n").encode())
            draw(result, RESULTS / "dsprites.png")
            print(f"{method}, seed {seed}: {_line(json.loads(known.read_text()))}", flush=True)
    print(table(result), flush=True)
    return result


@torch.no_grad()
def score(model: VAE, *, seed: int) -> dict[str, float]:
    """Return the scores of a model's posterior means on pictures drawn from the process.

    Args:
        model: the model.
        seed: of all draws.
    """
    dsprites = world("dsprites")
    model.eval()

    def encode(factors: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(dsprites.render(factors)).permute(0, 3, 1, 2).float() / 255
        return np.concatenate([model.encode(part).mean.numpy() for part in x.split(256)])

    factors = dsprites.sample(ROWS, seed=1_000 + seed)
    codes = encode(factors)
    sampler = ProcessSampler(encode, dsprites.factor_sizes, names=dsprites.names)
    importance = dci(codes, factors, names=dsprites.names, seed=seed)
    return {
        "mig": mig(codes[:10_000], factors[:10_000]).score,
        "sap": sap(codes, factors, seed=seed).score,
        "dci": importance.score,
        "dci_completeness": importance.completeness,
        "factor_vae": factor_vae_score(sampler, num_train=VOTES, num_eval=JUDGED, seed=seed).score,
    }


def summary(steps: int, seeds: int, runs: Path) -> dict[str, Any]:
    """Return the scores of all finished runs, with their means and standard deviations over seeds."""
    methods: dict[str, Any] = {}
    for method in METHODS:
        found = [runs / f"{method}-{steps}-{seed}" / "scores.json" for seed in range(seeds)]
        scores = [json.loads(path.read_text()) for path in found if path.is_file()]
        methods[method] = {
            "seeds": len(scores),
            "mean": {name: statistics.mean(s[name] for s in scores) for name in SCORES if scores},
            "std": {name: statistics.stdev(s[name] for s in scores) for name in SCORES if len(scores) > 1},
            "runs": scores,
            "published": {name: list(ends) for name, ends in PUBLISHED.get(method, {}).items()},
        }
    return {
        "steps": steps,
        "batch_size": BATCH,
        "literature_steps": 300_000,
        "threads": torch.get_num_threads(),
        "cpu_seconds": sum(s["cpu_seconds_training"] for m in methods.values() for s in m["runs"]),
        "methods": methods,
    }


def table(result: dict[str, Any]) -> str:
    """Return the scores as a Markdown table: mean ± standard deviation over seeds (published range)."""
    lines = ["| method | seeds | " + " | ".join(SCORES.values()) + " |", "|---|--:|" + "--:|" * len(SCORES)]
    for method, of in result["methods"].items():
        cells = []
        for name in SCORES:
            if name not in of["mean"]:
                cells.append("")
                continue
            error = f" ± {of['std'][name]:.3f}" if name in of["std"] else ""
            ends = of["published"].get(name)
            cells.append(f"{of['mean'][name]:.3f}{error}" + (f" ({ends[0]:g} to {ends[1]:g})" if ends else ""))
        lines.append(f"| {TITLES[method]} | {of['seeds']} | " + " | ".join(cells) + " |")
    words = (
        f"{result['steps']:,} steps of {result['batch_size']} images (the literature's runs: {result['literature_steps']:,}); "
        f"{result['cpu_seconds'] / 60:.0f} CPU minutes of training in all; in brackets the approximate range of published runs"
    )
    return "\n".join([*lines, "", words])


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the scores beside the published ranges.

    Args:
        result: of :func:`run`.
        path: PNG file.
    """
    import io

    import matplotlib.pyplot as plt

    shown = [name for name in SCORES if name != "dci_completeness"]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.4), layout="constrained")
    for axis, name in zip(axes, shown, strict=True):
        for place, of in enumerate(result["methods"].values()):
            ends = of["published"].get(name)
            if ends:
                axis.bar(place, ends[1] - ends[0], bottom=ends[0], width=0.7, color="#d9dee5", zorder=1)
            values = [scores[name] for scores in of["runs"]]
            axis.scatter([place] * len(values), values, s=14, color="#8a94a3", zorder=2)
            if values:
                error = of["std"].get(name, 0.0)
                axis.errorbar(place, of["mean"][name], error, fmt="o", color="#1f4e9c", capsize=4, zorder=3)
        axis.set_title(SCORES[name], fontsize=10)
        labels = [TITLES[m].replace(", ", "\n").replace(" network", "\nnetwork") for m in result["methods"]]
        axis.set_xticks(range(len(labels)), labels, fontsize=7)
        axis.set_ylim(0, None)
        axis.spines[["top", "right"]].set_visible(False)
    steps, of = result["steps"], result["literature_steps"]
    figure.suptitle(
        f"dSprites: {steps:,} steps (blue: mean ± std over seeds), published runs of {of:,} (grey)", fontsize=10
    )
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    write_atomic(path, data.getvalue())


def _trained(method: str, steps: int, seed: int, directory: Path) -> VAE:
    losses = METHODS[method]
    if losses is None:
        torch.manual_seed(seed)
        return RECIPES["beta_vae"]()
    config = RunConfig(
        {"recipe": "beta_vae", "latent_dim": 10},
        DataConfig("dsprites"),
        losses,
        TrainingConfig(
            batch_size=BATCH, learning_rate=1e-3, max_steps=steps, optimizer="adam", ema=0.0, seed=seed,
            checkpoint_every=500, draw_every=steps, log_every=50,
        ),
    )  # fmt: skip
    finished = train(config, directory, progress=os.isatty(2), report=False)
    if not finished.complete:
        raise KeyboardInterrupt(f"stopped at step {finished.step}; the same command continues")
    return VAE.from_pretrained(directory)


def _line(scores: dict[str, float]) -> str:
    return ", ".join(f"{title} {scores[name]:.3f}" for name, title in SCORES.items()) + (
        f"; {scores['cpu_seconds_training']:.0f} + {scores['cpu_seconds_scoring']:.0f} CPU s"
    )
