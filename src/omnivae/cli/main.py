"""Entry point: ``omnivae COMMAND ...``; every mistake is one sentence and exit code 2."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from omnivae.component import suggestion

#: Command -> (module, one sentence).
COMMANDS = {
    "inspect": ("omnivae.cli.inspect", "say what a data set holds and what would stop a run on it"),
    "inspect-checkpoint": ("omnivae.cli.checkpoint", "say what foreign weights are, and prove that they load right"),
    "train": ("omnivae.cli.train", "train a model on images, or continue a run"),
    "evaluate": ("omnivae.cli.evaluate", "measure a model on images, with intervals"),
    "encode": ("omnivae.cli.encode", "write the latents of images into a store"),
    "decode": ("omnivae.cli.encode", "turn a store of latents back into pictures"),
    "plan": ("omnivae.cli.plan", "say what a size takes in memory and time, and the tiles that would fit"),
    "calibrate": ("omnivae.cli.encode", "measure a model's latents and save the figures with it"),
    "compare": ("omnivae.cli.compare", "say whether the difference between two evaluations is real"),
    "reconstruct": ("omnivae.cli.look", "encode and decode image files"),
    "prior": ("omnivae.cli.prior", "train a prior over the codes of a quantised model"),
    "sample": ("omnivae.cli.look", "draw images from the prior"),
    "interpolate": ("omnivae.cli.look", "walk between images through the latent"),
    "traverse": ("omnivae.cli.look", "vary one latent dimension at a time"),
    "arithmetic": ("omnivae.cli.latent", "add what two groups of images differ by to other images"),
    "transfer": ("omnivae.cli.look", "decode images of a conditional model as something else"),
    "anomaly": ("omnivae.cli.latent", "score how odd images are, and flag those above a calibrated threshold"),
    "denoise": ("omnivae.cli.latent", "remove noise with a model that was trained to"),
    "impute": ("omnivae.cli.latent", "fill missing pixels with what a model expects there"),
    "report": ("omnivae.cli.look", "write one self-contained HTML page about a model"),
    "inflate": ("omnivae.cli.inflate", "lift a model of images to clips"),
    "doctor": ("omnivae.cli.doctor", "read a run's logs and say which option to change"),
    "replay": ("omnivae.cli.replay", "compute a training step that went bad again, and say why it did"),
    "zoo": ("omnivae.cli.zoo", "list the recipes with purpose, equation and paper"),
    "bench-family": ("omnivae.cli.zoo", "train several recipes under one budget and compare them on one page"),
    "phantoms": ("omnivae.cli.phantoms", "draw CT, MR and microscopy volumes with known truth, without a download"),
    "demo": ("omnivae.cli.demo", "train two small models on embedded data and write their reports"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments after the program's name.

    Returns:
        Exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    command, arguments = argv[0], argv[1:]
    if command == "--version":
        from importlib.metadata import version

        print(f"omnivae {version('omnivae')}")
        return 0
    if command not in COMMANDS:
        print(
            f"omnivae: error: unknown command {command!r}{suggestion(command, COMMANDS)}; expected {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    set_up_process(saves_memory=any(argument.partition("=")[0] == "--memory" for argument in arguments))
    try:
        return int(getattr(importlib.import_module(COMMANDS[command][0]), command.replace("-", "_"))(arguments) or 0)
    except KeyboardInterrupt:
        print(f"omnivae {command}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError, MemoryError) as error:
        if os.environ.get("OMNIVAE_DEBUG"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"omnivae {command}: error: {text}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("OMNIVAE_DEBUG"):
            raise
        text = " ".join(str(error).split())
        print(
            f"omnivae {command}: unexpected {type(error).__name__}: {text} (OMNIVAE_DEBUG=1 shows the traceback)",
            file=sys.stderr,
        )
        return 2


def usage() -> str:
    """Return the help of the program: its commands and the first two to try."""
    rows = "\n".join(f"  {name:<18} {sentence}" for name, (_, sentence) in COMMANDS.items())
    return (
        "usage: omnivae COMMAND ...\n\nVariational autoencoders: train, evaluate and look at them.\n\n"
        f"commands:\n{rows}\n\n"
        "first steps:\n  omnivae demo\n  omnivae train --data.path MY_FOLDER --output runs/mine\n\n"
        "`omnivae COMMAND --help` lists a command's options, with an example. "
        "OMNIVAE_DEBUG=1 shows the whole traceback of an error."
    )


def set_up_process(*, saves_memory: bool = False) -> None:
    """Prepare a process that belongs to a command: memory, and what is logged.

    Args:
        saves_memory: the user has named a budget, which memory that is kept for speed would exceed by a third.
    """
    # Settings of the whole process: right for a program, wrong for a library that is a guest in somebody's process.
    from omnivae.training.device import keep_freed_memory

    if not saves_memory:
        keep_freed_memory()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    # Of several processes the first one speaks.
    logging.getLogger("omnivae").setLevel(logging.ERROR if os.environ.get("RANK", "0") != "0" else logging.INFO)


class _Once(logging.Filter):
    """Lets a note on the data through once: a command may look at them more than once, to choose a model and to train it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self.said or not record.name.startswith("omnivae.data")
        self.said.add(text)
        return new


if __name__ == "__main__":
    sys.exit(main())
