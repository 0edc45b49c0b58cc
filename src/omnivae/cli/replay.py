"""``omnivae replay``: compute the step of a flight record again, and say whether it goes bad again."""

from __future__ import annotations

from collections.abc import Sequence

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae replay``."""
    parser = make_parser(
        "replay",
        "Compute the step of a flight record again, from the weights, images and random state that it holds. Exit code 0 "
        "when it goes bad again, 1 when it does not.",
        "omnivae replay runs/photos/flight/step-00000012",
    )
    parser.add_argument("record", type=str, help="folder of a flight record, below RUN/flight")
    return parser


def replay(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.training import replay as replay_step

    given = parse(build_parser(), argv)
    record, found = replay_step(given.record)
    print(f"step {record['step']}, recorded as {record['cause']}: {record['summary']}")
    for name, value in found.terms.items():
        print(f"  {name:<24} {value:.6g}")
    sound = found.cause == "unknown" and found.term is None and found.module is None
    if sound:
        print(f"replayed: the step is finite on this machine (recorded on {record['device']}, {record['precision']})")
        return 1
    where = f" first in {found.module}, {found.where};" if found.module else ""
    print(f"replayed: {found.cause};{where} {found.summary}: {found.advice}")
    return 0
