"""``omnivae arithmetic``, ``anomaly``, ``denoise`` and ``impute``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal  # noqa: F401

import jsonargparse

from omnivae.cli.look import _add_precision
from omnivae.cli.parsing import make_parser, parse


def arithmetic_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae arithmetic``."""
    parser = make_parser(
        "arithmetic",
        "Add what two groups of images differ by to other images, in growing strength.",
        "omnivae arithmetic runs/faces --plus smiling/ --minus neutral/ --to a.png --output smile.png",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("--plus", type=str | None, default=None, help="folder of images with the attribute")
    parser.add_argument("--minus", type=str | None, default=None, help="folder of images without it")
    parser.add_argument(
        "--plus_label", type=str | None, default=None, help="class with the attribute, in place of the folders"
    )
    parser.add_argument(
        "--minus_label", type=str | None, default=None, help="class without it; every other class by default"
    )
    parser.add_argument(
        "--data.path",
        type=str | None,
        default=None,
        help="the labelled images of the classes; the run's own by default",
    )
    parser.add_argument("--to", type=str, nargs="+", required=True, help="image files to change, a row each")
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=[-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0],
        help="multiples of the difference, a column each",
    )
    parser.add_argument("--output", type=str, default="arithmetic.png", help="picture to write")
    _add_precision(parser)
    return parser


def arithmetic(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.arithmetic import arithmetic_files

    given = parse(arithmetic_parser(), argv)
    found = arithmetic_files(
        given.model,
        given.to,
        given.output,
        plus=given.plus,
        minus=given.minus,
        plus_label=given.plus_label,
        minus_label=given.minus_label,
        path=given.data.path,
        strengths=given.strengths,
        precision=given.precision,
    )
    print(
        f"{given.output}: {found.num_plus:,} images with the attribute, {found.num_minus:,} without, "
        f"AUROC along the vector {found.separation:.3f}"
    )
    return 0


#: Command -> its parser, for the test that freezes the options.
PARSERS: dict[str, Callable[[], jsonargparse.ArgumentParser]] = {
    "arithmetic": arithmetic_parser,
}
