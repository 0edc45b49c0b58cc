"""Stacks of frames in tiles: each stack is computed alone, and joined with the others as :class:`StackedVAE` joins them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from omnivae.models.stacked import StackedVAE, blend_weights
from omnivae.models.tiled.execute import Sink, check_disk
from omnivae.models.tiled.graph import Input, Region
from omnivae.models.tiled.storage import Buffer, scratch_folder
from omnivae.models.vae import VAE

#: Share of the memory that frames between two stacks may take; more go into a file.
SHARED = 0.25


def stack_starts(vae: VAE, frames: int) -> list[int]:
    """Return at which frames the stacks of a padded clip start; a list of 0 for what is seen at once.

    Args:
        vae: a model.
        frames: length of the first axis.
    """
    return vae.stack_starts(frames) if isinstance(vae, StackedVAE) else [0]


def stack_shape(vae: VAE, size: Sequence[int], stride: int = 1) -> tuple[int, ...]:
    """Return the part of a clip or latent that the networks see at a time.

    Args:
        vae: a model.
        size: of a padded clip, or of a latent.
        stride: frames for each position of ``size``.
    """
    length = vae.stack_size if isinstance(vae, StackedVAE) else None
    return tuple(size) if length is None else (min(size[0], length // stride), *size[1:])


def later(read: Callable[[Region], Tensor], start: int) -> Callable[[Region], Tensor]:
    """Return a reader of what begins ``start`` positions later along the first axis."""
    if not start:
        return read
    return lambda region: read(_moved(region, start))


def in_grey(vae: StackedVAE, read: Callable[[Region], Tensor]) -> Callable[[Region], Tensor]:
    """Return a reader of colour clips for a model of one channel, as :meth:`StackedVAE.grey` makes them."""
    return lambda region: vae.grey(read(region))


class Joined:
    """Decoded stacks on their way into a clip: where they overlap, likelihood parameters are blended.

    Frames that the next stack sees too wait in a ring, in memory or in a file.

    Args:
        starts: of the stacks, in frames.
        shape: of a decoded stack, ``[1, C, L, *S]``.
        overlap: frames that neighbours share.
        dtype: of decoded stacks.
        write: takes regions of likelihood parameters of the clip.
        memory: bytes; a share of it may hold the ring.
        scratch: folder for the file.

    Raises:
        OSError: when the disk has no room for the ring.
    """

    def __init__(
        self,
        starts: Sequence[int],
        shape: Sequence[int],
        overlap: int,
        *,
        dtype: torch.dtype,
        write: Sink,
        memory: int,
        scratch: Path | None = None,
    ) -> None:
        self.starts, self.write = list(starts), write
        self.length, self.overlap = shape[2], overlap if len(starts) > 1 else 0
        self.ramp = blend_weights(self.length, self.overlap)
        self.total = torch.zeros(self.starts[-1] + self.length, dtype=self.ramp.dtype)
        for start in self.starts:
            self.total[start : start + self.length] += self.ramp
        self.ring: Buffer | None = None
        #: What the ring takes of the memory, or of the disk.
        self.ring_bytes = self.file_bytes = 0
        if self.overlap:
            node = Input(tuple(shape), dtype, (None, None, *range(len(shape) - 2)))
            size = node.num_bytes
            in_memory = size <= SHARED * memory
            if in_memory:
                self.ring_bytes = size
            else:
                self.file_bytes = size
                check_disk(scratch_folder(scratch), size)
            self.ring = Buffer(node, None if in_memory else scratch_folder(scratch))

    def sink(self, number: int) -> Sink:
        """Return what takes the regions of one stack; stacks come in order.

        Args:
            number: of the stack.
        """
        start = self.starts[number]
        if self.ring is None:
            return lambda region, params: self.write(_moved(region, start), params)
        last = number + 1 == len(self.starts)
        seen = start + self.overlap if number else start
        final = start + self.length if last else self.starts[number + 1]

        def take(region: Region, params: Tensor) -> None:
            (first, stop), *plane = _moved(region, start)
            params = params * _along_time(self.ramp[first - start : stop - start], params)
            middle = min(max(first, seen), stop)
            if first < middle:
                params[:, :, : middle - first] += self._read(first, middle, plane).to(params)
            middle = min(max(first, final), stop)
            if first < middle:
                done = params[:, :, : middle - first]
                self.write(((first, middle), *plane), done / _along_time(self.total[first:middle], params))
            if middle < stop:
                self._keep(middle, stop, plane, params[:, :, middle - first :])

        return take

    def close(self) -> None:
        """Give memory or disk back."""
        if self.ring is not None:
            self.ring.close()

    def _read(self, first: int, stop: int, plane: Sequence[tuple[int, int]]) -> Tensor:
        assert self.ring is not None
        return torch.cat([self.ring.read((part, *plane)) for part in self._places(first, stop)], 2)

    def _keep(self, first: int, stop: int, plane: Sequence[tuple[int, int]], params: Tensor) -> None:
        assert self.ring is not None
        done = 0
        for part in self._places(first, stop):
            count = part[1] - part[0]
            self.ring.write((part, *plane), params[:, :, done : done + count])
            done += count

    def _places(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return where frames lie in the ring; fewer than a stack are there at a time, so that no two share a place."""
        a, n = first % self.length, stop - first
        if a + n <= self.length:
            return [(a, a + n)]
        return [(a, self.length), (0, a + n - self.length)]


def _moved(region: Region, start: int) -> Region:
    (first, stop), *plane = region
    return ((first + start, stop + start), *plane)


def _along_time(weights: Tensor, like: Tensor) -> Tensor:
    return weights.to(like).reshape(-1, *[1] * (like.ndim - 3))
