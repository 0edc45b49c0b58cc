"""``Tiled``: a model that encodes and decodes images and volumes larger than memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from omnivae.models.stacked import StackedVAE
from omnivae.models.tiled import operators, statistics  # noqa: F401 (they fill the table of operators)
from omnivae.models.tiled.arrays import (
    Array,
    check_input,
    check_latent,
    check_model,
    image_channels,
    latent_scale,
    make_out,
    place_of,
    posterior_of,
    reader,
    writer,
)
from omnivae.models.tiled.blended import SeamError, blend, merge, spans, tile_length
from omnivae.models.tiled.execute import Progress, TileProgress, execute, tell_price
from omnivae.models.tiled.graph import Region
from omnivae.models.tiled.memory import format_bytes, parse_bytes
from omnivae.models.tiled.record import record
from omnivae.models.tiled.schedule import Schedule, make_schedule
from omnivae.models.tiled.stacks import Joined, in_grey, later, stack_shape, stack_starts
from omnivae.models.tiled.storage import scratch_folder
from omnivae.models.vae import VAE
from omnivae.types import strides

Mode = Literal["exact", "blended"]


class Tiled:
    """A model that encodes and decodes what does not fit into memory, with the interface of the model.

    ``mode="exact"`` gives what the model gives, up to rounding: the network's own graph is computed region by region. Every
    region sees the neighbours that its layers look at, the image's border is the only border, and normalisations use the
    statistics of the whole image, which are summed in sweeps over it. What lies between the sweeps is kept in memory or in
    temporary files, so that no convolution is computed twice (only the margins of tiles are). An operation between all
    positions, such as attention, is computed whole where the memory holds it and refused by name where it does not.

    ``mode="blended"`` runs the model on overlapping tiles and blends them smoothly. It needs no files and works for every
    spatial latent, but each tile is normalised by itself: :attr:`seams` says how far tiles disagreed where they overlap.

    Args:
        vae: a model with a spatial latent, in evaluation mode.
        memory: what encoding or decoding may add to the memory of the process: a number of bytes, or text such as "4GB".
            The model, what it is called with and an ``out`` are not counted; a result that is returned is.
        mode: "exact" or "blended".
        scratch: folder for temporary files; by default the system's own, or ``/var/tmp`` where that lies in memory. They vanish
            with the process, however it ends. Where its disk does not hold all of them, values are computed again instead.
        overlap: share of a blended tile that it has in common with each neighbour, in [0, 0.5].
        progress: called after every tile with a :class:`~omnivae.models.tiled.execute.TileProgress`.

    Raises:
        TypeError: for something else than a VAE.
        ValueError: for a model with a vector latent, one in training mode, or an option out of range.

    Example:
        >>> import omnivae
        >>> model = omnivae.kl_autoencoder(in_channels=1, channels=(8, 8), num_res_blocks=1, num_groups=4, dim=3)
        >>> x = torch.randn(1, 1, 16, 20, 24)
        >>> tiled = omnivae.Tiled(model.eval(), memory="500 kB")
        >>> posterior = tiled.encode(x)
        >>> bool(torch.allclose(posterior.mean, model.encode(x).mean, atol=1e-5))
        True
        >>> tiled.decode(posterior).shape
        torch.Size([1, 1, 16, 20, 24])
    """

    def __init__(
        self,
        vae: VAE,
        *,
        memory: str | int = "4GB",
        mode: Mode = "exact",
        scratch: str | Path | None = None,
        overlap: float = 0.25,
        progress: Progress | None = None,
    ) -> None:
        check_model(vae)
        if mode not in get_args(Mode):
            raise ValueError(f"got mode={mode!r}; expected 'exact' or 'blended'")
        if not 0 <= overlap <= 0.5:
            raise ValueError(f"got overlap={overlap}; expected a share of a tile in [0, 0.5]")
        self.vae = vae
        self.memory = parse_bytes(memory)
        self.mode: Mode = mode
        self.scratch = None if scratch is None else Path(scratch)
        if self.scratch is not None and not self.scratch.is_dir():
            raise FileNotFoundError(f"got scratch={self.scratch}, which is no folder; make it first")
        self.overlap = overlap
        self.progress = progress
        #: How far blended tiles disagreed in the last call; ``None`` after an exact one.
        self.seams: SeamError | None = None

    def __getattr__(self, name: str) -> Any:
        # What is not about tiles is the model's: value_range, latent_size, statistics, ...
        if name.startswith("__") or name == "vae":
            raise AttributeError(name)
        return getattr(self.vae, name)

    # -- the model's interface

    @torch.no_grad()
    def encode(self, x: Array, cond: Tensor | None = None) -> Any:
        """Return q(z|x), as the model's own ``encode`` does.

        Args:
            x: images in the model's value range, ``[B, C, *S]``; a numpy array may be mapped from a file.
            cond: condition, ``[B, E]``.

        Returns:
            The posterior.

        Raises:
            ValueError: for a wrong shape, NaN, or a memory that no tile fits into.
        """
        vae = self.vae
        check_input(vae, x.shape)
        size = tuple(int(n) for n in x.shape[2:])
        padded = vae.padded_size(size)
        starts = stack_starts(vae, padded[0])
        device, dtype = place_of(vae.encoder)
        rows, errors = [], []
        progress = self._overall(len(x) * len(starts))
        for b in range(x.shape[0]):
            row = None if cond is None else cond[b : b + 1]
            read = reader(x, b, size)
            if isinstance(vae, StackedVAE) and x.shape[1] != vae.in_channels:
                read = in_grey(vae, read)
            schedule = self.encode_schedule(size, row) if self.mode == "exact" else None
            if schedule is not None:
                tell_price(schedule, self.scratch)
            for start in starts:
                if schedule is not None:
                    part = later(read, start)
                    made = execute(schedule, part, device=device, scratch=self.scratch, progress=progress())
                    assert made is not None
                else:
                    latent = self._latent(stack_shape(vae, padded))
                    made = torch.empty(1, vae.encoder.out_channels, *latent, dtype=dtype)
                    errors.append(self._blend_encode(later(read, start), made, padded, row, progress()))
                rows.append(made)
        self.seams = merge(errors) if errors else None
        features = torch.cat(rows) if len(rows) > 1 else rows[0]
        return posterior_of(vae, features.to(device, dtype), size, cond, len(starts))

    @torch.no_grad()
    def decode(
        self,
        z: Any,
        cond: Tensor | None = None,
        *,
        size: Sequence[int] | None = None,
        out: Array | None = None,
    ) -> Any:
        """Return the mean of p(x|z), as the model's own ``decode`` does.

        Args:
            z: latents ``[B, C, *S]``, or a posterior, whose mode is decoded and whose image size is restored.
            cond: condition, ``[B, E]``; for a posterior the one that it was encoded under by default.
            size: spatial size to crop to; for a posterior the size of its image by default.
            out: tensor or array ``[B, C, *S]`` to write into, such as a numpy memmap; then nothing holds the whole image.

        Returns:
            ``out``, or images ``[B, C, *S]``.

        Raises:
            ValueError: for a wrong shape, or a memory that no tile fits into.
        """
        vae = self.vae
        if not isinstance(z, Tensor):
            size = z.input_size if size is None else size
            cond = getattr(z, "cond", None) if cond is None else cond
            z = z.mode()
        check_latent(vae, z)
        size = self._decoded_size(z.shape[2:], size)
        device, dtype = place_of(vae.decoder)
        shape = (z.shape[0], image_channels(vae), *size)
        wide = torch.promote_types(dtype, torch.float32)
        budget = self.memory if out is not None else self._without_result(shape, wide)
        images = make_out(vae, shape, wide, out)
        if latent_scale(vae) != 1.0:
            z = z / latent_scale(vae)
        stride = strides(vae.encoder, vae.dim)
        latent = stack_shape(vae, z.shape[2:], stride[0])
        starts = stack_starts(vae, z.shape[2] * stride[0])
        stack = (1, vae.decoder.out_channels, *(n * s for n, s in zip(latent, stride, strict=True)))
        errors = []
        progress = self._overall(len(z) * len(starts))
        for b in range(z.shape[0]):
            row = None if cond is None else cond[b : b + 1]
            read = reader(z, b, z.shape[2:])
            joined = Joined(
                starts,
                stack,
                getattr(vae, "overlap", 0),
                dtype=dtype,
                write=writer(vae, images, b, size),
                memory=budget,
                scratch=self.scratch,
            )
            with closing(joined):
                left, schedule = budget - joined.ring_bytes, None
                if self.mode == "exact":
                    disk = max(self._disk() - joined.file_bytes, 0)
                    schedule = self.decode_schedule(z.shape[2:], row, memory=left, disk=disk)
                    tell_price(schedule, self.scratch)
                for i, start in enumerate(starts):
                    part, sink, tell = later(read, start // stride[0]), joined.sink(i), progress()
                    if schedule is not None:
                        execute(schedule, part, device=device, sink=sink, scratch=self.scratch, progress=tell)
                    elif len(starts) == 1:
                        errors.append(self._blend_decode(part, latent, images[b : b + 1], row, left, tell))
                    else:
                        params = torch.empty(stack, dtype=dtype)
                        room = left - 2 * params.numel() * params.element_size()
                        errors.append(self._blend_decode(part, latent, params, row, room, tell, pixels=False))
                        sink(tuple((0, n) for n in stack[2:]), params)
        self.seams = merge(errors) if errors else None
        return images

    # -- what will be done

    def encode_schedule(self, size: Sequence[int], cond: Tensor | None = None) -> Schedule:
        """Return how an image of ``size``, or each stack of such a clip, is encoded exactly.

        Args:
            size: spatial size.
            cond: condition of one image, ``[1, E]``.

        Returns:
            The schedule.

        Raises:
            ValueError: when the memory does not do, or the network cannot be computed in exact tiles.
        """
        vae, encoder = self.vae, cast(Any, self.vae.encoder)
        padded = vae.padded_size(size)
        others = len(stack_starts(vae, padded[0])) - 1
        shape = stack_shape(vae, padded)
        latent = others * encoder.out_channels * math.prod(self._latent(shape)) * place_of(encoder)[1].itemsize
        # Features and posterior of the other stacks are there meanwhile.
        if 2 * latent >= self.memory:
            raise ValueError(
                f"the latent of a clip of {size[0]} frames takes {format_bytes(2 * latent)}; got memory="
                f"{format_bytes(self.memory)}: give more, or encode fewer frames at a time"
            )
        source, output = record(encoder, (1, vae.in_channels, *shape), cond=cond)
        return make_schedule(source, output, self.memory - 2 * latent, keep_output=True, disk=self._disk())

    def decode_schedule(
        self,
        latent_size: Sequence[int],
        cond: Tensor | None = None,
        *,
        memory: int | None = None,
        disk: int | None = None,
    ) -> Schedule:
        """Return how a latent of ``latent_size``, or each stack of it, is decoded exactly.

        Args:
            latent_size: spatial size of z.
            cond: condition of one image, ``[1, E]``.
            memory: bytes beside the result; all of them by default, as for a decoding into ``out``.
            disk: bytes for temporary files; nearly all that are free by default.

        Returns:
            The schedule.

        Raises:
            ValueError: when the memory does not do, or the network cannot be computed in exact tiles.
        """
        decoder: Any = self.vae.decoder
        shape = stack_shape(self.vae, latent_size, strides(self.vae.encoder, self.vae.dim)[0])
        source, output = record(decoder, (1, self.vae.latent_dim, *shape), cond=cond)
        disk = self._disk() if disk is None else disk
        return make_schedule(source, output, memory or self.memory, keep_output=False, disk=disk)

    # -- inside

    def _disk(self) -> int:
        # A twentieth is left to others.
        return int(0.95 * shutil.disk_usage(scratch_folder(self.scratch)).free)

    def _latent(self, padded: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the latent of a padded image."""
        return tuple(math.ceil(n / s) for n, s in zip(padded, strides(self.vae.encoder, self.vae.dim), strict=True))

    def _blend_encode(
        self,
        read: Callable[[Region], Tensor],
        out: Tensor,
        padded: Sequence[int],
        cond: Tensor | None,
        progress: Progress | None,
    ) -> SeamError:
        network: Any = self.vae.encoder
        device, dtype = place_of(network)
        stride = strides(network, self.vae.dim)
        budget = self.memory - 2 * out.numel() * out.element_size()
        size = tuple(out.shape[2:])
        shape = stack_shape(self.vae, padded)
        lengths = tile_length(network, self.vae.in_channels, size, stride, cond, budget, limit=shape, keep=self._kept())
        tiles = [spans(n, length, self.overlap) for n, length in zip(size, lengths, strict=True)]

        def run(region: Region) -> Tensor:
            pixels = tuple((a * s, min(b * s, n)) for (a, b), s, n in zip(region, stride, shape, strict=True))
            x = read(pixels).to(device, dtype)
            return network(x) if cond is None else network(x, cond)

        return blend(run, out, tiles, [1] * self.vae.dim, _fractions(progress))

    def _blend_decode(
        self,
        read: Callable[[Region], Tensor],
        latent: Sequence[int],
        out: Array,
        cond: Tensor | None,
        budget: int,
        progress: Progress | None,
        pixels: bool = True,
    ) -> SeamError:
        network: Any = self.vae.decoder
        device, dtype = place_of(network)
        single = [1] * self.vae.dim
        lengths = tile_length(
            network, self.vae.latent_dim, latent, single, cond, budget, limit=latent, keep=self._kept()
        )
        tiles = [spans(n, length, self.overlap) for n, length in zip(latent, lengths, strict=True)]

        def run(region: Region) -> Tensor:
            z = read(region).to(device, dtype)
            params = network(z) if cond is None else network(z, cond)
            return self.vae.likelihood_head(params, batch_ndim=1).mean if pixels else params

        return blend(run, out, tiles, strides(self.vae.encoder, self.vae.dim), _fractions(progress))

    def _kept(self) -> int:
        """Return how many axes, from the first, no blended tile cuts: the time of networks that take few numbers of frames."""
        return int(hasattr(self.vae.encoder, "padded_size"))

    def _overall(self, count: int) -> Callable[[], Progress | None]:
        """Return a function that gives, for each of ``count`` equal parts in turn, what is called with their progress."""
        if self.progress is None:
            return lambda: None
        begun, numbers, tell = time.perf_counter(), itertools.count(), self.progress

        def part() -> Progress:
            done = next(numbers)

            def report(now: TileProgress) -> None:
                seconds = time.perf_counter() - begun
                tell(dataclasses.replace(now, fraction=(done + now.fraction) / count, seconds=seconds))

            return report

        return part

    def _decoded_size(self, latent: Sequence[int], size: Sequence[int] | None) -> tuple[int, ...]:
        own = getattr(self.vae.decoder, "decoded_size", None)  # causal video: one frame more than a multiple
        stride = strides(self.vae.encoder, self.vae.dim)
        whole = tuple(n * s for n, s in zip(latent, stride, strict=True)) if own is None else own(latent)
        chosen = whole if size is None else tuple(int(n) for n in size)
        if len(chosen) != len(whole) or any(not 1 <= n <= m for n, m in zip(chosen, whole, strict=True)):
            raise ValueError(f"got size={chosen}; a latent of {tuple(latent)} decodes to at most {whole}")
        return chosen

    def _without_result(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        result = math.prod(shape) * dtype.itemsize
        if result >= self.memory:
            raise ValueError(
                f"the images of shape {tuple(shape)} alone take {format_bytes(result)}; got memory={format_bytes(self.memory)}: "
                "give more, or out=numpy.memmap(...) to write into"
            )
        return self.memory - result


def _fractions(progress: Progress | None) -> Callable[[float], None]:
    begun = time.perf_counter()

    def advance(fraction: float) -> None:
        if progress is not None:
            progress(TileProgress(fraction, time.perf_counter() - begun, 1, 1))

    return advance
