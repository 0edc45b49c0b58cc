"""``python -m omnivae.cli.worker CONFIG OUTPUT OPTIONS``: one of the processes of ``train_in_processes``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from omnivae.cli.main import set_up_process
from omnivae.jobs.config import RunConfig, read_yaml
from omnivae.jobs.train import train
from omnivae.training.distributed import first_to_report


def main(argv: Sequence[str]) -> int:
    """Train; what goes wrong is left for the process that started this one, which says it.

    Args:
        argv: configuration, run directory, and the other arguments of :func:`omnivae.jobs.train.train` as JSON.

    Returns:
        Exit code.
    """
    path, output, options = argv
    set_up_process()
    try:
        train(RunConfig.from_dict(read_yaml(path)), output, **json.loads(options))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        first_to_report(error)
        if os.environ.get("OMNIVAE_DEBUG"):
            raise
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
