"""``omnivae compare``: whether the difference between two evaluations is real, in a table and one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae compare``."""
    parser = make_parser(
        "compare",
        "Compare two evaluations image by image, and say whether the difference is real.",
        "omnivae compare before.json after.json --png difference.png",
    )
    parser.add_argument("a", type=str, help="card of the one model: a file written by evaluate --json, or a run")
    parser.add_argument("b", type=str, help="card of the other model; differences are B - A")
    parser.add_argument(
        "--metrics", type=str, nargs="+", default=None, help="which to compare; by default all that both have"
    )
    parser.add_argument(
        "--common", action="store_true", help="compare the images that both cards have, where they are not the same"
    )
    parser.add_argument("--flips", type=int, default=10_000, help="random sign patterns of the permutation test")
    parser.add_argument("--bootstrap", type=int, default=10_000, help="resamples of the intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the permutations and the bootstrap")
    parser.add_argument("--json", type=str | None, default=None, help="file for all figures, also those of each image")
    parser.add_argument("--png", type=str | None, default=None, help="file for a picture of the paired differences")
    return parser


def compare(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.jobs.compare import compare_cards

    given = parse(build_parser(), argv)
    comparison = compare_cards(
        given.a,
        given.b,
        metrics=given.metrics,
        common=given.common,
        flips=given.flips,
        bootstrap=given.bootstrap,
        seed=given.seed,
        json=given.json,
        png=given.png,
    )
    console = Console(highlight=False)
    console.print(comparison.table())
    for line in comparison.lines():
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    console.print(comparison.verdict, style="bold", markup=False)
    return 0
