"""``omnivae inflate``: a model of images becomes one of clips that computes the same for a single frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jsonargparse

from omnivae.cli.parsing import make_parser, parse


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae inflate``."""
    parser = make_parser(
        "inflate",
        "Lift a trained model of images to clips: its kernels see neighbouring frames, and for a single frame it computes what it "
        "did. Train it on with --checkpoint.",
        "omnivae inflate runs/photos -o lifted; omnivae train --model.recipe video_vae --checkpoint lifted --data.path clips/ ...",
    )
    parser.add_argument("model", type=str, help="a model directory or a run")
    parser.add_argument("-o", "--output", type=str, required=True, help="directory of the new model")
    parser.add_argument(
        "--inflation",
        type=Literal["central", "average"],
        default="central",
        help="central: every frame is treated as an image until it is trained; average: neighbours are averaged from the start",
    )
    parser.add_argument("--time_kernel", type=int, default=3, help="odd number of frames that a convolution sees")
    parser.add_argument("--time_stride", type=int, default=1, help="frames that become one frame of the latent")
    parser.add_argument("--stack_size", type=int | None, default=None, help="frames seen at a time; all by default")
    parser.add_argument("--overlap", type=int, default=0, help="frames that neighbouring windows share")
    return parser


def inflate(argv: Sequence[str]) -> int:
    """Run the command."""
    from pathlib import Path

    from omnivae.models import VAE
    from omnivae.recipes import inflate as lift

    given = parse(build_parser(), argv)
    output = Path(given.output)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise FileExistsError(f"{output} is not empty: give --output a new directory")
    model = lift(
        VAE.from_pretrained(given.model),
        inflation=given.inflation,
        time_kernel=given.time_kernel,
        time_stride=given.time_stride,
        stack_size=given.stack_size,
        overlap=given.overlap,
    )
    model.save_pretrained(output)
    stride = "x".join(str(s) for s in model.encoder.stride)  # type: ignore[arg-type, union-attr]
    print(f"{output}: {model.num_parameters():,} parameters, one latent position for {stride} (frames, height, width)")
    return 0
