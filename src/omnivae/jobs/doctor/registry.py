"""Findings, and the registry of the rules that make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from omnivae.jobs.doctor.records import Record

Severity = Literal["critical", "warning", "note", "ok"]
#: Most urgent first.
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note", "ok")


@dataclass(frozen=True)
class Finding:
    """What a rule found in a run.

    Attributes:
        rule: the rule's id.
        severity: "critical" (the run is lost or useless as it is), "warning" (it costs quality or time), "note".
        seen: what was seen, with numbers and steps.
        diagnosis: what it means.
        advice: what to do.
        options: the options to change, as given to ``omnivae train``.
    """

    rule: str
    severity: Severity
    seen: str
    diagnosis: str
    advice: str
    options: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def text(self) -> str:
        """Return diagnosis and advice as two sentences."""
        return f"{_sentence(self.diagnosis)} {_sentence(self.advice)}"

    def row(self) -> tuple[str, str, str]:
        """Return severity, what was seen, and the rest, for a table."""
        options = f" {'; '.join(self.options)}" if self.options else ""
        return self.severity, f"{self.rule}: {self.seen}", self.text() + options


Check = Callable[[Record], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        id: its name.
        looks_at: what it looks at, one phrase.
        needs: columns of ``metrics.csv`` that it cannot do without.
        rows: rows that these columns must have.
        check: the rule.
    """

    id: str
    looks_at: str
    needs: tuple[str, ...]
    rows: int
    check: Check

    def missing(self, record: Record) -> str | None:
        """Return why the rule cannot be applied, or ``None``."""
        for name in self.needs:
            have = len(record.curves[name]) if name in record.curves else 0
            if have < self.rows:
                return f"{name} was not logged" if not have else f"{name} has {have} rows, {self.rows} needed"
        return None


RULES: dict[str, Rule] = {}


def rule(id: str, looks_at: str, *, needs: Sequence[str] = (), rows: int = 20) -> Callable[[Check], Check]:
    """Register a rule.

    Args:
        id: its name.
        looks_at: what it looks at, one phrase.
        needs: columns of ``metrics.csv`` that it cannot do without.
        rows: rows that these columns must have.

    Returns:
        A decorator that returns the function as it is.
    """

    def register(check: Check) -> Check:
        if id in RULES:
            raise ValueError(f"two rules are named {id!r}")
        RULES[id] = Rule(id, looks_at, tuple(needs), rows, check)
        return check

    return register


@dataclass(frozen=True)
class Examination:
    """The result of every rule.

    Attributes:
        findings: most urgent first.
        passed: rules that found nothing.
        not_checked: rule to why it could not be applied.
        notes: what could not be read.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    not_checked: dict[str, str]
    notes: tuple[str, ...]

    @property
    def worst(self) -> Severity:
        """The most urgent severity found, "ok" where there is none."""
        return self.findings[0].severity if self.findings else "ok"


def apply_rules(record: Record) -> Examination:
    """Apply every rule to a run.

    Args:
        record: the run.

    Returns:
        Findings by urgency; within one severity in the order of the rules.
    """
    findings: list[Finding] = []
    passed, not_checked = [], {}
    for name, entry in RULES.items():
        reason = entry.missing(record)
        if reason is not None:
            not_checked[name] = reason
            continue
        found = list(entry.check(record))
        findings += found
        if not found:
            passed.append(name)
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    return Examination(tuple(findings), tuple(passed), not_checked, record.notes)


def number(value: float) -> str:
    """Return a number as people write it: three digits, no trailing zeros.

    Example:
        >>> number(0.00123456), number(1234.5), number(2.0)
        ('0.00123', '1,230', '2')
    """
    text = f"{value:.3g}"
    return f"{float(text):,.0f}" if 1000 <= abs(value) < 1e7 else text


def number_plain(value: float) -> str:
    """Return a number as an option takes it.

    Example:
        >>> number_plain(1250.0), number_plain(3.3333e-05)
        ('1250', '3.33e-05')
    """
    return f"{float(f'{value:.3g}'):g}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "`")) else ".")
