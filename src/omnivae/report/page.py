"""The frame of the HTML report: escaping, sections, tables, pictures and style. No script, nothing external."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --paper: #ffffff; --page: #f6f7f9; --ink: #1c2230; --muted: #5d6675; --line: #e2e5ea; --accent: #2563a8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1b1f27; --page: #12151b; --ink: #e8eaf0; --muted: #9aa3b2; --line: #2e3440; --accent: #7fb0e6; }
  figure { filter: brightness(.93); }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header.top { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header.top { padding-top: 48px; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 4px; letter-spacing: -.01em; }
p.lead, .note { color: var(--muted); margin: 0 0 16px; max-width: 75ch; }
p.lead { overflow-wrap: anywhere; }
.note { font-size: .94rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 18px 0 22px; font-size: .94rem; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 24px;
  margin: 0 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 4px 0 20px; }
.tile { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.45rem; font-weight: 620; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile b small { font-size: .9rem; font-weight: 450; color: var(--muted); }
.tile span { color: var(--muted); font-size: .86rem; }
figure { margin: 12px 0 0; padding: 14px; background: #ffffff; border: 1px solid var(--line); border-radius: 10px;
  overflow-x: auto; text-align: center; }
figure img { display: inline-block; max-width: 100%; height: auto; vertical-align: top; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
thead th { color: var(--muted); font-weight: 550; font-size: .86rem; }
tbody th { font-weight: 550; white-space: nowrap; }
table.facts th { width: 13rem; }
tbody tr:last-child > * { border-bottom: 0; }
td.number { white-space: nowrap; }
td.meaning { color: var(--muted); font-size: .9rem; }
details summary { cursor: pointer; font-weight: 600; font-size: 1.25rem; }
pre { overflow-x: auto; margin: 14px 0 0; padding: 16px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--page); font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { max-width: 1120px; margin: 0 auto; padding: 4px 24px 48px; color: var(--muted); font-size: .88rem; }
@media (max-width: 640px) { main, header.top { padding-left: 14px; padding-right: 14px; } section { padding: 16px; }
  header.top { padding-top: 28px; } figure img { min-width: 560px; } h1 { font-size: 1.6rem; } }
@media print { :root { --paper: #fff; --page: #fff; --ink: #000; --muted: #444; --line: #ccc; --accent: #000; }
  nav { display: none; } section { border: 0; padding: 0; margin: 0 0 28px; } figure { border: 0; padding: 0; }
  figure, table, h2, .tiles { break-inside: avoid; } h2 { break-after: avoid; } body { font-size: 11pt; }
  pre { white-space: pre-wrap; } }
"""


def page(title: str, lead: str, sections: Iterable[tuple[str, str]], footer: str) -> str:
    """Return the whole document.

    Args:
        title: heading and document title, plain text.
        lead: sentence under the heading, plain text.
        sections: (heading, HTML) of each section.
        footer: sentence at the end, plain text.

    Returns:
        HTML.
    """
    parts = list(sections)
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name, _ in parts)
    body = "\n".join(html for _, html in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header class="top">\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<nav aria-label="Sections">{links}</nav>\n</header>\n<main>\n{body}\n</main>\n'
        f"<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def section(name: str, note: str, *content: str) -> tuple[str, str]:
    """Return a section's heading and HTML.

    Args:
        name: heading, plain text.
        note: what the section shows and how to read it, plain text; may be empty.
        content: HTML.

    Returns:
        Heading and HTML, for :func:`page`.
    """
    text = f'<p class="note">{escape(note)}</p>' if note else ""
    body = "\n".join(content)
    return name, f'<section id="{anchor(name)}">\n<h2>{escape(name)}</h2>\n{text}\n{body}\n</section>'


def folded(name: str, *content: str) -> tuple[str, str]:
    """Return a section that opens on a click: heading and HTML.

    Args:
        name: heading, plain text.
        content: HTML.

    Returns:
        Heading and HTML, for :func:`page`.
    """
    body = "\n".join(content)
    html = f'<section id="{anchor(name)}">\n<details><summary>{escape(name)}</summary>\n{body}\n</details>\n</section>'
    return name, html


def picture(png: bytes, alt: str, *, scale: float = 1.0) -> str:
    """Return a figure with an embedded PNG.

    Args:
        png: the file's bytes.
        alt: what it shows, plain text.
        scale: CSS pixels for each pixel of the file.

    Returns:
        HTML.
    """
    # A PNG's header holds its size at a fixed place.
    width, height = (round(int.from_bytes(png[i : i + 4], "big") * scale) for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    return f'<figure><img src="{source}" width="{width}" height="{height}" alt="{escape(alt)}"></figure>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, both plain text."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str]) -> str:
    """Return a table with a head; the first cell of each row is its heading.

    Args:
        columns: headings, plain text.
        rows: cells, plain text.
        classes: CSS class of each column.

    Returns:
        HTML.
    """
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = ""
    for first, *rest in rows:
        cells = "".join(f'<td class="{c}">{escape(v)}</td>' for c, v in zip(classes[1:], rest, strict=True))
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return large numbers in boxes.

    Args:
        entries: (value, unit, what it is), plain text.

    Returns:
        HTML.
    """
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}{f" <small>{escape(unit)}</small>" if unit else ""}</b>'
        f"<span>{escape(name)}</span></div>"
        for value, unit, name in entries
    )
    return f'<div class="tiles">{boxes}</div>'


def code(text: str) -> str:
    """Return preformatted text."""
    return f"<pre>{escape(text)}</pre>"


def anchor(name: str) -> str:
    """Return a fragment identifier for a heading.

    Example:
        >>> anchor("Latent map")
        'latent-map'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
