"""Progress of a run: a rich bar with rate and time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning.pytorch as pl

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """Shows step, images (or sentences) a second, time left and the loss.

    Args:
        total_steps: steps of the whole run.
        line_every_s: seconds between lines where standard error is not a terminal.
    """

    def __init__(self, total_steps: int, line_every_s: float = 10.0) -> None:
        self.total_steps, self.line_every_s = total_steps, line_every_s
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the bar where the run starts or continues."""
        self._start = self._shown = time.perf_counter()
        self._first_step = trainer.global_step
        self._images = 0
        self._unit = "images" if getattr(pl_module.vae, "pixels", True) else "sentences"
        if not trainer.is_global_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self.total_steps, completed=trainer.global_step, text="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance; the loss is read from the device a few times a second at most."""
        self._images += len(batch["x"])
        now = time.perf_counter()
        last = trainer.global_step >= self.total_steps
        if now - self._shown < (0.25 if self._bar is not None else self.line_every_s) and not last:
            return
        self._shown = now
        step, elapsed = trainer.global_step, now - self._start
        rate = self._images / elapsed
        loss = float(pl_module.scalars.get("train/total", float("nan")))
        text = f"{rate:,.1f} {self._unit}/s  loss {loss:,.5g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif trainer.is_global_zero:
            left = elapsed / max(1, step - self._first_step) * (self.total_steps - step)
            log.info("step %d/%d  %s  left %s", step, self.total_steps, text, _clock(left))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave the bar as it stands."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the bar as it stands."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
