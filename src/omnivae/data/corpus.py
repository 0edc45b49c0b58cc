"""Text as it is stored: a file, a folder of files or a column of a table to sentences, one a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omnivae.data.config import DataConfig

SUFFIXES = (".txt", ".text")
TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Corpus:
    """Sentences as they were read.

    Attributes:
        name: of the file or folder.
        sentences: text of each.
        keys: file and line of each, such as ``corpus.txt:12``.
        empty: number of lines without a token, which are left out.
        skipped: file and line, and what was wrong with it, of each line left out (``data.on_error`` skip).
    """

    name: str
    sentences: list[str]
    keys: list[str]
    empty: int
    skipped: list[tuple[str, str]]


def is_text(config: DataConfig) -> bool:
    """Return whether a data section names text: a ``.txt`` file, a folder of nothing else, or a table with a text column.

    Args:
        config: what to read.
    """
    if config.format != "auto":
        return config.format == "text"
    path = Path(config.path).expanduser()
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix.lower() in TABLES:
        return config.text_column is not None
    return path.is_dir() and bool(_files(path)) and all(p.suffix.lower() in SUFFIXES for p in _everything(path))


def read_corpus(config: DataConfig) -> Corpus:
    """Read the sentences of a file, of a folder of files, or of a column of a table.

    Args:
        config: what to read.

    Returns:
        Sentences in the order of files and lines; lines without a word are counted and left out.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when there is no sentence, or a line cannot be decoded and ``config.on_error`` is "stop".
    """
    path = Path(config.path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}; give data.path a text file with one sentence a line")
    files = _files(path) if path.is_dir() else [path]
    sentences, keys, skipped, empty = [], [], [], 0
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for number, text, problem in _lines(file, name, config):
            key = f"{name}:{number}"
            if problem is not None:
                if config.on_error == "stop":
                    raise ValueError(
                        f"{key}: {problem}; save the file as UTF-8, or leave such lines out with data.on_error skip"
                    )
                skipped.append((key, problem))
            elif not text.strip():
                empty += 1
            else:
                sentences.append(text.strip())
                keys.append(key)
    if not sentences:
        raise ValueError(
            f"{path} holds no sentence: expected a text file with one sentence a line, or a folder of them"
        )
    return Corpus(path.name, sentences, keys, empty, skipped)


# -- inside


def _lines(file: Path, name: str, config: DataConfig) -> Iterator[tuple[int, str, str | None]]:
    """Yield number, text, and what is wrong with it, of each line of a file or each row of a table."""
    data = file.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{name} is UTF-16; expected UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if file.suffix.lower() in TABLES:
        yield from _rows(data, file, name, config)
        return
    # Not splitlines: that would also cut at separators that are part of a sentence.
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield number, "", f"byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8"
            continue
        yield number, text, "a NUL character, which text does not have" if "\0" in text else None


def _rows(data: bytes, file: Path, name: str, config: DataConfig) -> Iterator[tuple[int, str, str | None]]:
    if config.text_column is None:
        raise ValueError(f"{name} is a table: say which column holds the sentences with data.text_column")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of {name} is not UTF-8: convert the table to UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=TABLES[file.suffix.lower()])
    if config.text_column not in (reader.fieldnames or []):
        raise ValueError(
            f"{name} has no column {config.text_column!r}; it has {', '.join(reader.fieldnames or ['none'])}"
        )
    for row in reader:
        value = row[config.text_column] or ""
        # A sentence is one line, also where a cell holds several.
        yield reader.line_num, " ".join(value.split()), None


def _everything(folder: Path) -> list[Path]:
    return [
        p
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]


def _files(folder: Path) -> list[Path]:
    return sorted((p for p in _everything(folder) if p.suffix.lower() in SUFFIXES), key=lambda p: p.as_posix())
