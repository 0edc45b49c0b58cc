"""Flight records: a folder for each step that went bad, with all that is needed to compute the step again.

``RUN/flight/step-00000012/record.json`` says what happened; ``replay.safetensors`` holds the weights before the step, its
batch and the state of the random number generators. No pickle.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from omnivae.component import from_config, to_config
from omnivae.files import write_atomic
from omnivae.training.checkpoint_io import SUFFIX, checkpoint_step, read_tree, write_tree
from omnivae.training.config import TrainingConfig
from omnivae.training.diagnosis import Diagnosis, Step
from omnivae.training.inputs import names_of
from omnivae.training.order import UnreadableData

log = logging.getLogger(__name__)

FLIGHT, RECORD, BUNDLE = "flight", "record.json", f"replay{SUFFIX}"
#: Replay bundles hold the weights: so many are kept of a run that skips bad updates; further steps leave their record only.
MOST_BUNDLES = 3
#: Further records say nothing new.
MOST_RECORDS = 100


class FlightRecorder(pl.Callback):
    """Writes a flight record when a step goes bad or the data cannot be read.

    Args:
        directory: the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._trainer: pl.Trainer | None = None
        self._module: Any = None
        self.unreadable: Diagnosis | None = None
        self.folder: Path | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Tell the guard where records go."""
        self._trainer, self._module = trainer, pl_module
        pl_module.guard.recorder = self
        pl_module.guard.context = trainer.precision_plugin.forward_context
        pl_module.guard.half = trainer.precision == "16-mixed"
        pl_module.guard.start()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Record a file that could not be read in the middle of the run."""
        if not isinstance(exception, UnreadableData):
            return
        self._trainer, self._module = trainer, pl_module
        file, reason = exception.parts()
        self.unreadable = Diagnosis(
            "data",
            f"{file}: {reason}",
            "repair or remove the file, then repeat the command to continue",
            "data",
            files=[file],
        )
        self.folder = self.record(self.unreadable, [], final=True)

    @property
    def _last(self) -> Path:
        return self.directory / "checkpoints" / f"last{SUFFIX}"

    def last_good(self) -> str:
        """Say where the last good checkpoint is."""
        if not self._last.exists():
            return "no checkpoint had been written yet"
        return (
            f"the last good checkpoint is of step {checkpoint_step(self._last)}, the same command continues from there"
        )

    def sentence(self) -> str:
        """Say which image could not be read, and where the run stands."""
        assert self.unreadable is not None
        record = f"; flight record: {self.folder}" if self.folder is not None else ""
        return f"{self.unreadable.summary}: {self.unreadable.advice}{record}; {self.last_good()}"

    def record(self, diagnosis: Diagnosis, steps: list[Step], *, final: bool = False) -> Path | None:
        """Write a record.

        Args:
            diagnosis: what was found.
            steps: the batches of the step; none where the data could not be read.
            final: whether the run stops here: this step can be replayed, however many others can.

        Returns:
            Its folder, or ``None`` when there are too many already, or it cannot be written.
        """
        try:
            return self._record(diagnosis, steps, final)
        except OSError as error:
            # What went wrong with the step must be said all the same.
            log.error("no flight record: %s", error)
            return None

    def _record(self, diagnosis: Diagnosis, steps: list[Step], final: bool) -> Path | None:
        assert self._trainer is not None
        trainer, module = self._trainer, self._module
        number = (steps[0].number if steps else trainer.global_step) + 1
        rank = f"-process-{trainer.global_rank}" if trainer.world_size > 1 else ""
        folder = self.directory / FLIGHT / f"step-{number:08d}{rank}"
        existing = sorted((self.directory / FLIGHT).glob(f"*/{RECORD}"))
        if len(existing) >= MOST_RECORDS and not final:
            return None
        # A step that went bad before, and now again, has its new weights and images recorded.
        (folder / BUNDLE).unlink(missing_ok=True)
        bundles = len(list((self.directory / FLIGHT).glob(f"*/{BUNDLE}")))
        replayable = bool(steps) and (final or bundles < MOST_BUNDLES)
        if replayable:
            write_tree(folder / BUNDLE, _bundle(module, steps))
        last = self._last
        content = {
            "format": 1,
            "step": number,
            "epoch": (number - 1) / module.steps_per_epoch,
            "cause": diagnosis.cause,
            "summary": diagnosis.summary,
            "advice": diagnosis.advice,
            "term": diagnosis.term,
            "module": diagnosis.module,
            "where": diagnosis.where,
            "files": diagnosis.files,
            "batch": [names_of(step.batch) for step in steps],
            "findings": [asdict(f) for f in diagnosis.findings],
            "terms": diagnosis.terms,
            "history": list(module.guard.history),
            "learning_rate": module.guard.highest_rate,
            "weight_scale": module.guard.weight_scale,
            "policy": module.config.on_nonfinite,
            "checkpoint": {"path": str(last), "step": checkpoint_step(last)} if last.exists() else None,
            "replay": f"omnivae replay {folder}" if replayable else None,
            "precision": str(trainer.precision),
            "device": str(module.device),
            "process": trainer.global_rank,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            **_construction(module),
        }
        write_atomic(folder / RECORD, (json.dumps(_json(content), indent=2, allow_nan=False) + "\n").encode())
        return folder


def replay(folder: str | Path) -> tuple[dict[str, Any], Diagnosis]:
    """Compute a recorded step again and diagnose it anew.

    Args:
        folder: a flight record.

    Returns:
        The record, and what the replay found.

    Raises:
        FileNotFoundError: when there is no record, or it has no replay bundle.
        ValueError: when the model of the run was not made of registered components.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"no flight record in {folder}: give a folder such as RUN/flight/step-00000012")
    record = json.loads((folder / RECORD).read_text())
    if not (folder / BUNDLE).is_file():
        reason = "the data could not be read" if record["cause"] == "data" else "enough other steps had been kept"
        raise FileNotFoundError(f"{folder} holds a record but nothing to replay: {reason}; {record['summary']}")
    if record["model"] is None:
        raise ValueError(
            f"{folder} is of a model that is not made of registered components: it cannot be built from JSON"
        )
    from omnivae.training.module import VAEModule

    bundle = read_tree(folder / BUNDLE)
    training: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["training"].items()}
    config = TrainingConfig(**training)
    losses = {name: from_config(tree) for name, tree in record["losses"].items()}
    vae = from_config(record["model"])
    module = VAEModule(
        vae, losses, config, total_steps=record["total_steps"], steps_per_epoch=record["steps_per_epoch"]
    )
    module.load_state_dict(bundle["state_dict"])
    module.train()
    device = torch.device("cuda" if "cuda" in record["device"] and torch.cuda.is_available() else "cpu")
    module.to(device)
    module.freezing.begin(bundle["steps"][0]["number"])
    guard = module.guard
    guard.context = _context(record["precision"], device)
    guard.half = record["precision"] == "16-mixed"
    guard.highest_rate, guard.weight_scale = record["learning_rate"], record["weight_scale"]
    guard.history.extend(record["history"])
    diagnosis = None
    for saved in bundle["steps"]:
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in saved["batch"].items()}
        step = Step(batch, saved["number"], saved["random_state"], [b.to(device) for b in saved["buffers"]])
        diagnosis = guard.diagnose(step)
        if diagnosis.cause != "unknown":
            break
    assert diagnosis is not None
    return record, diagnosis


def _bundle(module: Any, steps: list[Step]) -> dict[str, Any]:
    return {
        "state_dict": dict(module.state_dict()),
        "steps": [
            {
                "batch": dict(step.batch),
                "number": step.number,
                "random_state": step.random_state,
                "buffers": step.buffers,
            }
            for step in steps
        ],
    }


def _construction(module: Any) -> dict[str, Any]:
    try:
        model = to_config(module.vae)
        losses = {name: to_config(loss) for name, loss in module.losses.items()}
    except TypeError:
        # A model of the user's own classes has no JSON form: its step can be looked at, not replayed by the command.
        model, losses = None, None
    return {
        "model": model,
        "losses": losses,
        "training": asdict(module.config),
        "total_steps": module.total_steps,
        "steps_per_epoch": module.steps_per_epoch,
    }


def _context(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return value
