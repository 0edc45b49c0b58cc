"""Where values that are computed tile by tile are kept: in memory, or in a file that vanishes with the process."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnivae.models.tiled.graph import Node, Region


def scratch_folder(chosen: Path | None = None) -> Path:
    """Return where temporary files go: the folder that was chosen, or the system's own, unless that lies in memory.

    On many systems the folder for temporary files is a file system in memory, where files would take what they are to save; such a
    one is passed over for ``/var/tmp``, which lies on a disk by convention.

    Args:
        chosen: a folder.

    Returns:
        The folder.
    """
    if chosen is not None:
        return chosen
    usual, other = Path(tempfile.gettempdir()), Path("/var/tmp")
    if not _in_memory(usual) or not os.access(other, os.W_OK | os.X_OK) or _in_memory(other):
        return usual
    return other


def _in_memory(folder: Path) -> bool:
    """Whether a folder lies in a file system in memory, where Linux says so."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    path = folder.resolve()
    above = [
        (len(Path(mount).parts), i, kind) for i, (_, mount, kind, *_) in enumerate(mounts) if path.is_relative_to(mount)
    ]
    return bool(above) and max(above)[2] in ("tmpfs", "ramfs")


class Buffer:
    """A field, channels last: positions first, whatever is not spatial behind them.

    Reading and writing of a file go row by row, so that no more of it is in memory than the region that is asked for.

    Args:
        node: whose value it is.
        directory: for the file; ``None`` keeps the value in memory.
        over: a value of the same shape whose place it takes: each region of that is read for the last time before it is written.
    """

    def __init__(self, node: Node, directory: Path | None = None, over: Buffer | None = None) -> None:
        self.node = node
        self.order = node.kept_order()
        self.back = sorted(range(len(self.order)), key=self.order.__getitem__)
        #: Dimensions in front of the spatial ones and behind them.
        self.front = self.order.index(node.dims()[0])
        self.rest = [node.shape[dim] for dim in self.order[self.front + len(node.size) :]]
        self.item = math.prod(self.rest) * node.dtype.itemsize
        self.values: Tensor | None = None
        self.file: Any = None
        if over is not None:
            self.values, self.file = over.values, over.file
        elif directory is None:
            self.values = torch.empty([*node.size, *self.rest], dtype=node.dtype)
        else:
            # Nothing is left behind, also after a kill: the file has no name (on Windows it is deleted when closed).
            self.file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115

    def read(self, region: Region) -> Tensor:
        """Return a copy of a region, in the dimensions of the node."""
        shape = [*[1] * self.front, *[stop - start for start, stop in region], *self.rest]
        if self.values is not None:
            part = self.values[tuple(slice(*bounds) for bounds in region)].clone(memory_format=torch.contiguous_format)
            return part.view(shape).permute(self.back)
        tile = torch.empty(shape, dtype=self.node.dtype)
        view = _bytes(tile)
        for place, begin, count in self._runs(region):
            self.file.seek(place)
            done = 0
            while done < count:
                got = self.file.readinto(view[begin + done : begin + count])
                if not got:
                    raise OSError("a temporary file of intermediate values ended early; is the disk full?")
                done += got
        return tile.permute(self.back)

    def write(self, region: Region, tile: Tensor) -> None:
        """Store a region."""
        values = tile.permute(self.order)
        if self.values is not None:
            self.values[tuple(slice(*bounds) for bounds in region)] = values[(0,) * self.front].to(self.values.device)
            return
        view = _bytes(values.cpu().contiguous())
        for place, begin, count in self._runs(region):
            self.file.seek(place)
            done = 0
            while done < count:
                done += self.file.write(view[begin + done : begin + count])

    def whole(self) -> Tensor:
        """Return all values that are in memory, in the dimensions of the node, without a copy."""
        assert self.values is not None, "a file is read region by region"
        return self.values[(None,) * self.front].permute(self.back)

    def close(self) -> None:
        """Give memory or disk back."""
        self.values = None
        if self.file is not None:
            self.file.close()

    def _runs(self, region: Region) -> Any:
        """Yield place in the file, place in the tile and length, in bytes, of each run that is contiguous in both."""
        size = self.node.size
        merged, length = len(size), self.item
        while merged and (merged == len(size) or region[merged] == (0, size[merged])):
            merged -= 1
            length *= region[merged][1] - region[merged][0]
        strides = [math.prod(size[axis + 1 :]) * self.item for axis in range(len(size))]
        start = sum(region[axis][0] * strides[axis] for axis in range(merged, len(size)))
        outer = [range(*region[axis]) for axis in range(merged)]
        for i, index in enumerate(itertools.product(*outer)):
            place = start + sum(n * s for n, s in zip(index, strides, strict=False))
            yield place, i * length, length


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)
