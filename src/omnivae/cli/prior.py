"""``omnivae prior``: train a prior over the codes of a quantised model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from omnivae.cli.parsing import make_parser, parse
from omnivae.jobs.prior import PriorConfig, train_prior
from omnivae.training import TrainingConfig


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae prior``."""
    parser = make_parser(
        "prior",
        "Train a prior over the codes of a quantised model, or continue: then `omnivae sample` draws images from its output.",
        "omnivae prior runs/vq --output runs/vq-prior --training.max_steps 5000",
    )
    parser.add_argument("model", type=str, help="a quantised model directory or a run (vq_vae, fsq_vae, ...)")
    parser.add_argument("--output", type=str, default=None, help="directory of the second stage; required")
    parser.add_argument("--data.path", type=str | None, default=None, help="the images; the run's own by default")
    parser.add_class_arguments(PriorConfig, "prior")
    parser.add_class_arguments(TrainingConfig, "training")
    return parser


def prior(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = build_parser()
    given = parse(parser, argv)
    if given.output is None:
        raise ValueError("say where the prior goes: --output DIRECTORY")
    built = parser.instantiate_classes(given)
    result, likelihood = train_prior(
        given.model, given.output, prior=built.prior, training=built.training, path=given.data.path
    )
    if likelihood is None:
        print(
            f"stopped by {result.stopped_by} at step {result.step} of {result.total_steps}; the same command continues"
        )
        return 0
    print("\n".join(likelihood.lines()))
    model = Path(given.output) / "model"
    print(f"{result.step} steps done; the model with its prior is in {model}: omnivae sample {given.output}")
    return 0
