"""``omnivae reconstruct``, ``sample``, ``interpolate``, ``traverse`` and ``report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jsonargparse

from omnivae.cli.parsing import make_parser, parse
from omnivae.cli.volumes import add_volume_options, refuse_volumes, run_on_volumes

#: What a user may say to a conditional model.
CONDITION = "for conditional models: a class, or name=value separated by commas"


def _add_precision(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        type=Literal["auto", "32", "bf16", "16"],
        default="auto",
        help="of the networks; auto: bf16 where the device computes in it natively",
    )


def reconstruct_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae reconstruct``."""
    parser = make_parser(
        "reconstruct",
        "Encode and decode images (same names, sizes, bit depths and colour modes out as in) or volumes (same affine, voxel size, "
        "unit and type; with a model of volumes).",
        "omnivae reconstruct runs/photos a.jpg scans/ --output decoded/; omnivae reconstruct runs/ct series/ -o out/",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument(
        "files",
        type=str,
        nargs="+",
        help="image files, or folders of them; of three axes DICOM, NIfTI, NRRD, MHA, OME-Zarr, videos, or folders of them; "
        "for a model of text sentences, or text files",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=str | None,
        default=None,
        help="directory for the reconstructions, under the same names; for a model of text a .txt file, or nothing to print only",
    )
    parser.add_argument(
        "--on_error",
        type=Literal["stop", "skip"],
        default="stop",
        help="stop before the first result at a file that cannot be read or written, or leave it out with a warning",
    )
    parser.add_argument("--cond", type=str | None, default=None, help=f"what the images are, {CONDITION}")
    parser.add_argument("--to", type=str | None, default=None, help="what they are decoded as instead")
    _add_precision(parser)
    add_volume_options(parser)
    return parser


def reconstruct(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.evaluate import load
    from omnivae.jobs.reconstruct import reconstruct_files
    from omnivae.jobs.text import is_text_model, reconstruct_sentences
    from omnivae.jobs.videos import are_videos, reconstruct_videos
    from omnivae.training.device import for_inference

    given = parse(reconstruct_parser(), argv)
    if is_text_model(given.model):
        pairs = reconstruct_sentences(given.model, given.files)
        return _say([again for _, again in pairs], given.output, [f"{text}\n    -> {again}" for text, again in pairs])
    if given.output is None:
        raise ValueError("say where the reconstructions go: --output DIRECTORY")
    # Volumes are computed in float32 unless told otherwise: the 3 % of bf16 would be tens of HU.
    loaded = load(given.model, "32" if given.precision == "auto" else given.precision)
    volumes = loaded.dim == 3 and not are_videos(given.files)
    if given.precision == "auto" and not volumes:
        for_inference(loaded, precision="auto")
    if volumes:
        return run_on_volumes(given, loaded)
    if loaded.dim == 3:
        # Tiles are for clips, too.
        without = jsonargparse.Namespace(**{**vars(given), "memory": None, "mode": "exact"})
        refuse_volumes(without, reconstruct_parser())
        if given.cond is not None or given.to is not None:
            raise ValueError("--cond and --to are for images; leave them out for videos")
        written = reconstruct_videos(
            loaded, given.files, given.output, on_error=given.on_error, memory=given.memory, mode=given.mode
        )
        for path in written:
            print(path)
        return 0
    refuse_volumes(given, reconstruct_parser())
    written = reconstruct_files(
        loaded,
        given.files,
        given.output,
        on_error=given.on_error,
        cond=given.cond,
        to=given.to,
        precision=given.precision,
    )
    for path in written:
        print(path)
    return 0


def sample_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae sample``."""
    parser = make_parser(
        "sample", "Draw images from the prior.", "omnivae sample runs/digits --n 64 --output samples.png"
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("--n", type=int, default=16, help="number of images")
    parser.add_argument(
        "--size", type=int, nargs=2, default=None, help="height and width; the training size by default"
    )
    parser.add_argument(
        "--cond", type=str | None, default=None, help=f"what to draw, {CONDITION}; all: a row for each class"
    )
    parser.add_argument(
        "--levels",
        action="store_true",
        help="of a hierarchical model: rebuild images of its data from the top level only, from two levels, ... and from all",
    )
    parser.add_argument(
        "--temperature",
        type=float | None,
        default=None,
        help="multiplies the prior's standard deviation; 1 by default, and 0 (the mean) with --levels",
    )
    parser.add_argument(
        "--top_k", type=int | None, default=None, help="of a prior over codes: draw from the likeliest so many"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--output", type=str, default="samples.png", help="picture to write")
    _add_precision(parser)
    return parser


def sample(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.look import sample_images
    from omnivae.jobs.text import is_text_model, sample_sentences

    given = parse(sample_parser(), argv)
    if given.n < 1:
        raise ValueError(f"got --n {given.n}; expected at least 1 image")
    if is_text_model(given.model):
        temperature = 1.0 if given.temperature is None else given.temperature
        return _say(sample_sentences(given.model, n=given.n, temperature=temperature, seed=given.seed), given.output)
    if given.levels:
        return _sample_levels(given)
    print(
        sample_images(
            given.model,
            given.output,
            n=given.n,
            size=given.size,
            cond=given.cond,
            temperature=1.0 if given.temperature is None else given.temperature,
            top_k=given.top_k,
            seed=given.seed,
            precision=given.precision,
        )
    )
    return 0


def _sample_levels(given: jsonargparse.Namespace) -> int:
    from omnivae.jobs.levels import level_images

    unused = [name for name in ("size", "cond", "top_k") if given[name] is not None]
    if unused:
        raise ValueError(f"got --levels and --{unused[0]}, which it does not take: leave out one of them")
    print(
        level_images(
            given.model,
            given.output,
            n=given.n,
            temperature=given.temperature or 0.0,
            seed=given.seed,
            precision=given.precision,
        )
    )
    return 0


def interpolate_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae interpolate``."""
    parser = make_parser(
        "interpolate",
        "Walk from one image to another through the latent.",
        "omnivae interpolate runs/photos a.jpg b.jpg --mode spherical --output walk.png",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("first", type=str, help="image file; for a model of text a sentence")
    parser.add_argument("second", type=str, help="image file of the same size; for a model of text a sentence")
    parser.add_argument("--steps", type=int, default=10, help="images on the way, both ends included")
    parser.add_argument(
        "--mode",
        type=Literal["linear", "spherical", "both"] | None,
        default=None,
        help="line, great circle, or a row of each; by default the line, and the circle where latents are points of a sphere",
    )
    parser.add_argument("--cond", type=str | None, default=None, help=f"what the first image is, {CONDITION}")
    parser.add_argument("--to", type=str | None, default=None, help="what the second one is; the same by default")
    parser.add_argument("--output", type=str, default="interpolation.png", help="picture to write")
    _add_precision(parser)
    return parser


def interpolate(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.look import interpolate_files
    from omnivae.jobs.text import interpolate_sentences, is_text_model

    given = parse(interpolate_parser(), argv)
    if is_text_model(given.model):
        walk = interpolate_sentences(
            given.model, given.first, given.second, steps=given.steps, mode=given.mode or "linear"
        )
        return _say(walk, given.output)
    path = interpolate_files(
        given.model,
        given.first,
        given.second,
        given.output,
        steps=given.steps,
        mode=given.mode,
        cond=given.cond,
        to=given.to,
        precision=given.precision,
    )
    print(path)
    return 0


def traverse_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae traverse``."""
    parser = make_parser(
        "traverse",
        "Vary one latent dimension at a time, the most informative first.",
        "omnivae traverse runs/digits --num_dimensions 5 --output traversal.png",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument(
        "--image", type=str, default=None, help="image to start from; the run's first test image by default"
    )
    parser.add_argument("--cond", type=str | None, default=None, help=f"what the image is, {CONDITION}")
    parser.add_argument("--num_dimensions", type=int, default=10, help="rows of the picture")
    parser.add_argument("--span", type=float, default=3.0, help="standard deviations on each side")
    parser.add_argument(
        "--reach",
        type=Literal["aggregate", "prior"],
        default="aggregate",
        help="whose standard deviations: those of the codes of the run's images, or the prior's",
    )
    parser.add_argument("--steps", type=int, default=9, help="images in a row")
    parser.add_argument("--output", type=str, default="traversal.png", help="picture to write")
    _add_precision(parser)
    return parser


def traverse(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.look import traverse_file

    given = parse(traverse_parser(), argv)
    print(
        traverse_file(
            given.model,
            given.output,
            image=given.image,
            cond=given.cond,
            num_dimensions=given.num_dimensions,
            span=given.span,
            steps=given.steps,
            reach=given.reach,
            precision=given.precision,
        )
    )
    return 0


def transfer_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae transfer``."""
    parser = make_parser(
        "transfer",
        "Decode images of a conditional model as something else: the same latent under other classes or attributes.",
        "omnivae transfer runs/faces --to smiling=1 glasses=1 --output transfer.png",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("--data.path", type=str | None, default=None, help="the images; the run's own by default")
    parser.add_argument("--to", type=str, nargs="+", default=[], help=f"{CONDITION}; every class by default")
    parser.add_argument("--n", type=int, default=8, help="number of images, one a row")
    parser.add_argument("--output", type=str, default="transfer.png", help="picture to write")
    _add_precision(parser)
    return parser


def transfer(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.look import transfer_images

    given = parse(transfer_parser(), argv)
    print(
        transfer_images(
            given.model, given.output, path=given.data.path, n=given.n, to=given.to, precision=given.precision
        )
    )
    return 0


def report_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae report``."""
    parser = make_parser(
        "report",
        "Write one self-contained HTML page: reconstructions, samples, walks, curves, figures, configuration.",
        "omnivae report runs/photos --output report.html",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("--data.path", type=str, default=None, help="the images to show; the run's own by default")
    parser.add_argument("--output", type=str, default="report.html", help="HTML file to write")
    return parser


def report(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.look import report_model

    given = parse(report_parser(), argv)
    print(report_model(given.model, given.output, path=given.data.path))
    return 0


def _say(lines: Sequence[str], output: str | None, shown: Sequence[str] | None = None) -> int:
    """Print sentences, and write them into a text file where one was asked for."""
    from pathlib import Path

    from omnivae.files import write_atomic

    print("\n".join(shown or lines))
    if output is not None and Path(output).suffix.lower() in (".txt", ".text"):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(output), ("\n".join(lines) + "\n").encode())
    return 0


#: Command -> its parser, for the test that freezes the options.
PARSERS: dict[str, Callable[[], jsonargparse.ArgumentParser]] = {
    "reconstruct": reconstruct_parser,
    "sample": sample_parser,
    "interpolate": interpolate_parser,
    "traverse": traverse_parser,
    "transfer": transfer_parser,
    "report": report_parser,
}
