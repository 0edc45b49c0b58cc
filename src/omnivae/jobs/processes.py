"""A training run in several processes of this machine: who starts them, and what each of them does."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from omnivae.jobs.config import RunConfig
from omnivae.training import FitResult
from omnivae.training.launch import launch


def train_in_processes(config: RunConfig, directory: Path, wanted: Mapping[str, bool]) -> FitResult:
    """Start the processes that a configuration asks for, and wait for them.

    They are new processes, so this works in programs and notebooks alike, and nothing of the calling program runs twice.

    Args:
        config: the run.
        directory: its directory.
        wanted: the other arguments of :func:`omnivae.jobs.train.train`.

    Returns:
        How far it came; nothing where rank 0 is on another machine.

    Raises:
        ChildProcessError: when one of them fails or is lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml())
        what = [str(path), str(directory.absolute()), json.dumps(dict(wanted))]
        text = launch([sys.executable, "-m", "omnivae.cli.worker", *what], config.training)
    return FitResult(**json.loads(text)) if text else FitResult(0, 0, None)
