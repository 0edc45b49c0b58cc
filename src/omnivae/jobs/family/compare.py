"""Train and measure every run of a plan; the same call continues where it was left."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnivae.files import write_atomic
from omnivae.jobs.evaluate import evaluate_model
from omnivae.jobs.family.plan import Plan, differing
from omnivae.jobs.family.result import FamilyResult, Run
from omnivae.jobs.train import prepare
from omnivae.metrics import Evaluation
from omnivae.metrics.registry import METRICS, resolve

log = logging.getLogger(__name__)

PLAN, CARD, MEASURED, USAGE = "plan.json", "evaluation.json", "measured.json", "usage.json"


def compare_family(plan: Plan, output: str | Path) -> FamilyResult:
    """Train each recipe from each seed, measure all runs on the same test images, and write table, figure and page.

    Each run is a process of its own, so that its seconds and memory are its own. Runs lie in ``runs/RECIPE/seed-N`` and are
    runs like any other. ``family.json``, ``family.md``, ``family.png`` and ``family.html`` are written at the end.

    Args:
        plan: what to train.
        output: directory; one with the same plan is continued, and may gain recipes and seeds.

    Returns:
        All runs and their figures.

    Raises:
        FileExistsError: when the directory holds another comparison.
        ValueError: for a recipe that cannot be trained on these images, before anything is trained.
        ChildProcessError: when a training process fails.
    """
    directory = Path(output)
    names = [metric.name for metric in resolve(plan.metrics)]
    _refuse_other(directory, plan)
    sizes = {recipe: _check(plan, recipe) for recipe in plan.recipes}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / PLAN, json.dumps(plan.to_dict(), indent=2).encode())
    total = len(plan.recipes) * len(plan.seeds)
    runs: list[Run] = []
    for seed in plan.seeds:
        # Seed by seed: what is there after a part of the time compares all recipes.
        for recipe in plan.recipes:
            log.info("run %d of %d: %s, seed %d", len(runs) + 1, total, recipe, seed)
            folder = directory / "runs" / recipe / f"seed-{seed}"
            usage = _train(plan, recipe, seed, folder)
            evaluation, missing = _measure(plan, names, folder)
            runs.append(Run(recipe, seed, sizes[recipe], usage["seconds"], usage["peak_mib"], evaluation, missing))
    result = FamilyResult(plan, names, runs)
    result.write(directory)
    return result


def _refuse_other(directory: Path, plan: Plan) -> None:
    there, wanted = directory / PLAN, json.loads(json.dumps(plan.to_dict()))
    if there.is_file():
        changed = differing(json.loads(there.read_text()), wanted)
        if changed:
            raise FileExistsError(
                f"{directory} holds another comparison ({'; '.join(changed)}): choose another --output, or ask for the same"
            )
    elif directory.is_dir() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} exists and is no comparison of recipes; choose another --output")


def _check(plan: Plan, recipe: str) -> int:
    """Return the recipe's number of parameters on these images; refuse it before anything is trained."""
    from omnivae.training.combinations import check

    try:
        model, losses, _ = prepare(plan.config(recipe, plan.seeds[0]))
        check(model, losses)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"the recipe {recipe!r} cannot be trained on {plan.data.path}: {error}") from error
    return model.num_parameters()


def _train(plan: Plan, recipe: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one run in a process of its own; return its seconds and peak memory over all attempts."""
    usage = folder / USAGE
    used = json.loads(usage.read_text()) if usage.is_file() else {"seconds": 0.0, "peak_mib": 0.0, "done": False}
    if used["done"]:
        return used
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "asked.yaml"
    write_atomic(config, plan.config(recipe, seed).to_yaml().encode())
    began = time.perf_counter()
    status, peak = _run([*_command(), "train", "--config", str(config), "--output", str(folder / "run")])
    used["seconds"] += time.perf_counter() - began
    used["peak_mib"] = max(used["peak_mib"], peak)
    used["done"] = status == 0 and _complete(folder / "run", plan.steps)
    write_atomic(usage, json.dumps(used).encode())
    if not used["done"]:
        if status == 0:
            raise KeyboardInterrupt  # the run was asked to stop, and saved
        raise ChildProcessError(
            f"the run of {recipe} from seed {seed} ended with exit code {status}; its own message is above, and the same "
            "command continues"
        )
    return used


def _command() -> list[str]:
    return [sys.executable, "-m", "omnivae"]


def _run(command: Sequence[str]) -> tuple[int, float]:
    """Run a command; return its exit code and its largest resident memory in MiB."""
    process = subprocess.Popen([*command, "--report", "false"], stdout=subprocess.DEVNULL)
    while True:
        try:
            _, status, resources = os.wait4(process.pid, 0)
            break
        except KeyboardInterrupt:
            # Ctrl-C reaches the whole group on a terminal; a signal to this process alone is passed on.
            process.send_signal(signal.SIGINT)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return process.returncode, resources.ru_maxrss / unit


def _complete(run: Path, steps: int) -> bool:
    from omnivae.training import CHECKPOINTS
    from omnivae.training.checkpoint_io import SUFFIX, checkpoint_step

    last = run / CHECKPOINTS / f"last{SUFFIX}"
    return last.exists() and checkpoint_step(last) >= steps


def _measure(plan: Plan, names: Sequence[str], folder: Path) -> tuple[Evaluation, dict[str, str]]:
    """Evaluate one run on what it has; return the reason for every metric that it lacks."""
    card, about = folder / CARD, folder / MEASURED
    asked = {"metrics": list(names), "images": plan.images, "num_samples_nll": plan.num_samples_nll}
    if card.is_file() and about.is_file():
        known = json.loads(about.read_text())
        if known["asked"] == asked:
            return Evaluation.from_dict(json.loads(card.read_text()), str(card)), known["missing"]
    run, lacking = folder / "run", {}
    settings: dict[str, Any] = {"num_samples_nll": plan.num_samples_nll, "progress": False, "batch_size": 64}
    have: list[str] = []
    for name in names:
        # A metric says itself what it misses; two images are enough to hear it.
        try:
            evaluate_model(run, metrics=[name], **settings | {"limit": min(plan.images, 64), "num_samples_nll": 1})
        except (ValueError, ImportError) as error:
            lacking[name] = " ".join(str(error).split())
        else:
            have.append(name)
    if not have:
        raise ValueError(f"none of the metrics {', '.join(METRICS[n].name for n in names)} can be measured: {lacking}")
    evaluation = evaluate_model(run, metrics=have, limit=plan.images, **settings)
    evaluation.to_json(card)
    write_atomic(about, json.dumps({"asked": asked, "missing": lacking}, indent=2).encode())
    return evaluation, lacking
