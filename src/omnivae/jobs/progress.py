"""A bar with rate and time left for jobs that work through many images; quiet where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int, enabled: bool = True, items: str = "images") -> Iterator[Callable[[int], None]]:
    """Show how far a job is.

    Args:
        what: is done, such as "encoding".
        total: number of images.
        enabled: whether to show anything.
        items: what is counted.

    Yields:
        A function to call with the number of images done since the last call.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.1f} {items}/s" if speed else "")

        yield advance


def percent(advance: Callable[[int], None]) -> Callable[[float], None]:
    """Return a function that tells a progress bar in percent of what it is called with: the share done.

    Args:
        advance: of the bar.
    """
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        now = int(100 * share)
        advance(now - told)
        told = now

    return tell
