"""``omnivae doctor``: what a run's logs say, and what to change."""

from __future__ import annotations

from collections.abc import Sequence

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae doctor``."""
    parser = make_parser(
        "doctor",
        "Read a run's logs and say what is wrong and which option to change. Exit code 1 where a finding is critical.",
        "omnivae doctor runs/photos --json findings.json",
    )
    parser.add_argument("run", type=str, help="the directory of a run")
    parser.add_argument("--json", type=str | None, default=None, help="file for the findings")
    parser.add_argument(
        "--look", type=bool, default=True, help="also look at a few images and their reconstructions; false: logs only"
    )
    return parser


def doctor(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.jobs.doctor import examine
    from omnivae.jobs.doctor.examine import to_text, write_json

    given = parse(build_parser(), argv)
    examination = examine(given.run, look=given.look)
    if given.json:
        write_json(examination, given.json)
    Console(highlight=False).print(to_text(examination))
    return 1 if examination.worst == "critical" else 0
