"""``omnivae evaluate``: a table on the screen and the card of the evaluation in a JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae evaluate``."""
    parser = make_parser(
        "evaluate",
        "Measure a model on images: a mean and a 95 % bootstrap interval for each metric.",
        "omnivae evaluate runs/photos --data.path photos/val --metrics psnr ssim nll --json result.json",
    )
    parser.add_argument("model", type=str | None, nargs="?", default=None, help="a model directory or a run")
    parser.add_argument("--checkpoint", type=str | None, default=None, help="another way to say MODEL")
    parser.add_argument(
        "--data.path",
        "--data_dir",
        type=str | None,
        default=None,
        help="the images; the run's own test images by default",
    )
    parser.add_argument(
        "--data.split",
        type=Literal["auto", "train", "val", "test", "all"],
        default="auto",
        help="auto: the test split where the data has one, every image of a folder otherwise",
    )
    parser.add_argument(
        "--world",
        type=str | None,
        default=None,
        help="dsprites, shapes3d or moving_sprites instead of --data.path: 2,000 of its images unless --data.limit says "
        "otherwise, and also mig, sap and dci_disentanglement unless --metrics does",
    )
    parser.add_argument(
        "--factors",
        type=str,
        nargs="+",
        default=[],
        help="numeric columns of a table of images, for the metrics of disentanglement",
    )
    parser.add_argument("--data.limit", type=int | None, default=None, help="at most so many images")
    parser.add_argument(
        "--data.image_size", "--resolution", type=int | None, default=None, help="another size than in training"
    )
    parser.add_argument("--data.num_workers", type=int, default=0, help="processes that load images; 0: this one")
    parser.add_argument(
        "--metrics",
        type=str,
        nargs="+",
        help="psnr, ssim, ms_ssim, mse, l1 and, where the posterior has a density, elbo unless told; also: "
        "nll (importance-weighted bound), bits_per_dim, kl, active_units, and of the latent space the groups aggregate, probes, "
        "uniformity, equivariance, smoothness, disentanglement and the metrics in them",
    )
    parser.add_argument(
        "--json",
        type=str | None,
        default=None,
        help="file for the card: means, intervals, values of each image, hashes, versions",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images loaded at once; changes no digit")
    parser.add_argument("--num_samples_nll", type=int, default=100, help="K of the importance-weighted bound")
    parser.add_argument("--seed", type=int, default=0, help="of the posterior noise and the bootstrap")
    parser.add_argument(
        "--precision",
        type=Literal["32", "bf16", "16", "auto"],
        default="32",
        help="of the networks; 32: the model's own figures",
    )
    return parser


def evaluate(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.jobs.evaluate import evaluate_model

    given = parse(build_parser(), argv)
    models = [name for name in (given.model, given.checkpoint) if name is not None]
    if len(models) != 1:
        raise ValueError(
            "say which model to measure: `omnivae evaluate MODEL`"
            if not models
            else f"got the model {models[0]} and --checkpoint {models[1]}; give one of them"
        )
    evaluation = evaluate_model(
        models[0],
        path=given.data.path,
        world=given.world,
        factors=given.factors,
        split=given.data.split,
        limit=given.data.limit,
        image_size=given.data.image_size,
        metrics=given.metrics,
        batch_size=given.batch_size,
        num_workers=given.data.num_workers,
        num_samples_nll=given.num_samples_nll,
        seed=given.seed,
        precision=given.precision,
    )
    if given.json:
        evaluation.to_json(given.json)
    console = Console(highlight=False)
    console.print(evaluation.table())
    for line in evaluation.lines():
        console.print(line, markup=False, soft_wrap=True)
    return 0
