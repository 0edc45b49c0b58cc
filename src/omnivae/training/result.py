"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass

#: Folder of a run that holds its checkpoints.
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done.
        total_steps: optimiser steps asked for.
        stopped_by: name of the signal that stopped it, ``"posterior collapse"``, or ``None``.
    """

    step: int
    total_steps: int
    stopped_by: str | None

    @property
    def complete(self) -> bool:
        """Whether every step was done."""
        return self.step >= self.total_steps
