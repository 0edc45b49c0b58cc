"""Encoded images in Parquet files, read by row group: only a bounded number of decoded groups is kept in memory.

A Parquet column cannot be read value by value, so an access costs a row group. Groups that were read lately are kept; an
order that goes through a few groups at a time (see :func:`omnivae.data.shards.shard_permutation`) reads each one once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

#: Decoded bytes that a process keeps, and the largest row group that it can be asked to decode.
RESIDENT_BYTES, LARGEST_GROUP = 256 << 20, 1 << 30


@dataclass
class RowGroupBytes:
    """The encoded images of a column, by row.

    Args:
        paths: Parquet files.
        column: holds bytes, or Hugging Face's ``{bytes, path}``.
        file: number of the file of each row group, ``[G]``.
        group: number of each row group in its file, ``[G]``.
        starts: first row of each row group, and the total, ``[G + 1]``.
        group_bytes: decoded size of the column in each row group, ``[G]``.
        resident_bytes: decoded bytes to keep; one group is always kept.
    """

    paths: list[Path]
    column: str
    file: np.ndarray
    group: np.ndarray
    starts: np.ndarray
    group_bytes: np.ndarray
    resident_bytes: int = RESIDENT_BYTES
    _kept: OrderedDict[int, Any] = field(default_factory=OrderedDict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> bytes:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[group])
        with self._lock:
            column = self._group(group)
        value = column[row].as_py()
        if not value:
            path = self.paths[int(self.file[group])]
            raise ValueError(
                f"{path}: row {self._row_in_file(group, row)} of the column {self.column!r} holds no bytes: remove it, or write "
                "the image into it"
            )
        return value

    @property
    def window(self) -> int | None:
        """Row groups that can be mixed with each other while half the memory holds them; None where everything fits."""
        if int(self.group_bytes.sum()) <= self.resident_bytes:
            return None
        return max(1, self.resident_bytes // 2 // int(self.group_bytes.max()))

    def _row_in_file(self, group: int, row: int) -> int:
        first = int(np.searchsorted(self.file, self.file[group]))
        return int(self.starts[group] - self.starts[first]) + row

    def _group(self, group: int) -> Any:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        while self._kept and self._size() + int(self.group_bytes[group]) > self.resident_bytes:
            self._kept.popitem(last=False)
        self._kept[group] = _read_group(self.paths[int(self.file[group])], int(self.group[group]), self.column)
        return self._kept[group]

    def _size(self) -> int:
        return sum(int(self.group_bytes[g]) for g in self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_kept": OrderedDict(), "_lock": Lock()}


def open_row_groups(paths: list[Path], column: str) -> RowGroupBytes:
    """List the row groups of some Parquet files.

    Args:
        paths: the files.
        column: the column of images.

    Returns:
        Access by row; nothing is decoded yet.

    Raises:
        ValueError: for a row group that is too large to be decoded at once.
    """
    import pyarrow.parquet as pq

    files, groups, rows, sizes = [], [], [0], []
    for number, path in enumerate(paths):
        with pq.ParquetFile(path) as parquet:
            metadata = parquet.metadata
            for group in range(metadata.num_row_groups):
                about = metadata.row_group(group)
                chunks = (about.column(c) for c in range(about.num_columns))
                size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
                if size > LARGEST_GROUP:
                    raise ValueError(
                        f"{path}: row group {group} holds {size / 2**30:.1f} GiB of images, which have to be decoded at once: "
                        "write the table with smaller ones, e.g. pyarrow.parquet.write_table(table, file, row_group_size=1000)"
                    )
                files.append(number)
                groups.append(group)
                rows.append(about.num_rows)
                sizes.append(size)
    return RowGroupBytes(paths, column, np.array(files), np.array(groups), np.cumsum(rows), np.array(sizes))


def read_columns(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    """Read small columns of a Parquet file completely.

    Args:
        path: the file.
        columns: their names.

    Returns:
        Values by column.
    """
    import pyarrow.parquet as pq

    if not columns:
        return {}
    with pq.ParquetFile(path) as parquet:
        table = parquet.read(columns=columns)
    return {column: table[column].to_pylist() for column in columns}


def _read_group(path: Path, group: int, column: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as parquet:
            values = parquet.read_row_group(group, columns=[column], use_threads=False)[column]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: row group {group} is damaged ({str(error).splitlines()[0]}): write it again"
        ) from error
    if pa.types.is_struct(values.type):
        return pa.chunked_array([chunk.field("bytes") for chunk in values.chunks])
    return values
