"""``omnivae plan``: shapes, memory and time of a size, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def plan_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae plan``."""
    parser = make_parser(
        "plan",
        "Say what encoding and decoding images of a size takes: shapes, padding, memory, tiles and time.",
        "omnivae plan maisi_vae --input 1x512x512x300 --memory 4GB",
    )
    parser.add_argument("model", type=str, help="a run, a model directory, or the name of a recipe")
    parser.add_argument("--input", type=str, required=True, help="channels and size of an image, such as 1x512x512x300")
    parser.add_argument("--memory", type=str | None, default=None, help="budget for exact tiles, such as 4GB")
    parser.add_argument(
        "--measure", type=bool, default=True, help="with --memory, compute small regions to estimate the time"
    )
    return parser


def plan(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.plan import parse_shape, plan_model

    given = parse(plan_parser(), argv)
    print(plan_model(given.model, parse_shape(given.input), memory=given.memory, measure=given.measure))
    return 0


#: Command -> its parser, for the test that freezes the options.
PARSERS: dict[str, Callable[[], jsonargparse.ArgumentParser]] = {"plan": plan_parser}
