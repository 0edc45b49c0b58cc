"""``omnivae inspect``: what a data set holds, what would stop a run, and a configuration for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonargparse

from omnivae.cli.parsing import make_parser, parse
from omnivae.data import DataConfig
from omnivae.data.config import VOLUMES
from omnivae.jobs.advice import plural

if TYPE_CHECKING:
    from omnivae.jobs.inspect import Inspection
    from omnivae.jobs.volumes_inspect import VolumeInspection

_SHOWN = 20
#: Files that cannot be used, by name.
_MOST_FILES = 50
_NOT_HERE = {"path", "volume", "flip", "random_crop", "num_workers", "binarize", "cache", "resolutions"}


def build_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae inspect``."""
    parser = make_parser(
        "inspect",
        "Say what a data set holds before anything is trained: counts, sizes, channels, values, duplicates, files that cannot "
        "be read, and a configuration to train with. Exit code 1 when something would stop the run, 0 otherwise.",
        "omnivae inspect photos/ --config-out photos.yaml --picture sheet.png",
    )
    parser.add_argument(
        "path",
        type=str,
        help="as data.path: a folder, table, shards, listing of pairs of volumes, or a data set's name",
    )
    parser.add_class_arguments(DataConfig, "data", skip=_NOT_HERE)
    parser.add_argument("--json", type=str | None, default=None, help="file for everything that was found")
    parser.add_argument(
        "--config-out", type=str | None, default=None, help="file for the proposed configuration (YAML)"
    )
    parser.add_argument(
        "--picture", type=str | None, default=None, help="file for a contact sheet of some of the images"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images measured and drawn, where not all are")
    parser.add_argument(
        "--html",
        type=str | None,
        default=None,
        help="of volumes: file for a page with thumbnails and all that was found",
    )
    parser.add_argument(
        "--series",
        type=str | None,
        default=None,
        help="of volumes: the number of one DICOM series, to look at it alone",
    )
    parser.add_argument(
        "--on_gaps",
        type=Literal["error", "resample"],
        default="error",
        help="of DICOM series: whether missing slices stop a run, or are interpolated",
    )
    return parser


def inspect(argv: Sequence[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from omnivae.data.formats import holds_volumes
    from omnivae.jobs.inspect import inspect_data

    given = parse(build_parser(), argv)
    config = DataConfig(path=given.path, **given.as_dict()["data"])
    if config.path not in VOLUMES and holds_volumes(config):
        return _inspect_volumes(given)
    for name, value, default in (
        ("html", given.html, None),
        ("series", given.series, None),
        ("on_gaps", given.on_gaps, "error"),
    ):
        if value != default:
            raise ValueError(
                f"got --{name}, which is for volumes, and {given.path} holds none that is known: leave it out"
            )
    found = inspect_data(config, seed=given.seed, picture=given.picture)
    console = Console(highlight=False)
    for table in tables(found):
        console.print(table)
        console.print()
    for problem in found.problems:
        console.print(f"[bold red]stops the run:[/] {_plain(problem)}", soft_wrap=True)
    for remark in found.remarks:
        console.print(f"[bold]note:[/] {_plain(remark)}", soft_wrap=True)
    if found.configuration is not None:
        console.print("\nproposed configuration:\n", soft_wrap=True)
        console.print(_plain(found.to_yaml()), soft_wrap=True)
    if given.json:
        found.to_json(given.json)
    command = found.command
    if given.config_out and found.configuration is not None:
        from omnivae.files import write_atomic

        target = Path(given.config_out)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, found.to_yaml().encode())
        command = f"omnivae train --config {target} --output runs/{target.stem}"
    if command:
        console.print(f"train on it with:\n  {_plain(command)}", soft_wrap=True)
    return 1 if found.problems else 0


def _inspect_volumes(given: jsonargparse.Namespace) -> int:
    from rich.console import Console

    from omnivae.jobs.volumes_inspect import inspect_volumes

    for name in ("config_out", "picture"):
        if given[name] is not None:
            raise ValueError(
                f"got --{name.replace('_', '-')}, which is for images, and {given.path} holds volumes: use --html PAGE"
            )
    found = inspect_volumes(
        given.path,
        series=given.series,
        on_gaps=given.on_gaps,
        verify=given.data.verify,
        pictures=given.html is not None,
    )
    console = Console(highlight=False)
    for text, indent in volume_lines(found):
        _say(console, text, indent)
    console.print()
    names = [*(v.name for v in found.volumes), *(p.name for p in found.pairs)]
    stopping = [name for name in names if any(text.startswith(f"{name}: ") for text in found.problems)]
    general = [text for text in found.problems if not any(text.startswith(f"{name}: ") for name in stopping)]
    if stopping:
        more = f" and {len(stopping) - _SHOWN} more" if len(stopping) > _SHOWN else ""
        general.insert(0, f"{', '.join(stopping[:_SHOWN])}{more}: see STOPS above")
    for text in general:
        _say(console, f"[bold red]stops the run:[/] {_plain(text)}")
    for text in found.remarks:
        _say(console, f"[bold]note:[/] {_plain(text)}")
    if given.json:
        found.to_json(given.json)
    if given.html:
        found.to_html(given.html)
        console.print(given.html, soft_wrap=True)
    return 1 if found.problems else 0


def volume_lines(found: VolumeInspection) -> list[tuple[str, int]]:
    """Return what the command says of volumes: of each its name, a line of facts, and what is unusual.

    Args:
        found: what was found.

    Returns:
        Lines in the markup of rich, and how far they are indented.
    """
    from omnivae.jobs.volumes_page import entry_text, pair_text

    several = f", {found.patients} patients" if found.patients > 1 else ""
    series = " and series" if any(v.number is not None for v in found.volumes) else ""
    pairs = f"{plural(len(found.pairs), 'pair')} of " if found.pairs else ""
    said = f"{found.path}: {pairs}{plural(len(found.volumes), 'volume')}{series}, {found.usable} usable{several}"
    lines = [(f"[bold]{_plain(said)}[/]", 0)]
    for pair in found.pairs[:_MOST_FILES]:
        lines += [("", 0), (f"[bold]{_plain(pair.name)}[/]", 0)]
        lines.append((_plain(pair_text(pair)), 3))
        lines += [(f"[bold red]STOPS[/] {_plain(pair.problem)}", 3)] if pair.problem else []
        lines += [(_plain(pair.note), 3)] if pair.note else []
    shown = [v for n, v in enumerate(found.volumes) if n < _MOST_FILES or any(p.stops for p in v.problems)]
    for facts in shown:
        number = f"[{facts.number}] " if facts.number is not None and not found.pairs else ""
        lines += [("", 0), (f"[bold]{_plain(number + facts.name)}[/]", 0)]
        used = facts.kind in found.taken
        lines.append((_plain(entry_text(facts, aside=not used)), 3))
        for problem in facts.problems if used or facts.kind == "derived" else ():
            stops = "[bold red]STOPS[/] " if problem.stops and used else ""
            lines.append((f"{stops}[bold]{_plain(problem.name)}[/]: {_plain(problem.text)}", 3))
    for count, what in ((len(found.volumes) - len(shown), "volume"), (len(found.pairs) - _MOST_FILES, "pair")):
        if count > 0:
            lines += [("", 0), (f"and {count:,} more {what}{'s' * (count > 1)}: --json FILE lists all", 0)]
    return lines


def _say(console: Any, text: str, indent: int = 0) -> None:
    """Print a line: wrapped under its own indent on a terminal, whole into a file or pipe."""
    from rich.padding import Padding

    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent)))
    else:
        console.print(" " * indent + text, soft_wrap=True)


def tables(found: Inspection) -> list[Any]:
    """Return the tables that the command prints.

    Args:
        found: what was found.

    Returns:
        Tables of rich, without those that have nothing to say.
    """
    from rich.table import Table

    shown = (
        [_overview(found)]
        if found.counts or found.unreadable or found.other_files or found.other_media or found.hidden_files
        else []
    )
    what = found.noun
    if found.classes is not None:
        table = Table("class", *found.counts, title="images by class and split", title_justify="left")
        for name, counts in list(found.classes.items())[:_SHOWN]:
            table.add_row(_plain(name), *(f"{counts[split]:,}" for split in found.counts))
        if len(found.classes) > _SHOWN:
            table.add_row(f"and {len(found.classes) - _SHOWN} more", *[""] * len(found.counts))
        shown.append(table)
    if found.values:
        of = "all images" if found.all_measured else f"{found.measured:,} images, chosen by the seed"
        if found.videos is not None:
            of = f"the first frames of {plural(found.measured, 'clip')}"
        table = Table(
            "type",
            "images" if found.videos is None else "frames",
            "channel",
            "min",
            "max",
            "mean",
            "std",
            title=f"stored values of {of}",
            title_justify="left",
        )
        for group in found.values:
            for c in range(min(group["channels"], 8)):
                first = (group["dtype"], f"{group['images']:,}") if c == 0 else ("", "")
                numbers = (f"{group[key][c]:.6g}" for key in ("low", "high", "mean", "std"))
                table.add_row(*first, f"{c + 1} of {group['channels']}", *numbers)
        shown.append(table)
    if found.unreadable:
        table = Table(
            "file", "reason", title=f"{plural(len(found.unreadable), what)} cannot be used", title_justify="left"
        )
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        for name, reason in found.unreadable[:_MOST_FILES]:
            table.add_row(_plain(name), _plain(reason))
        if len(found.unreadable) > _MOST_FILES:
            table.add_row(f"and {len(found.unreadable) - _MOST_FILES:,} more", "--json FILE lists all")
        shown.append(table)
    if found.duplicates:
        title = f"{plural(len(found.duplicates), 'group')} of {what}s with the same content"
        table = Table(f"{what}s", "splits", title=title, title_justify="left")
        for equal in found.duplicates[:_SHOWN]:
            splits = dict.fromkeys(split for _, split in equal)
            table.add_row(_plain(", ".join(name for name, _ in equal)), " and ".join(splits))
        if len(found.duplicates) > _SHOWN:
            table.add_row(f"and {len(found.duplicates) - _SHOWN} more groups", "")
        shown.append(table)
    if found.needs:
        table = Table("setting", "value", "why", title=f"settings that the {what}s call for", title_justify="left")
        for need in found.needs:
            value = (
                "as proposed"
                if need.value is None and not need.required
                else "none helps"
                if need.value is None
                else need.value
            )
            table.add_row(f"data.{need.option}", _plain(str(value)), _plain(need.reason))
        shown.append(table)
    return shown


def _overview(found: Inspection) -> Any:
    from rich.table import Table

    table = Table(show_header=False, title=f"{found.name} ({found.kind})", title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        if text:
            table.add_row(name, _plain(text))

    splits = [
        f"{n:,} {split}{' (cut from train)' if split in found.carved else ''}" for split, n in found.counts.items()
    ]
    what = found.noun
    if found.videos is not None:
        row("videos", f"{found.videos['files']:,}")
        few, middle, many = found.videos["frames"]
        row("frames", f"{few:,}" if few == many else f"{few:,} to {many:,}, median {middle:,}")
        rates = found.videos["frames_per_second"]
        row(
            "frames a second",
            ", ".join(rate if len(rates) == 1 else f"{rate} ({plural(n, what)})" for rate, n in rates.items()),
        )
        every = f", every {found.videos['stride']} frames" if found.videos["stride"] > 1 else ""
        row(f"clips of {plural(found.videos['clip'], 'frame')}{every}", ", ".join(splits))
    else:
        row("images", ", ".join(splits))
    if found.sizes:
        low, middle, high = (" x ".join(map(str, found.sizes[k])) for k in ("smallest", "median", "largest"))
        different = found.sizes["distinct"]
        row(
            "frames x height x width" if len(found.sizes["median"]) > 2 else "height x width",
            low if different == 1 else f"{low} to {high}, median {middle}, {different:,} different sizes",
        )
    row("channels", ", ".join(f"{c} ({plural(n, what)})" for c, n in found.channels.items()))
    row("stored as", ", ".join(f"{dtype} ({plural(n, what)})" for dtype, n in found.dtypes.items()))
    row("classes", f"{len(found.classes):,}" if found.classes else "")
    if found.counts:
        checked = (
            "every image was decoded"
            if found.checked == "full"
            else "headers and ends of files (--data.verify full decodes all)"
        )
        if found.videos is not None:
            checked = (
                "every frame was decoded"
                if found.checked == "full"
                else "time stamps of all frames, and the first frame of each clip (--data.verify full decodes all)"
            )
        row("checked", checked)
    row("constant images", _few(found.constant_images))
    if found.duplicates is not None:
        row(
            "same content",
            "none"
            if not found.duplicates
            else f"{plural(len(found.duplicates), 'group')}, {found.leaks} across splits",
        )
    row("other files", ", ".join(f"{count:,} {suffix}" for suffix, count in found.other_files.items()))
    row(
        "not pictures" if found.kind != "video" else "not videos",
        ", ".join(f"{count:,} {suffix}" for suffix, count in found.other_media.items()),
    )
    row("hidden files", f"{found.hidden_files:,} (never read)" if found.hidden_files else "")
    return table


def _few(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{len(names):,}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
