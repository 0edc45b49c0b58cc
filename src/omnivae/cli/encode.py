"""``omnivae encode``, ``decode`` and ``calibrate``: latents as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def _add_images(parser: jsonargparse.ArgumentParser, *, path: str, split: str, image_size: str) -> None:
    parser.add_argument("--data.path", type=str, default=None, help=path)
    parser.add_argument("--data.split", type=Literal["all", "train", "val", "test"] | None, default=None, help=split)
    parser.add_argument("--data.image_size", type=int | None, default=None, help=image_size)
    parser.add_argument(
        "--data.on_error",
        type=Literal["stop", "skip"] | None,
        default=None,
        help="stop at a file that cannot be read, or leave it out; as in training by default",
    )
    parser.add_argument("--data.limit", type=int | None, default=None, help="at most so many images")


def _add_work(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--batch_size", type=int, default=16, help="images at once")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images; 0: this one")
    _add_precision(parser)


def _add_precision(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        type=Literal["32", "bf16", "16", "auto"],
        default="32",
        help="of the networks; 32: the same latents on every machine, up to rounding",
    )


def encode_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae encode``."""
    parser = make_parser(
        "encode",
        "Write the posteriors of images into a store, or bring a store up to date: the same command does both.",
        "omnivae encode runs/photos --data.path photos/ --output latents/photos",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("--output", type=str, required=True, help="the store: a folder")
    _add_images(
        parser,
        path="the images; the run's own by default",
        split="which of them; all by default",
        image_size="side of the central square to resize to; by default images keep their own size where the model can",
    )
    parser.add_argument("--data.channels", type=int | None, default=None, help="1 or 3 to convert images to")
    _add_work(parser)
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "float16", "bfloat16"],
        default="float32",
        help="what means and log-variances are stored in; a value beyond its range stops the run",
    )
    parser.add_argument("--shard_mib", type=float, default=64.0, help="size of a shard in MiB")
    return parser


def encode(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.encode import encode_images

    given = parse(encode_parser(), argv)
    result = encode_images(
        given.model,
        given.output,
        path=given.data.path,
        part=given.data.split or "all",
        image_size=given.data.image_size,
        channels=given.data.channels,
        limit=given.data.limit,
        on_error=given.data.on_error,
        batch_size=given.batch_size,
        num_workers=given.num_workers,
        dtype=given.dtype,
        precision=given.precision,
        shard_mib=given.shard_mib,
    )
    print(result)
    return 0


def decode_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae decode``."""
    parser = make_parser(
        "decode",
        "Decode posteriors into pictures, under the names and in the sizes of the images that were encoded.",
        "omnivae decode latents/photos --model runs/photos --output decoded/",
    )
    parser.add_argument("latents", type=str, nargs="+", help="posterior stores, or shards of them")
    parser.add_argument("--model", type=str, required=True, help="the model directory or run that encoded them")
    parser.add_argument("--output", type=str, required=True, help="folder for the pictures")
    parser.add_argument("--keys", type=str, nargs="+", default=None, help="decode only these images")
    parser.add_argument("--sample", action="store_true", help="decode a draw from each posterior, not its mode")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--batch_size", type=int, default=16, help="latents at once")
    _add_precision(parser)
    return parser


def decode(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.decode import decode_latents

    given = parse(decode_parser(), argv)
    written = decode_latents(
        given.latents,
        given.model,
        given.output,
        keys=given["keys"],
        sample=given.sample,
        seed=given.seed,
        batch_size=given.batch_size,
        precision=given.precision,
    )
    print(f"{given.output}: {len(written)} pictures")
    return 0


def calibrate_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae calibrate``."""
    parser = make_parser(
        "calibrate",
        "Measure mean, std and scale factor of a model's latents and save them with the model.",
        "omnivae calibrate runs/photos --store latents/photos",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("--store", type=str, default=None, help="measure the latents of this store; nothing is encoded")
    _add_images(
        parser,
        path="the images; the run's own training images by default",
        split="which of them; train of the run's own images, all of others by default",
        image_size="side of the central square to resize to; as in training by default",
    )
    _add_work(parser)
    return parser


def calibrate(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.calibrate import calibrate_model

    given = parse(calibrate_parser(), argv)
    latent = calibrate_model(
        given.model,
        path=given.data.path,
        store=given.store,
        part=given.data.split,
        image_size=given.data.image_size,
        limit=given.data.limit,
        on_error=given.data.on_error,
        batch_size=given.batch_size,
        num_workers=given.num_workers,
        precision=given.precision,
    )
    print(f"{'channel':>7}  {'mean':>10}  {'std':>10}")
    for channel, (mean, std) in enumerate(zip(latent["mean"], latent["std"], strict=True)):
        print(f"{channel:>7}  {mean:>10.5g}  {std:>10.5g}")
    print(f"scale factor {latent['scale_factor']:.5g}, measured on {latent['num_images']} images")
    return 0


#: Command -> its parser, for the test that freezes the options.
PARSERS: dict[str, Callable[[], jsonargparse.ArgumentParser]] = {
    "encode": encode_parser,
    "decode": decode_parser,
    "calibrate": calibrate_parser,
}
