"""``omnivae phantoms``: a folder of drawn volumes with known truth."""

from __future__ import annotations

from collections.abc import Sequence

import jsonargparse

from omnivae.cli.parsing import make_parser, parse
from omnivae.jobs.phantoms import Kind, Suffix


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae phantoms``."""
    parser = make_parser(
        "phantoms",
        "Draw volumes with known truth, without any download: CT in Hounsfield units, MR, pairs with and without lesions, plates.",
        "omnivae phantoms -o phantoms --kind ct --count 8",
    )
    parser.add_argument("-o", "--output", type=str, required=True, help="folder to write into")
    parser.add_argument("--kind", type=Kind, default="ct", help="ct, mr, pair (CT without and with lesions) or plate")
    parser.add_argument("--count", type=int, default=8, help="patients, or fields of view of a plate")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--size", type=tuple[int, int, int] | None, default=None, help="voxels, such as [96,96,96]")
    parser.add_argument(
        "--spacing",
        type=tuple[float, float, float] | None,
        default=None,
        help="mm (micrometres of a plate) along each axis",
    )
    parser.add_argument("--lesions", type=int, default=2, help="of each patient; odd nuclei of each field of a plate")
    parser.add_argument(
        "--conditions",
        type=list[int],
        default=[],
        help="of a plate: odd nuclei of a field under each condition, such as [0,8]; wells take them in turn",
    )
    parser.add_argument("--format", type=Suffix, default="nii.gz", help="of the files of patients")
    return parser


def phantoms(argv: Sequence[str]) -> int:
    """Run the command."""
    from omnivae.jobs.phantoms import write_phantoms

    given = parse(build_parser(), argv)
    written = write_phantoms(
        given.output,
        kind=given.kind,
        count=given.count,
        seed=given.seed,
        size=given.size,
        spacing=given.spacing,
        lesions=given.lesions,
        conditions=given.conditions,
        format=given.format,
        progress=True,
    )
    for path in written:
        print(path)
    return 0
