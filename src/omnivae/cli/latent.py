"""``omnivae arithmetic``, ``anomaly``, ``denoise`` and ``impute``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jsonargparse

from omnivae.cli.look import CONDITION, _add_precision
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
    parser.add_argument("--cond", type=str | None, default=None, help=f"what the images to change are, {CONDITION}")
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
        cond=given.cond,
        precision=given.precision,
    )
    print(
        f"{given.output}: {found.num_plus:,} images with the attribute, {found.num_minus:,} without, "
        f"AUROC along the vector {found.separation:.3f}"
    )
    return 0


def anomaly_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae anomaly``."""
    parser = make_parser(
        "anomaly",
        "Score how odd images or volumes are, and flag those above a threshold calibrated on held-out normal ones; of volumes also "
        "a map of each in its own geometry.",
        "omnivae anomaly runs/healthy --normal healthy/held-out --data.path patients/ --output anomalies/",
    )
    parser.add_argument("model", type=str, help="a model directory or a run, trained on normal images")
    parser.add_argument("--data.path", type=str, required=True, help="images to score")
    parser.add_argument(
        "--normal",
        type=str | None,
        default=None,
        help="normal images that the model was not trained on, for the threshold; the run's test images by default",
    )
    parser.add_argument(
        "--scores",
        type=str,
        nargs="+",
        help="reconstruction (squared error), elbo, nll (importance-weighted), regret (likelihood regret; slow); of volumes mean, "
        "peak and max of the map; all by default",
    )
    parser.add_argument("--rate", type=float, default=0.05, help="share of normal images to be flagged")
    parser.add_argument(
        "--normal_label",
        type=str | None,
        default=None,
        help="class of the normal images to score, for AUROC; good, normal, healthy or ok by default",
    )
    parser.add_argument("--num_worst", type=int, default=8, help="images in the picture of the worst")
    parser.add_argument("--num_samples_nll", type=int, default=50, help="K of the importance-weighted bound")
    parser.add_argument(
        "--data.limit", type=int | None, default=None, help="at most so many images of each of the two sets"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the posterior noise and the intervals")
    parser.add_argument(
        "--output",
        type=str,
        default="anomalies",
        help="directory for scores.csv, anomaly.json and worst.png; of volumes maps/ and figures/ instead of the last",
    )
    parser.add_argument(
        "--masks",
        type=str | None,
        default=None,
        help="of volumes: folder of lesion masks under the volumes' names, or the mask of the one volume; AUROC of voxels",
    )
    parser.add_argument(
        "--smooth", type=float, default=0.0, help="of volumes: standard deviation in mm of a Gaussian over the maps"
    )
    parser.add_argument(
        "--memory", type=str | None, default=None, help="of volumes: budget such as 4GB; encode and decode tile by tile"
    )
    parser.add_argument("--mode", type=Literal["exact", "blended"], default="exact", help="of the tiles, with --memory")
    parser.add_argument(
        "--precision",
        type=Literal["32", "bf16", "16", "auto"],
        default="32",
        help="of the networks; 32: the model's own figures",
    )
    return parser


def anomaly(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.anomaly import find_anomalies
    from omnivae.jobs.evaluate import load
    from omnivae.jobs.text import is_text_model
    from omnivae.jobs.volumes_anomaly import find_volume_anomalies
    from omnivae.report.volume_section import is_clips

    given = parse(anomaly_parser(), argv)
    loaded = None if is_text_model(given.model) else load(given.model, given.precision)
    if loaded is not None and loaded.dim == 3 and not is_clips(loaded):
        _unused(given, ("normal_label", "num_worst", "num_samples_nll"), "images, and the model takes volumes")
        volumes = find_volume_anomalies(
            given.model,
            given.data.path,
            given.output,
            normal=given.normal,
            masks=given.masks,
            smooth=given.smooth,
            scores=given.scores,
            rate=given.rate,
            limit=given.data.limit,
            memory=given.memory,
            mode=given.mode,
            seed=given.seed,
            precision=given.precision,
            loaded=loaded,
        )
        print("\n".join([*volumes.lines(), given.output]))
        return 0
    del loaded
    _unused(given, ("masks", "smooth", "memory", "mode"), "volumes, and the model takes images")
    report = find_anomalies(
        given.model,
        given.data.path,
        given.output,
        normal=given.normal,
        scores=given.scores,
        rate=given.rate,
        normal_label=given.normal_label,
        num_worst=given.num_worst,
        num_samples_nll=given.num_samples_nll,
        limit=given.data.limit,
        seed=given.seed,
        precision=given.precision,
    )
    for line in report.lines():
        print(line)
    print(given.output)
    return 0


def _unused(given: jsonargparse.Namespace, names: Sequence[str], what: str) -> None:
    """Refuse options that the model does not take."""
    plain = anomaly_parser().get_defaults()
    for name in names:
        if given[name] != plain[name]:
            raise ValueError(f"got --{name}, which is for {what}: leave it out")


def denoise_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae denoise``."""
    parser = make_parser(
        "denoise",
        "Remove noise with a model that was trained to (training.corrupt), or measure how well it does.",
        "omnivae denoise runs/denoiser noisy/ --output clean/",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument(
        "files",
        type=str,
        nargs="*",
        help="noisy images, or folders of them; without any, noise as in training is added to clean images and PSNR measured",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="directory for the results under the same names; without files a picture",
    )
    parser.add_argument(
        "--clean", type=str | None, default=None, help="folder of the clean images of the same names, to measure PSNR"
    )
    parser.add_argument(
        "--data.path",
        type=str | None,
        default=None,
        help="without files: the clean images; the run's own test images by default",
    )
    parser.add_argument("--data.limit", type=int | None, default=None, help="without files: at most so many images")
    parser.add_argument("--cond", type=str | None, default=None, help=f"what the noisy files are, {CONDITION}")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that is added")
    _add_precision(parser)
    return parser


def denoise(argv: Sequence[str]) -> int:
    """Run the command."""
    from pathlib import Path

    from omnivae.jobs.denoise import compare_files, denoise_files, measure_denoising
    from omnivae.jobs.reconstruct import list_files

    given = parse(denoise_parser(), argv)
    results = None
    if given.files:
        if given.data.path is not None or given.data.limit is not None:
            raise ValueError(
                "got noisy files and --data.path or --data.limit, which name clean images to add noise to; give one of them"
            )
        if given.output is None:
            raise ValueError("say --output DIR, where the denoised images go")
        for path in denoise_files(given.model, given.files, given.output, cond=given.cond, precision=given.precision):
            print(path)
        if given.clean is not None:
            pairs = [
                (source, Path(given.output) / name) for source, name in list_files(given.files, Path(given.output))
            ]
            results = compare_files(given.model, pairs, given.clean)
    else:
        if given.cond is not None:
            raise ValueError(
                "got --cond without noisy files; the clean images come with their own labels or attributes"
            )
        if given.clean is not None:
            raise ValueError("got --clean without noisy files; name the files, or give the clean images as --data.path")
        results = measure_denoising(
            given.model,
            given.output,
            path=given.data.path,
            limit=given.data.limit,
            seed=given.seed,
            precision="32" if given.precision == "auto" else given.precision,
        )
        if given.output is not None:
            print(given.output)
    for name, result in (results or {}).items():
        print(f"PSNR {name:<6} {result.mean:.2f} dB ({result.low:.2f} to {result.high:.2f})")
    return 0


def impute_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae impute``."""
    parser = make_parser(
        "impute",
        "Fill missing pixels with what the model expects there given the others, which stay as they are.",
        "omnivae impute runs/digits a.png --mask holes.png --output filled/",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("files", type=str, nargs="+", help="images, or folders of them")
    parser.add_argument(
        "--mask",
        type=str,
        required=True,
        help="picture that is black where pixels are missing, or a folder with one of the same name for each image",
    )
    parser.add_argument("--output", type=str, required=True, help="directory for the results, under the same names")
    parser.add_argument(
        "--method",
        type=Literal["importance", "gibbs"],
        default="importance",
        help="importance weights, for models trained with training.corrupt=missing; or a Gibbs chain, for any other",
    )
    parser.add_argument("--num_samples", type=int, default=1000, help="samples, or steps of the chain")
    parser.add_argument("--cond", type=str | None, default=None, help=f"what the images are, {CONDITION}")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--precision",
        type=Literal["32", "bf16", "16", "auto"],
        default="32",
        help="of the networks; 32: the model's own figures",
    )
    return parser


def impute(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.impute import impute_files

    given = parse(impute_parser(), argv)
    written = impute_files(
        given.model,
        given.files,
        given.mask,
        given.output,
        method=given.method,
        num_samples=given.num_samples,
        cond=given.cond,
        seed=given.seed,
        precision=given.precision,
    )
    what = "effective share of the samples" if given.method == "importance" else "accepted steps"
    for path, reliability in written.items():
        print(f"{path}: {what} {reliability:.3g}")
    return 0


#: Command -> its parser, for the test that freezes the options.
PARSERS: dict[str, Callable[[], jsonargparse.ArgumentParser]] = {
    "arithmetic": arithmetic_parser,
    "anomaly": anomaly_parser,
    "denoise": denoise_parser,
    "impute": impute_parser,
}
