"""Examine a run: read it, apply every rule, write the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnivae.files import write_atomic
from omnivae.jobs.doctor.records import read_run
from omnivae.jobs.doctor.registry import Examination, Finding, apply_rules

_COLOURS = {"critical": "bold red", "warning": "yellow", "note": "cyan"}


def examine(run: str | Path, *, look: bool = True) -> Examination:
    """Read a run and apply every rule to it.

    Args:
        run: its directory.
        look: also load a few of its images and its model.

    Returns:
        Findings, most urgent first, the rules that passed, and those that could not be applied.

    Raises:
        FileNotFoundError: when the directory holds no run.
        ValueError: when its logs are damaged.
    """
    return apply_rules(read_run(run, look=look))


def diagnose(run: str | Path, *, look: bool = True) -> list[Finding]:
    """Return what the rules find in a run, most urgent first.

    Args:
        run: its directory.
        look: also load a few of its images and its model.

    Returns:
        The findings; none for a healthy run.
    """
    return list(examine(run, look=look).findings)


def write_json(examination: Examination, path: str | Path) -> None:
    """Write an examination as JSON.

    Args:
        examination: the result.
        path: file.
    """
    content = {
        "format": 1,
        "worst": examination.worst,
        "findings": [finding.to_dict() for finding in examination.findings],
        "passed": list(examination.passed),
        "not_checked": examination.not_checked,
        "notes": list(examination.notes),
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (json.dumps(content, indent=2) + "\n").encode())


def to_text(examination: Examination) -> Any:
    """Return an examination for a ``rich`` console.

    Args:
        examination: the result.

    Returns:
        A renderable.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = []
    for finding in examination.findings:
        colour = _COLOURS[finding.severity]
        parts.append(Text.assemble((finding.severity, colour), f"  {finding.rule}: {finding.seen}"))
        parts.append(Padding(Text(finding.text()), (0, 0, 0, 4)))
        parts += [Padding(Text(option, style="bold"), (0, 0, 0, 8)) for option in finding.options]
        parts.append(Text(""))
    if examination.passed:
        parts.append(Text.assemble(("ok", "green"), f"  {', '.join(examination.passed)}"))
    for name, reason in examination.not_checked.items():
        parts.append(Text(f"not checked: {name} ({reason})", style="dim"))
    parts += [Text(f"note: {note}", style="dim") for note in examination.notes]
    return Group(*parts)
