"""``omnivae zoo`` and ``omnivae bench-family``: which members the family has, and how they compare on the user's data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def zoo_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae zoo``."""
    parser = make_parser(
        "zoo",
        "List the recipes: what each is for, what it minimises, and the paper.",
        "omnivae zoo vq_vae",
    )
    parser.add_argument("recipes", type=str, nargs="*", help="recipes to show in full; all in brief by default")
    parser.add_argument("--json", type=bool, default=False, help="print JSON instead of text")
    return parser


def zoo(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.recipes import MEMBERS
    from omnivae.recipes.family import members

    given = parse(zoo_parser(), argv)
    chosen = members(given.recipes or list(MEMBERS))
    if given.json:
        print(json.dumps([asdict(member) for member in chosen], indent=2, ensure_ascii=False, default=dict))
        return 0
    console = Console(highlight=False)
    for member in chosen:
        console.print(f"[bold]{member.name}[/bold]  {_plain(member.purpose)}")
        console.print(f"    {member.equation}", markup=False)
        console.print(f"    {member.paper}", markup=False, style="dim")
        if given.recipes:
            losses = ", ".join(f"{name} {dict(arguments) or ''}".strip() for name, arguments in member.losses.items())
            console.print(f"    losses: {losses}", markup=False)
            for section in ("data", "training"):
                asked = getattr(member, section)
                if asked:
                    console.print(f"    {section}: {dict(asked)}", markup=False)
            console.print(
                f"    omnivae train --model.recipe {member.name} --data.path FOLDER --output runs/{member.name}",
                markup=False,
            )
    if not given.recipes:
        console.print(
            f"\n{len(chosen)} recipes; `omnivae zoo NAME` shows one in full, `omnivae bench-family FOLDER --recipes ...` compares"
        )
    return 0


def bench_family_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae bench-family``."""
    from omnivae.data import DataConfig
    from omnivae.jobs.family import METRICS

    parser = make_parser(
        "bench-family",
        "Train several recipes on the same images, for the same steps, from the same seeds, and put them on one page; the same "
        "command continues.",
        "omnivae bench-family digits --recipes conv_vae beta_vae vamp_vae --output runs/family --steps 500",
    )
    parser.add_argument("data_path", metavar="DATA", type=str, help="as --data.path of omnivae train")
    parser.add_argument("--recipes", type=str, nargs="+", required=True, help="two or more; `omnivae zoo` lists them")
    parser.add_argument("--output", type=str, required=True, help="directory for the runs, the table and the page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each recipe for each")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each run")
    parser.add_argument("--batch_size", type=int, default=64, help="images in a step")
    parser.add_argument(
        "--learning_rate", type=float | None, default=None, help="of every run; each paper's own, or 1e-3, by default"
    )
    parser.add_argument("--latent_dim", type=int | None, default=None, help="of every recipe that has one")
    parser.add_argument("--channels", type=list[int] | None, default=None, help="of every recipe that has them")
    parser.add_argument(
        "--metrics",
        type=str,
        nargs="+",
        default=list(METRICS),
        help=f"by default {' '.join(METRICS)}, where they exist",
    )
    parser.add_argument("--images", type=int, default=1000, help="at most so many test images")
    parser.add_argument("--num_samples_nll", type=int, default=100, help="K of the importance-weighted bound")
    parser.add_class_arguments(DataConfig, "data", skip={"path"})
    return parser


def bench_family(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.data import DataConfig
    from omnivae.jobs.family import Plan, compare_family

    given = parse(bench_family_parser(), argv)
    plan = Plan(
        data=DataConfig(path=given.data_path, **given.data.as_dict()),
        recipes=tuple(given.recipes),
        seeds=tuple(given.seeds),
        steps=given.steps,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        latent_dim=given.latent_dim,
        channels=None if given.channels is None else tuple(given.channels),
        metrics=tuple(given.metrics),
        images=given.images,
        num_samples_nll=given.num_samples_nll,
    )
    result = compare_family(plan, given.output)
    console = Console(highlight=False)
    console.print(result.table())
    for line in result.notes():
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"open {given.output}/family.html", markup=False, soft_wrap=True)
    return 0


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


PARSERS = {"zoo": zoo_parser, "bench-family": bench_family_parser}
