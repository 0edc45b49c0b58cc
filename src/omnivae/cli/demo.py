"""``omnivae demo``: two small models on embedded data, two reports."""

from __future__ import annotations

from collections.abc import Sequence

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae demo``."""
    parser = make_parser(
        "demo",
        "Train a TransVAE on real photographs and a beta-VAE on real handwritten digits, without any download.",
        "omnivae demo --output demo",
    )
    parser.add_argument("--output", type=str, default="demo", help="directory for the two runs")
    parser.add_argument("--steps", type=int | None, default=None, help="optimiser steps of each run, for a quick look")
    return parser


def demo(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.demo import demo as run_demo

    given = parse(build_parser(), argv)
    if given.steps is not None and given.steps < 1:
        raise ValueError(f"got --steps {given.steps}; expected at least 1")
    for path in run_demo(given.output, steps=given.steps):
        print(f"open {path}")
    return 0
