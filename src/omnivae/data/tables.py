"""Tables of images: CSV, TSV and Parquet with a column of paths or of encoded images, Hugging Face's layout included."""

from __future__ import annotations

import json
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.component import suggestion
from omnivae.data.config import DataConfig
from omnivae.data.images import SUFFIXES
from omnivae.data.naming import SPLIT_WORDS, split_files, to_classes
from omnivae.data.parquet import open_row_groups, read_columns
from omnivae.data.sources import Found, Split
from omnivae.data.stored import Collection, NumberedKeys, PathBlobs, collect
from omnivae.data.volumes.recognising import SUFFIXES as VOLUME_SUFFIXES

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_PARQUET = (".parquet", ".pq")
#: Names of columns that hold an image or its path, in lower case.
_IMAGE_NAMES = frozenset({
    "image", "images", "img", "imgs", "picture", "photo", "pixels", "bytes", "image_bytes", "path", "paths", "file", "files",
    "filename", "file_name", "filepath", "file_path", "image_path", "img_path", "image_file", "image_filename", "jpg", "jpeg",
    "png", "webp", "tif", "tiff", "bmp", "npy",
})  # fmt: skip
_LABEL_NAMES = ("label", "labels", "class")
_SPLIT_NAMES = ("split",)


@dataclass(frozen=True)
class Table:
    """One file of a table: what is known before its images are read.

    Attributes:
        path: the file.
        columns: name of each column -> its Arrow type.
        num_rows: number of rows.
        class_names: names of the classes that Hugging Face's metadata states, by column.
        arrow: the whole table (text files), or None (Parquet, read by row group).
    """

    path: Path
    columns: dict[str, Any]
    num_rows: int
    class_names: dict[str, list[str]]
    arrow: Any = None


def is_table(path: Path) -> bool:
    """Return whether a path is a table, or a folder with Parquet files in it or up to two folders down."""
    if path.is_file():
        return path.suffix.lower() in TABLE_SUFFIXES
    return any(True for pattern in ("*", "*/*", "*/*/*") for _ in path.glob(f"{pattern}.parquet"))


def list_tables(path: Path) -> tuple[Path, list[str]]:
    """Return the table files that a path names: the file itself, or all in a folder and its subfolders.

    Args:
        path: a CSV, TSV or Parquet file, or a folder with some (of one kind).

    Returns:
        A folder, and the files relative to it, sorted.

    Raises:
        ValueError: when there is none, or a folder mixes Parquet with text.
    """
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(
                f"{path} is not a table (expected {', '.join(TABLE_SUFFIXES)}): correct data.path or data.format"
            )
        return path.parent, [path.name]
    found = (p for p in path.rglob("*") if p.suffix.lower() in TABLE_SUFFIXES and p.is_file())
    files = sorted(p.relative_to(path).as_posix() for p in found)
    files = [file for file in files if not any(part.startswith(".") for part in file.split("/"))]
    if not files:
        raise ValueError(
            f"no table in {path} (looked for {', '.join(TABLE_SUFFIXES)}): correct data.path or data.format"
        )
    kinds = {file.lower().endswith(_PARQUET) for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"{path} holds both Parquet and text tables ({', '.join(files[:4])}): give data.path one of the files"
        )
    return path, files


def open_table(path: Path) -> Table:
    """Read a table's columns, and of a text table everything.

    Args:
        path: CSV, TSV or Parquet.

    Returns:
        The table.

    Raises:
        ValueError: when it is damaged.
    """
    import pyarrow as pa

    try:
        return _open_parquet(path) if path.suffix.lower() in _PARQUET else _open_text(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a readable table ({str(error).splitlines()[0]}): repair it or write it again"
        ) from error


def _open_parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    names: dict[str, list[str]] = {}
    stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for column, feature in ((stated.get("info") or {}).get("features") or {}).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            names[column] = [str(name) for name in feature["names"]]
    return Table(path, dict(zip(schema.names, schema.types, strict=True)), num_rows, names)


def _open_text(path: Path) -> Table:
    from pyarrow import csv

    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    if not first.strip():
        raise ValueError(f"{path} is empty or begins with an empty line; expected a line with the names of its columns")
    delimiter = max(",;\t", key=first.count) if path.suffix.lower() == ".csv" else "\t"
    arrow = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True))
    looks_like_data = [name for name in arrow.column_names if name.lower().endswith(SUFFIXES)]
    if looks_like_data:
        raise ValueError(
            f"{path} begins with {looks_like_data[0]!r}; expected a first line with the names of the columns, such as path,label"
        )
    if len(set(arrow.column_names)) < len(arrow.column_names):
        raise ValueError(f"{path} has two columns of one name ({', '.join(arrow.column_names)}): rename one")
    return Table(path, dict(zip(arrow.column_names, arrow.schema.types, strict=True)), arrow.num_rows, {}, arrow)


def kind_of(arrow_type: Any) -> str | None:
    """Return what a column of this Arrow type may hold: "bytes", "struct" (Hugging Face's), "text", or None."""
    import pyarrow.types as t

    if t.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if t.is_binary(arrow_type) or t.is_large_binary(arrow_type):
        return "bytes"
    if t.is_string(arrow_type) or t.is_large_string(arrow_type):
        return "text"
    if t.is_struct(arrow_type) and {"bytes", "path"} & {arrow_type.field(i).name for i in range(arrow_type.num_fields)}:
        return "struct"
    return None


def find_image_column(table: Table, given: str | None) -> str:
    """Return the column of images or paths.

    Args:
        table: the table.
        given: ``data.image_column``.

    Returns:
        Its name.

    Raises:
        ValueError: when there is none or more than one candidate, naming them.
    """
    described = ", ".join(f"{name} ({kind})" for name, kind in table.columns.items())
    if given is not None:
        if given not in table.columns:
            raise ValueError(
                f"{table.path} has no column {given!r}{suggestion(given, table.columns)}; it has {described}"
            )
        if kind_of(table.columns[given]) is None:
            raise ValueError(
                f"{table.path}: the column {given!r} holds {table.columns[given]}; expected paths (text), bytes, or "
                "{bytes, path}: correct data.image_column"
            )
        return given
    usable = [name for name, arrow_type in table.columns.items() if kind_of(arrow_type)]
    named = [name for name in usable if name.lower() in _IMAGE_NAMES]
    candidates = named or [name for name in usable if kind_of(table.columns[name]) != "text"]
    if not candidates and table.arrow is not None:
        candidates = [name for name in usable if _looks_like_paths(table.arrow[name])]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(
            f"{table.path} has several columns that may hold the images ({', '.join(candidates)}): set data.image_column to one"
            f"{_pairs_hint(table)}"
        )
    raise ValueError(
        f"{table.path} has no column that looks like images or their paths; it has {described}: set data.image_column"
        f"{_pairs_hint(table)}"
    )


def _pairs_hint(table: Table) -> str:
    """Say what columns a listing of pairs of volumes has, where a table may be one with others."""
    near = {wanted: get_close_matches(wanted, table.columns, n=1, cutoff=0.6) for wanted in ("baseline", "followup")}
    volumes = [
        name for name in table.columns if table.arrow is not None and _ends_in(table.arrow[name], VOLUME_SUFFIXES)
    ]
    if not all(near.values()) and len(volumes) < 2:
        return ""
    named = [columns[0] for columns in near.values()] if all(near.values()) else volumes[:2]
    renamed = f": rename {named[0]} and {named[1]}" if len(set(named)) == 2 else ""
    return f"; of a listing of pairs of volumes the columns are called baseline and followup{renamed}"


def _looks_like_paths(column: Any) -> bool:
    return _ends_in(column, SUFFIXES)


def _ends_in(column: Any, suffixes: tuple[str, ...]) -> bool:
    values = column.slice(0, 100).to_pylist()
    return bool(values) and all(str(value).lower().endswith(suffixes) for value in values)


def find_column(table: Table, given: str | None, names: Sequence[str], option: str) -> str | None:
    """Return the column of labels or splits, or None where there is none.

    Args:
        table: the table.
        given: what the user asked for.
        names: what to look for otherwise, in lower case, in this order.
        option: the option that says it, for errors.

    Returns:
        Its name.

    Raises:
        ValueError: when the column asked for is not there.
    """
    if given is not None:
        if given not in table.columns:
            raise ValueError(
                f"{table.path} has no column {given!r}{suggestion(given, table.columns)}; it has {', '.join(table.columns)}: "
                f"correct {option}"
            )
        return given
    found = {column.lower(): column for column in table.columns}
    return next((found[name] for name in names if name in found), None)


def read_tables(path: Path, config: DataConfig) -> Found:
    """Read a table of images.

    The splits are those of a column ``split``, or of the files' names (``train-00000-of-00002.parquet``), or none.

    Args:
        path: a CSV, TSV or Parquet file, or a folder of them.
        config: says the columns, where they cannot be told.

    Returns:
        All images, and the splits.

    Raises:
        FileNotFoundError: when files that the table lists are missing, naming them.
        ValueError: when there is no column of images, or more than one, or rows that cannot be used.
    """
    root, names = list_tables(path)
    tables = [table for table in (open_table(root / name) for name in names) if table.num_rows]
    if not tables:
        raise ValueError(f"{path} has no rows: correct data.path")
    column = find_image_column(tables[0], config.image_column)
    label = find_column(tables[0], config.label_column, _LABEL_NAMES, "data.label_column")
    split = find_column(tables[0], None, _SPLIT_NAMES, "")
    for table in tables[1:]:
        odd = [name for name in (column, label, split) if name is not None and name not in table.columns]
        if odd:
            raise ValueError(
                f"{table.path} has no column {odd[0]!r}, which {tables[0].path} has: give data.path one kind of table"
            )
    told = _told(tables, config)
    wanted = list(dict.fromkeys(name for name in (label, split, *told) if name is not None))
    if kind_of(tables[0].columns[column]) == "text":
        wanted.append(column)
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for table in tables:
        for name, part in _values(table, wanted).items():
            values[name] += part
    total = sum(table.num_rows for table in tables)
    files = [table.path.relative_to(root).as_posix() for table in tables]
    labels, classes = None, None
    if label is not None:
        labels, classes = to_classes(values[label], f"{path}: labels in {label!r}", tables[0].class_names.get(label))
    splits = _splits(path, values.get(split) if split else None, tables, files)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    bases = [table.path.parent for table in tables for _ in range(table.num_rows)]
    attributes = {name: _vector_files(values[name], bases) for name in told}
    if column in values:
        paths = _resolve(values[column], bases, path, skip_missing=config.on_error == "skip")
        keys = _path_keys(values[column], paths, root)
        return collect(Collection(name, PathBlobs(paths), keys, splits, labels, classes, attributes=attributes), config)
    blobs = open_row_groups([table.path for table in tables], column)
    starts = np.cumsum([0, *(table.num_rows for table in tables[:-1])])
    prefixes = [file.rsplit(".", 1)[0] for file in files]
    collection = Collection(
        name,
        blobs,
        NumberedKeys(dict(zip(prefixes, starts.tolist(), strict=True)), total),
        splits,
        labels,
        classes,
        groups=None if blobs.window is None else np.diff(blobs.starts),
        window=blobs.window or 1,
        containers=blobs.paths,
        attributes=attributes,
    )
    return collect(collection, config)


def _told(tables: list[Table], config: DataConfig) -> list[str]:
    """Return the columns that a conditional model is told; "label" is the column of labels, whatever its name."""
    names = [name for name in config.conditions if name not in ("label", "factors")]
    for table in tables:
        for name in names:
            find_column(table, name, (), "data.cond")
    return names


def _vector_files(values: list[Any], bases: list[Path]) -> list[Any]:
    """Return the paths that a column of ``.npy`` files names; any other column as it is."""
    if not values or not all(isinstance(value, str) and value.lower().endswith(".npy") for value in values):
        return values
    return [base / value for base, value in zip(bases, values, strict=True)]


def _values(table: Table, columns: list[str]) -> dict[str, list[Any]]:
    if table.arrow is None:
        return read_columns(table.path, columns)
    return {column: table.arrow[column].to_pylist() for column in columns}


def _splits(path: Path, values: list[Any] | None, tables: list[Table], files: list[str]) -> np.ndarray:
    if values is None:
        named: list[Split] = split_files(files, str(path)) if len(files) > 1 else ["train"]
        return np.repeat(np.array(named), [table.num_rows for table in tables])
    known = {value: SPLIT_WORDS.get(str(value).strip().lower()) for value in set(values)}
    unknown = sorted(str(value) for value, split in known.items() if split is None)
    if unknown:
        raise ValueError(
            f"{path}: the column 'split' holds {', '.join(map(repr, unknown[:5]))}; expected {', '.join(SPLIT_WORDS)}: rename the "
            "values, or the column"
        )
    if "train" not in known.values():
        raise ValueError(f"{path}: no row is for training according to the column 'split'")
    return np.array([known[value] for value in values])


def _resolve(values: list[Any], bases: list[Path], where: Path, *, skip_missing: bool) -> list[Path]:
    """Return the files that a table lists; its paths are absolute, or relative to its own folder."""
    empty = [i for i, value in enumerate(values) if not value]
    if empty:
        raise ValueError(
            f"{where}: {len(empty)} of {len(values)} rows have no path, e.g. row {empty[0]}: add or remove them"
        )
    urls = [value for value in values if "://" in value]
    if urls:
        raise ValueError(f"{where} lists addresses ({urls[0]}); expected files on this machine: fetch them first")
    paths = [Path(os.path.normpath(base / Path(value).expanduser())) for base, value in zip(bases, values, strict=True)]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{where} lists {len(repeated)} files more than once, e.g. {repeated[0]}: keep one row for each image, or some would "
            "weigh more, and one could be in two splits"
        )
    # Where they are to be left out, the check of the images says so.
    missing = [] if skip_missing else [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} files that {where} lists are missing: {shown}; paths are relative to {bases[0]}"
        )
    return paths


def _path_keys(values: list[str], paths: list[Path], root: Path) -> list[str]:
    """Return names that are relative and unique: below the table's folder the relative path, elsewhere the path as listed."""
    base = os.path.normpath(root)
    below = [os.path.relpath(path, base) if path.is_relative_to(base) else None for path in paths]
    outside = (posixpath.normpath("/" + Path(value).as_posix()).lstrip("/") for value in values)
    return [Path(inside).as_posix() if inside else other for inside, other in zip(below, outside, strict=True)]
