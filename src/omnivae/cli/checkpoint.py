"""``omnivae inspect-checkpoint``: what a file of foreign weights is, and proof that it was loaded right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from omnivae.cli.parsing import make_parser, parse

if TYPE_CHECKING:
    from omnivae.hub import Checkpoint
    from omnivae.jobs.checkpoint import Examination

_LAYERS = 8


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae inspect-checkpoint``."""
    parser = make_parser(
        "inspect-checkpoint",
        "Say what a file of foreign weights is: its architecture, whether all of it loads, and whether it computes what the "
        "original implementation computes. Nothing in the file is executed. Exit code 1 where something is not right.",
        "omnivae inspect-checkpoint autoencoder.pt -o models/maisi",
    )
    parser.add_argument("file", type=str | None, nargs="?", default=None, help=".pt, .pth, .ckpt, .bin, .safetensors")
    parser.add_argument("-o", "--output", type=str | None, default=None, help="folder for the converted model")
    parser.add_argument("--download", type=str | None, default=None, help="fetch published weights first: maisi")
    parser.add_argument(
        "--url", type=str | None, default=None, help="another address of the download: a mirror, file://"
    )
    parser.add_argument("--layout", type=str | None, default=None, help="take it for weights of this class")
    parser.add_argument(
        "--entry", type=str | None, default=None, help="which of several dictionaries of weights to take"
    )
    parser.add_argument(
        "--set", type=dict[str, Any] | None, default=None, help="what weights cannot reveal: {norm_num_groups: 16}"
    )
    parser.add_argument(
        "--into", type=str | None, default=None, help="model directory to load it into by name and shape"
    )
    parser.add_argument("--partial", type=bool, default=False, help="with --into and -o: take what fits, and say so")
    parser.add_argument("--depth", type=int, default=2, help="levels of the tree of modules")
    parser.add_argument("--trials", type=bool, default=True, help="try what the weights cannot reveal")
    parser.add_argument("--key-map", type=str | None, default=None, help="file for their names and ours (JSON)")
    parser.add_argument(
        "--config-out", type=str | None, default=None, help="file for the proposed configuration (YAML)"
    )
    parser.add_argument("--json", type=str | None, default=None, help="file for everything that was found")
    return parser


def inspect_checkpoint(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.files import write_atomic
    from omnivae.hub.recognise import write_key_map
    from omnivae.jobs import checkpoint as job

    given = parse(build_parser(), argv)
    console = Console(highlight=False, soft_wrap=True)
    file = given.file
    if given.download:
        if file is not None:
            raise ValueError(f"got both a file ({file}) and --download {given.download}; expected one of them")
        file = str(job.download(given.download, given.output, url=given.url))
        published = job.PUBLISHED[given.download]
        console.print(f"{published.title}: {file}\n  checksum as published; licence: {published.licence}")
    if file is None:
        raise ValueError("no file given; name one, or fetch published weights with --download maisi")
    if given.partial and not (given.into and given.output):
        raise ValueError("--partial loads into a model: name it with --into, and where the result goes with -o")
    if given.into:
        return _into(file, given, console)
    found = job.examine_checkpoint(
        file, layout=given.layout, settings=given.set, entry=given.entry, trials=given.trials
    )
    show(found, console, depth=given.depth)
    if given.key_map:
        write_key_map(found.architecture, found.checkpoint, Path(given.key_map))
    if given.config_out:
        write_atomic(Path(given.config_out), found.to_yaml().encode())
    if given.json:
        job.write_json(found, given.json)
    if given.output:
        job.convert(found, given.output)
        console.print(f"\nwritten: {given.output}, with key_map.json")
    return 0 if found.sound else 1


def _into(file: str, given: Any, console: Any) -> int:
    from omnivae.hub import read_checkpoint
    from omnivae.jobs.checkpoint import into_model
    from omnivae.models import VAE

    checkpoint = read_checkpoint(file, entry=given.entry)
    model = VAE.from_pretrained(given.into)
    found = into_model(checkpoint, model, partial=given.partial, load=given.output is not None)
    console.print(_plain(f"{checkpoint.path.name} into {given.into}, by name and shape:\n{found.listing()}"))
    if given.output:
        model.save_pretrained(given.output)
        console.print(f"written: {given.output}")
    return 0 if found.complete else 1


def show(found: Examination, console: Any, *, depth: int = 2) -> None:
    """Print what was found.

    Args:
        found: the examination.
        console: of rich.
        depth: levels of the tree of modules.
    """
    checkpoint, a = found.checkpoint, found.architecture
    console.print(heading(checkpoint))
    console.print(tree(checkpoint, depth=depth))
    if checkpoint.alternatives:
        console.print(_plain(f"other weights in this file: {', '.join(checkpoint.alternatives)} (choose with --entry)"))
    console.print()
    console.print(_facts(found))
    console.print()
    console.print(_plain(found.coverage.summary()))
    for why in dict.fromkeys(a.unused.values()):
        names = [name for name, reason in a.unused.items() if reason == why]
        console.print(_plain(f"left out, {why}: {len(names)} tensors, such as {names[0]}"))
    for ours, how in a.made.items():
        console.print(_plain(f"{ours} is {how}: the file has none, and that changes nothing"))
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {_plain(problem)}")
    console.print()
    if found.proof is None:
        console.print(f"[bold]not proven:[/] {_plain(found.unproven)}")
    else:
        style = "green" if found.proof.equal else "bold red"
        console.print(f"[{style}]{_plain(found.proof.summary())}[/]")
        if a.assumptions:
            taken = ", ".join(f"{name}={value}" for name, value in a.assumptions.items())
            console.print(
                _plain(
                    f"both were built with {taken}, which the file does not say; state what differs: --set '{{name: value}}'"
                )
            )
        if not found.proof.equal:
            console.print(_parting(found.proof))
    console.print()
    console.print(_choices(found))
    if a.recipe is not None:
        console.print("\nproposed configuration:\n")
        console.print(_plain(found.to_yaml()))


def heading(checkpoint: Checkpoint) -> str:
    """Return what a file holds, in one line: a tree would cut it off at the terminal's width.

    Args:
        checkpoint: the weights.

    Returns:
        The line, as markup of rich.
    """
    dtypes = ", ".join(f"{n} {dtype}" for dtype, n in checkpoint.dtypes.items())
    where = f" under {checkpoint.entry}" if checkpoint.entry else ""
    beside = [*checkpoint.description, *checkpoint.others]
    return (
        f"[bold]{_plain(checkpoint.path.name)}[/]: {len(checkpoint.tensors)} tensors{_plain(where)} ({dtypes}), "
        f"{checkpoint.num_parameters:,} parameters" + (_plain(f"; beside them {', '.join(beside)}") if beside else "")
    )


def tree(checkpoint: Checkpoint, *, depth: int = 2) -> Any:
    """Return a tree of rich: modules with their tensors and parameters.

    Args:
        checkpoint: the weights.
        depth: levels below the root.

    Returns:
        The tree.
    """
    from rich.tree import Tree

    root = Tree(f"[bold]{_plain(checkpoint.path.name)}[/]")
    _grow(root, dict(checkpoint.tensors), depth)
    return root


def _grow(node: Any, tensors: Mapping[str, Any], depth: int) -> None:
    from omnivae.hub.reading import is_statistic

    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = tensor
    for head, inside in groups.items():
        # A chain of single names is one line.
        while len({n.partition(".")[0] for n in inside}) == 1 and all("." in n for n in inside):
            more = next(iter(inside)).partition(".")[0]
            head, inside = f"{head}.{more}", {n.partition(".")[2]: t for n, t in inside.items()}
        if list(inside) == [""]:
            node.add(f"{_plain(head)}  {list(inside[''].shape)}")
            continue
        count = sum(t.numel() for name, t in inside.items() if not is_statistic(name))
        weight = inside.get("weight")
        shape = f"  weight {list(weight.shape)}" if weight is not None else ""
        branch = node.add(f"{_plain(head)}{shape}  [dim]{len(inside)} tensors, {count:,} parameters[/]")
        if depth > 1 and set(inside) - {"weight", "bias"}:
            _grow(branch, inside, depth - 1)


def _facts(found: Examination) -> Any:
    from rich.table import Table

    table = Table(show_header=False, title=_plain(found.architecture.layout), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.architecture.facts.items():
        table.add_row(name, _plain(value))
    table.add_row("here", f"{type(found.model).__name__}, {found.model.num_parameters():,} parameters")
    table.add_row("licence", _plain(found.licence or "of the weights: not known; ask who made them"))
    return table


def _choices(found: Examination) -> Any:
    from rich.table import Table

    table = Table(title="what the weights cannot reveal", title_justify="left")
    for heading in ("what", "taken, tried", "mean", "decoded", "PSNR", "original"):
        table.add_column(heading, overflow="fold")
    verdict, a = {True: "yes", False: "no", None: "?"}, found.architecture
    for choice in a.choices:
        own = found.proof.equal if found.proof is not None and a.is_settled(choice) else None
        table.add_row(choice.name, f"[bold]{_plain(choice.assumed)}[/]", "", "", _decibel(found.psnr), verdict[own])
        for trial in found.trials:
            if trial.choice == choice.name:
                apart = [f"{d.relative:.2g}" if d.relative else "same" for d in (trial.mean, trial.reconstruction)]
                equal = trial.equal if a.is_settled(choice) else None
                table.add_row("", _plain(trial.label), *apart, _decibel(trial.psnr), verdict[equal])
        table.add_section()
    table.caption = (
        "bold: taken. mean, decoded: difference from it over its spread, root mean square. PSNR: in dB, of a structured input; "
        "trained weights do best under the function that they were trained with. original: whether it computes the same; ?: the "
        "original was built with the same assumption, or is not there"
    )
    table.caption_justify = "left"
    return table


def _decibel(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _parting(proof: Any) -> Any:
    from rich.table import Table

    table = Table("layer or output", "max abs", "relative", title="where they part", title_justify="left")
    first = next((i for i, d in enumerate(proof.layers) if not d.equal(proof.tolerance)), 0)
    for found in (*proof.layers[max(0, first - 1) : first + _LAYERS], *proof.outputs):
        mark = "" if found.equal(proof.tolerance) else "[red]"
        table.add_row(_plain(found.name), f"{mark}{found.max_abs:.2g}", f"{mark}{found.relative:.2g}")
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
