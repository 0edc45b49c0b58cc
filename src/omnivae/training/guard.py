"""Keeps a bad step away from the weights: a loss, gradient or log-variance that went bad stops the run or is skipped.

The update is what loses a run: weights, optimiser moments and moving average that took in one NaN never recover. The
verdict is therefore spoken before every update, and all processes of a distributed run speak the same one. Reading it
waits for the device once a step.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from omnivae.training.diagnosis import (
    CLAMPED_SHARE,
    Diagnosis,
    Step,
    clamped_share,
    diagnose,
    random_state,
    stateful_buffers,
)
from omnivae.training.distributed import FailedElsewhere
from omnivae.training.inputs import InputFinding, inspect_inputs

log = logging.getLogger(__name__)

#: With ``on_nonfinite: skip``, so many skipped updates in a row are a run that no longer learns.
MOST_SKIPPED_IN_A_ROW = 20
#: Steps whose totals are remembered.
HISTORY = 50


class Recorder(Protocol):
    """Writes flight records; see :class:`~omnivae.training.flight.FlightRecorder`."""

    def record(self, diagnosis: Diagnosis, steps: list[Step], *, final: bool = False) -> Path | None:
        """Write a record of a step that went bad; return its folder, or ``None`` when there are too many."""

    def last_good(self) -> str:
        """Say where the last good checkpoint is."""


class Guard:
    """Watches the steps of one run.

    Args:
        module: the :class:`VAEModule`.
        policy: "stop" or "skip".
    """

    def __init__(self, module: nn.Module, policy: str) -> None:
        self.module, self.policy = module, policy
        self.recorder: Recorder | None = None
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.half = False
        self.skipped = self.in_a_row = 0
        self.history: deque[dict[str, float]] = deque(maxlen=HISTORY)
        self.weight_scale: float | None = None
        self.highest_rate = 0.0
        self._steps: list[Step] = []
        self._bad: list[str] = []
        self._warned: set[str] = set()
        self._findings: list[InputFinding] = []
        self._buffers: list[Tensor] = []

    def start(self) -> None:
        """Measure the weights that the run starts from, and list the buffers that a step may change."""
        self._buffers = stateful_buffers(self.module)
        with torch.no_grad():
            parameters = [p for p in self.module.parameters() if p.requires_grad]
            squares = sum(float(p.double().square().sum()) for p in parameters)
            self.weight_scale = math.sqrt(squares / max(1, sum(p.numel() for p in parameters)))

    # -- before the forward pass

    def look_at(self, batch: Mapping[str, Any]) -> None:
        """Look at a batch while it is still in main memory.

        Args:
            batch: as the loader gave it.
        """
        self._findings = inspect_inputs(batch)
        for finding in self._findings:
            if finding.kind != "not_finite" and finding.file not in self._warned:
                if len(self._warned) == 10:
                    log.warning("more images without contrast follow; `omnivae inspect` lists them")
                if len(self._warned) < 10:
                    log.warning("%s: %s; it is trained on as it is", finding.file, finding.detail)
                self._warned.add(finding.file)

    @property
    def broken_inputs(self) -> list[InputFinding]:
        """Images of the present batch with values that are not finite."""
        return [f for f in self._findings if f.kind == "not_finite"]

    def begin(self, batch: Any, number: int, first: bool) -> None:
        """Remember what a step is computed from.

        Args:
            batch: the images.
            number: optimiser steps done.
            first: whether it is the first batch of an optimiser step.
        """
        if first:
            self._steps, self._bad = [], []
        self._steps.append(Step(batch, number, random_state(), [b.detach().clone() for b in self._buffers]))

    # -- between forward pass and update

    def note(self, total: Tensor, output: Any) -> None:
        """Remember a total, and whether the posterior's log-variance stands at its bound.

        Args:
            total: the total loss of one batch, without graph.
            output: the model's output.
        """
        if not math.isfinite(float(total)):
            self._bad.append("loss")
        elif clamped_share(output) > CLAMPED_SHARE:
            self._bad.append("log-variance")

    def diagnose_present(self) -> Diagnosis | None:
        """Diagnose the batch that is being computed; ``None`` when no number in it is bad."""
        found = self.diagnose(self._steps[-1])
        return None if found.cause == "unknown" and found.module is None and found.term is None else found

    def note_failure(self, what: str) -> None:
        """Remember that a batch could not be computed.

        Args:
            what: "input" or what the forward pass raised.
        """
        self._bad.append(what)

    def verdict(self, norm: Tensor | None, rate: float) -> bool:
        """Say whether the update may be made; called when all gradients of a step are there.

        Args:
            norm: their norm.
            rate: the learning rate.

        Returns:
            ``True`` for a good step; ``False`` for one that is skipped.

        Raises:
            FloatingPointError: when the run stops here; names cause, step and flight record.
        """
        self.highest_rate = max(self.highest_rate, rate)
        finite = norm is None or math.isfinite(float(norm))
        # Gradient scaling for float16 overflows on purpose now and then, and skips that update itself.
        if not finite and not (self.half and self.in_a_row < MOST_SKIPPED_IN_A_ROW):
            self._bad.append("gradient")
        own = bool(self._bad)
        if not _anywhere(own):
            self.in_a_row = 0 if finite else self.in_a_row + 1
            return True
        self._restore_buffers()
        self.skipped += 1
        self.in_a_row += 1
        final = self.policy == "stop" or self.in_a_row > MOST_SKIPPED_IN_A_ROW
        folder, diagnosis = self._examine(final) if own else (None, None)
        if final:
            raise (FloatingPointError if own else FailedElsewhere)(self._sentence(diagnosis, folder))
        if diagnosis is not None:
            log.warning("update of step %d skipped: %s", self._steps[0].number + 1, diagnosis.summary)
        return False

    def passed(self, number: int, total: float) -> None:
        """Remember the total of a good step.

        Args:
            number: optimiser steps done before.
            total: its value.
        """
        self.history.append({"step": float(number + 1), "total": total})

    # -- inside

    def _examine(self, final: bool) -> tuple[Path | None, Diagnosis | None]:
        if torch.distributed.is_available() and torch.distributed.is_initialized() and _synchronises(self.module):
            # Computing the step again would wait for processes that do not.
            return None, None
        diagnosis = self.diagnose(self._steps[0])
        for step in self._steps[1:]:
            if diagnosis.cause != "unknown":
                break
            diagnosis = self.diagnose(step)
        folder = self.recorder.record(diagnosis, self._steps, final=final) if self.recorder is not None else None
        return folder, diagnosis

    def diagnose(self, step: Step) -> Diagnosis:
        """Find out why a step went bad.

        Args:
            step: what it was computed from.

        Returns:
            The cause.
        """
        return diagnose(
            self.module,
            step,
            context=self.context,
            half=self.half,
            learning_rate=self.highest_rate,
            weight_scale=self.weight_scale,
            history=list(self.history),
        )

    def _restore_buffers(self) -> None:
        # The forward pass has put the bad values into the running statistics already.
        with torch.no_grad():
            for buffer, value in zip(self._buffers, self._steps[0].buffers, strict=True):
                buffer.copy_(value)

    def _sentence(self, diagnosis: Diagnosis | None, folder: Path | None) -> str:
        step = self._steps[0].number + 1
        many = f" and {MOST_SKIPPED_IN_A_ROW} updates before it" if self.in_a_row > MOST_SKIPPED_IN_A_ROW else ""
        if diagnosis is None:
            where = "with a loss or gradient that is not finite" if self._bad else "in another process, which says why"
            return f"step {step}{many} went bad {where}; no update was made"
        what = diagnosis.term or "the step"
        value = diagnosis.terms.get(what)
        got = f" is {value}" if value is not None and not math.isfinite(value) else " went bad"
        record = f"; flight record: {folder}" if folder is not None else ""
        if folder is not None and any(folder.glob("replay.*")):
            record += f", replay with `omnivae replay {folder}`"
        saved = f"; {self.recorder.last_good()}" if self.recorder is not None else ""
        return f"{what}{got} at step {step}{many}: {diagnosis.summary}: {diagnosis.advice}{record}{saved}"


def _anywhere(bad: bool) -> bool:
    """Return whether a step went bad in any process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return bad
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(float(bad), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def _synchronises(module: nn.Module) -> bool:
    return any(isinstance(m, (nn.SyncBatchNorm, FSDPModule)) for m in module.modules())
