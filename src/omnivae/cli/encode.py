"""``omnivae encode``, ``decode`` and ``calibrate``: latents as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import jsonargparse

from omnivae.cli.parsing import make_parser, parse, positionals_first
from omnivae.cli.volumes import (
    add_contract,
    add_format,
    add_reading,
    add_tiles,
    intensity_of,
    refuse_volumes,
)

if TYPE_CHECKING:
    from omnivae.models import VAE


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
        "Write the posteriors of images, volumes or videos into a store, or bring a store up to date: the same command does both.",
        "omnivae encode runs/photos photos/ -o latents/photos; omnivae encode models/maisi scans/ -o latents/ct --memory 4GB",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument(
        "files",
        type=str,
        nargs="*",
        default=[],
        help="images, in the place of --data.path; for models of volumes DICOM, NIfTI, NRRD, MHA, TIFF stacks, OME-Zarr, for "
        "models of clips videos; or folders of them; the run's own by default",
    )
    parser.add_argument("-o", "--output", type=str, required=True, help="the store: a folder")
    _add_images(
        parser,
        path="the images, or a folder of volumes; the run's own by default",
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
    add_reading(parser)
    add_tiles(parser, "encode")
    add_contract(parser)
    return parser


def encode(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.encode import encode_images
    from omnivae.jobs.evaluate import load
    from omnivae.jobs.filling import launch
    from omnivae.jobs.text import is_text_model

    parser = encode_parser()
    given = parse(parser, positionals_first(parser, argv))
    if given.files and given.data.path is not None:
        raise ValueError(f"got {given.files[0]} and --data.path {given.data.path}; give one of them")
    files = given.files or ([] if given.data.path is None else [given.data.path])
    launch()
    loaded = None if is_text_model(given.model) else load(given.model, given.precision)
    if loaded is not None and loaded.dim == 3:
        return _encode_whole(given, files, loaded)
    refuse_volumes(given, encode_parser())
    if len(files) > 1:
        raise ValueError(f"got {len(files)} paths of images; a store is of one data set: give one path")
    result = encode_images(
        given.model,
        given.output,
        path=files[0] if files else None,
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
        loaded=loaded,
    )
    print(result)
    return 0


def _encode_whole(given: jsonargparse.Namespace, files: list[str], loaded: VAE) -> int:
    """Encode volumes or videos, one by one."""
    from omnivae.jobs.run_data import run_data
    from omnivae.jobs.videos import are_videos
    from omnivae.jobs.videos_store import encode_videos
    from omnivae.jobs.volumes_encode import encode_volumes
    from omnivae.jobs.volumes_store import said_of_clipping
    from omnivae.models.storage import find_model

    own = None if files else run_data(find_model(given.model))
    videos = are_videos(files or ([] if own is None else [own.path]))
    what, odd = "volumes", ["data.image_size", "data.channels", "batch_size", "num_workers"]
    if videos:
        what, odd = "videos", [*odd, "data.split", "series", "time", "unit", "on_gaps", "window", "percentiles"]
    plain = encode_parser().get_defaults()
    for name in odd:
        if given[name] != plain[name]:
            raise ValueError(f"got --{name}, and {what} are encoded whole, one by one: leave it out")
    if videos:
        result = encode_videos(
            given.model,
            files or [own.path],  # type: ignore[union-attr]
            given.output,
            on_error=given.data.on_error or "stop",
            limit=given.data.limit,
            memory=given.memory,
            mode=given.mode,
            dtype=given.dtype,
            precision=given.precision,
            shard_mib=given.shard_mib,
            loaded=loaded,
        )
        print(result)
        return 0
    result = encode_volumes(
        given.model,
        files,
        given.output,
        part=given.data.split or "all",
        series=given.series,
        time=given.time,
        unit=given.unit,
        on_gaps=given.on_gaps,
        on_error=given.data.on_error or "stop",
        limit=given.data.limit,
        memory=given.memory,
        mode=given.mode,
        intensity=intensity_of(given),
        dtype=given.dtype,
        precision=given.precision,
        shard_mib=given.shard_mib,
        loaded=loaded,
    )
    print(result)
    said = said_of_clipping(result.store)
    if said is not None:
        print(said)
    return 0


def decode_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae decode``."""
    parser = make_parser(
        "decode",
        "Decode posteriors: into pictures under the names and in the sizes of the images that were encoded, into volumes on the "
        "grids, in the units and types of the scans, into videos of their size and rate.",
        "omnivae decode latents/photos -o decoded/; omnivae decode latents/ct --model models/maisi -o decoded/ --memory 4GB",
    )
    parser.add_argument("latents", type=str, nargs="+", help="posterior stores, or shards of them")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="the model directory or run that encoded them; by default the place where it was then",
    )
    parser.add_argument("-o", "--output", type=str, required=True, help="folder for the results")
    parser.add_argument("--keys", type=str, nargs="+", default=None, help="decode only these")
    parser.add_argument("--sample", action="store_true", help="decode a draw from each posterior, not its mode")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--batch_size", type=int, default=16, help="latents at once, of pictures")
    _add_precision(parser)
    add_format(parser, dicom=False)
    add_tiles(parser, "decode")
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
        format=given.format,
        memory=given.memory,
        mode=given.mode,
        precision=given.precision,
    )
    print(f"{given.output}: {len(written)} files")
    return 0


def calibrate_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae calibrate``."""
    parser = make_parser(
        "calibrate",
        "Measure mean, std and scale factor of a model's latents and save them with the model.",
        "omnivae calibrate runs/photos --store latents/photos",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument(
        "--store",
        type=str,
        default=None,
        help="measure the latents of this store; nothing is encoded; needed for volumes",
    )
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
    from omnivae.data.latents import PosteriorStore
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
    items = "images" if given.store is None else PosteriorStore(given.store).kind
    print(f"scale factor {latent['scale_factor']:.5g}, measured on {latent['num_images']} {items}")
    return 0


#: Command -> its parser, for the test that freezes the options.
PARSERS: dict[str, Callable[[], jsonargparse.ArgumentParser]] = {
    "encode": encode_parser,
    "decode": decode_parser,
    "calibrate": calibrate_parser,
}
