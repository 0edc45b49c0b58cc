"""What happens around the training steps: logs, checkpoints, validation figures, progress, a graceful stop."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from omnivae.files import write_atomic
from omnivae.training.checkpoint_io import SUFFIX, read_scalars
from omnivae.training.continuing import continue_optimizer
from omnivae.training.distributed import CHECKPOINT, SUPERVISOR, asks_at, gather, largest, mean_rows, note, several
from omnivae.training.result import CHECKPOINTS

log = logging.getLogger(__name__)

METRICS, KL_DIMENSIONS = "metrics.csv", "kl_per_dimension.csv"


def averaged_model(trainer: pl.Trainer, module: Any) -> nn.Module:
    """Return the model to look at: the moving average where there is one, else the weights being trained.

    Every process must ask; of a divided model rank 0 gets the weights.

    Args:
        trainer: the trainer.
        module: the module that is trained.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "averaged"):
            return callback.averaged(module)
    return module.whole_model()


class Table:
    """An append-only CSV file whose columns may grow; continuing a run drops the rows after the step it continues from.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = ["step", "epoch"]
        self._file: Any = None

    def open(self, step: int) -> None:
        """Open for appending, keeping the rows up to ``step``."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.columns)
                # A kill can leave half a line; it belongs to a step that will be repeated.
                rows = [row for row in reader if row["step"] and None not in row.values() and int(row["step"]) <= step]
        self._rewrite(rows)

    def write(self, row: dict[str, float]) -> None:
        """Append one row."""
        new = [name for name in row if name not in self.columns]
        if new:
            self.close()
            with self.path.open(newline="") as file:
                rows: list[Any] = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        self._writer.writerow({name: _short(value) for name, value in row.items()})

    def flush(self) -> None:
        """Hand what was written to the system, so that a killed process loses none of it."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        # Beside its place and renamed: a kill in between must not lose the rows of all steps before.
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())
        self._file = self.path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self.columns, restval="")


class RunLog(pl.Callback):
    """Writes ``metrics.csv``, ``kl_per_dimension.csv`` and TensorBoard events, one row a logged step.

    The dimensions of a model with several latents stand one level after the other, the top one first.

    Args:
        directory: the run.
        every: steps between rows.
    """

    def __init__(self, directory: Path, every: int) -> None:
        self.directory, self.every = directory, every
        self.table, self.dimensions = Table(directory / METRICS), Table(directory / KL_DIMENSIONS)
        self._pending: list[tuple[int, float, dict[str, Any], Tensor | None]] = []
        self._images = 0
        self._since = self._waited = 0.0
        self._last_flush = 0.0
        self._validation: dict[str, float] = {}
        self._count = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the tables where the run continues."""
        if not trainer.is_global_zero:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.table.open(trainer.global_step)
        self.dimensions.open(trainer.global_step)
        self.board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=trainer.global_step + 1)
        self._since = self._last_flush = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember the step's scalars; read them from the device a second later at most."""
        self._images += len(batch["x"])
        if trainer.fit_loop._should_accumulate() or trainer.global_step % self.every:
            return
        now = time.perf_counter()
        scalars = dict(pl_module.scalars)
        elapsed = max(now - self._since, 1e-9)
        scalars["train/images_per_s"] = self._images * trainer.world_size / elapsed
        waited = getattr(trainer.train_dataloader, "waited_s", 0.0)
        scalars["train/data_wait_share"] = min(1.0, (waited - self._waited) / elapsed)
        self._images, self._since, self._waited = 0, now, waited
        epoch = trainer.global_step / pl_module.steps_per_epoch
        self._pending.append((trainer.global_step, epoch, scalars, pl_module.kl_per_dimension))
        # All processes write together: a row is the mean of theirs.
        if asks_at(trainer.global_step, pl_module.device) and largest(int(now - self._last_flush > 1.0)):
            self.flush(trainer)

    def flush(self, trainer: pl.Trainer) -> None:
        """Write the remembered steps, averaged over the processes."""
        pending, self._pending = self._pending, []
        rows = mean_rows([{name: float(value) for name, value in scalars.items()} for _, _, scalars, _ in pending])
        dimensions = mean_rows(
            [{} if kl is None else {f"d{i}": v for i, v in enumerate(kl.tolist())} for _, _, _, kl in pending]
        )
        if trainer.is_global_zero:
            for (step, epoch, _, _), row, kl in zip(pending, rows, dimensions, strict=True):
                self.table.write({"step": step, "epoch": epoch, **row})
                if kl:
                    self.dimensions.write({"step": step, "epoch": epoch, **kl})
                for name, value in row.items():
                    self.board.add_scalar(name, value, step)
        if trainer.is_global_zero:
            self.table.flush()
            self.dimensions.flush()
        self._last_flush = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the batch's terms to the weighted mean."""
        for name, value in outputs["scalars"].items():
            self._validation[name] = self._validation.get(name, 0.0) + float(value) * outputs["count"]
        self._count += outputs["count"]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the validation row, and publish the total for the best checkpoint."""
        sums: dict[str, float] = {}
        parts = gather((self._validation, self._count))
        count = sum(part for _, part in parts)
        for part, _ in parts:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: value / count for name, value in sums.items()} if count else {}
        # Of all images together, not a mean over batches.
        means |= pl_module.codes.figures("val") | pl_module.holes.figures(pl_module.vae, trainer.global_step)
        self._validation, self._count = {}, 0
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in means.items()})
        if means:
            self.flush(trainer)
        if means and trainer.is_global_zero:
            self.table.write(
                {"step": trainer.global_step, "epoch": trainer.global_step / pl_module.steps_per_epoch, **means}
            )
            self.table.flush()
            for name, value in means.items():
                self.board.add_scalar(name, value, trainer.global_step)
        # Validation is not training time.
        self._images, self._since = 0, time.perf_counter()
        self._waited = getattr(trainer.train_dataloader, "waited_s", 0.0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write what is left and close."""
        self.flush(trainer)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write the steps that led there, which is what a diagnosis is made from, and close."""
        try:
            # Several processes write together, and the others may be gone.
            if not several():
                self.flush(trainer)
            self._close()
        except Exception as error:
            # What stopped the run is what must be heard: a full disk, or a device that fails, stops this as well.
            log.warning("the last rows of %s were not written: %s", self.table.path, " ".join(str(error).split()))

    def _close(self) -> None:
        self.table.close()
        self.dimensions.close()
        if hasattr(self, "board"):
            self.board.close()


class Checkpoints(pl.Callback):
    """Keeps ``last`` and ``best`` in ``checkpoints/`` and the model directory up to date.

    Args:
        directory: the run.
        every: steps between checkpoints.
        save_model: writes the model directory.
    """

    def __init__(self, directory: Path, every: int, save_model: Callable[[nn.Module], None]) -> None:
        self.directory, self.every, self._save_model = directory / CHECKPOINTS, every, save_model
        self.best = math.inf
        self._saved = -1
        self._due = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation total so far."""
        return {"best": self.best if math.isfinite(self.best) else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best validation total."""
        self.best = math.inf if state_dict["best"] is None else state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Let the optimiser continue; know the best of a validation that came after ``last`` was written."""
        for optimizer, schedule in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            continue_optimizer(optimizer, schedule.scheduler)  # type: ignore[arg-type]
        best = self.directory / f"best{SUFFIX}"
        if trainer.global_step and best.exists():
            found = read_scalars(best)["callbacks"][self.state_key]["best"]
            self.best = min(self.best, math.inf if found is None else found)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save where it is time."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate() or step == self._saved:
            return
        self._due = self._due or step % self.every == 0
        # While updates are being skipped, the weights may be what is wrong: the checkpoint before is the one to keep.
        if (self._due and not pl_module.guard.in_a_row) or step >= trainer.max_steps:
            self.save(trainer, pl_module)
            self._due = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep a copy of the best."""
        total = trainer.callback_metrics.get("val/total")
        if trainer.sanity_checking or total is None or not float(total) < self.best:
            return
        self.best = float(total)
        trainer.save_checkpoint(self.directory / f"best{SUFFIX}")

    def save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write ``last`` and the model directory."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunLog):
                # A run continued from here must find the rows of every step before.
                callback.flush(trainer)
        # The model first: where the run is cut off in between, the same steps come again and write it again. A checkpoint of
        # the last step beside an older model would pass for a finished run.
        model = averaged_model(trainer, pl_module)
        if trainer.is_global_zero:
            self._save_model(model)
        trainer.save_checkpoint(self.directory / f"last{SUFFIX}")
        self._saved = trainer.global_step
        note(CHECKPOINT, self._saved)


class Pictures(pl.Callback):
    """Calls ``draw(model, step)`` now and then: reconstructions and samples while training runs.

    Args:
        every: steps between pictures.
        draw: writes them.
    """

    def __init__(self, every: int, draw: Callable[[nn.Module, int], None]) -> None:
        self.every, self._draw = every, draw

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw where it is time; the random stream of the training is left where it was."""
        if trainer.global_step % self.every or trainer.fit_loop._should_accumulate():
            return
        model = averaged_model(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        was_training = model.training
        with torch.random.fork_rng(devices=[pl_module.device] if pl_module.device.type == "cuda" else []):
            torch.manual_seed(0)
            self._draw(model.eval(), trainer.global_step)
        model.train(was_training)


class GracefulStop(pl.Callback):
    """On Ctrl-C or SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once.

    Of several processes any one can be asked; they stop after the same step. They also stop when their launcher is gone.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}
        self._launcher = int(os.environ.get(SUPERVISOR, os.getppid()))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the signals over; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop after the step in which the signal came."""
        if trainer.fit_loop._should_accumulate() or not asks_at(trainer.global_step, pl_module.device):
            return
        if several() and os.getppid() != self._launcher and self.received is None:
            self.received = signal.SIGHUP.name
            log.warning("the process that started this one is gone: finishing this step and saving")
        number = largest(0 if self.received is None else int(signal.Signals[self.received]))
        if not number:
            return
        self.received = signal.Signals(number).name
        save_and_stop(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None:
            self._restore()
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        log.warning("%s: finishing this step and saving", self.received)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def save_and_stop(trainer: pl.Trainer, pl_module: Any) -> None:
    """Write a checkpoint of this step, unless it is there already, and end the run after it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints) and callback._saved != trainer.global_step:
            callback.save(trainer, pl_module)
    trainer.should_stop = True


def _short(value: float) -> str:
    return str(value) if isinstance(value, (int, str)) else f"{value:.7g}"
