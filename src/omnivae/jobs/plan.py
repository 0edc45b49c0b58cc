"""``omnivae plan``: what encoding and decoding a size takes, before anything is computed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnivae.models import VAE, Tiled
from omnivae.models.storage import find_model
from omnivae.models.tiled.arrays import image_channels, meta_bytes
from omnivae.models.tiled.graph import Input
from omnivae.models.tiled.memory import format_bytes, parse_bytes
from omnivae.models.tiled.regions import MetaSource, compute, region_work
from omnivae.models.tiled.schedule import Schedule
from omnivae.models.tiled.stacks import stack_shape, stack_starts
from omnivae.models.tiled.storage import scratch_folder
from omnivae.recipes import RECIPES
from omnivae.types import strides

#: Multiplications of the region that is computed once to measure each sweep.
SAMPLE = 1e9


@dataclass(frozen=True)
class Plan:
    """What encoding and decoding images of one size takes.

    Attributes:
        input_shape: of a batch of images.
        valid_multiples: sizes along each axis that need no padding are multiples of these.
        padded_size: what an image is padded to.
        latent_shape: of z.
        output_shape: of the decoded images.
        parameters: number of parameters.
        parameter_bytes: their bytes.
        encode_bytes: the most that encoding without tiles takes at once.
        decode_bytes: likewise for decoding.
        memory: budget for tiles, or ``None``.
        encode: tiles under the budget, or ``None`` where none is given or the whole fits.
        decode: likewise.
        stacks: number of stacks of frames that ``encode`` and ``decode`` are carried out for; 1 where all is seen at once.
        encode_s: seconds that encoding under the budget is expected to take here, or ``None`` where nothing was measured.
        decode_s: likewise.
    """

    input_shape: tuple[int, ...]
    valid_multiples: tuple[int, ...]
    padded_size: tuple[int, ...]
    latent_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    parameter_bytes: int
    encode_bytes: int
    decode_bytes: int
    memory: int | None = None
    encode: Schedule | None = None
    decode: Schedule | None = None
    encode_s: float | None = None
    decode_s: float | None = None
    stacks: int = 1

    def __str__(self) -> str:
        at_a_time = "" if self.stacks == 1 else ", one stack of frames at a time"
        rows = [
            ("input", _times(self.input_shape)),
            ("valid sizes", "multiples of " + _times(self.valid_multiples) + "; others are padded and cropped back"),
            ("padded to", _times(self.padded_size)),
            ("latent", _times(self.latent_shape)),
            ("output", _times(self.output_shape)),
            ("parameters", f"{self.parameters:,} ({format_bytes(self.parameter_bytes)})"),
            ("encode, whole", f"{format_bytes(self.encode_bytes)} of activations" + at_a_time),
            ("decode, whole", f"{format_bytes(self.decode_bytes)} of activations" + at_a_time),
        ]
        for name, schedule, seconds in (
            ("encode, tiled", self.encode, self.encode_s),
            ("decode, tiled", self.decode, self.decode_s),
        ):
            if schedule is not None:
                each = "" if self.stacks == 1 else f"; that for each of {self.stacks} stacks of frames"
                rows.append((name, _describe(schedule, seconds, each)))
        return "\n".join(f"{name:<14} {text}" for name, text in rows)


def plan_model(
    model: str | Path | VAE, shape: tuple[int, ...], *, memory: str | int | None = None, measure: bool = True
) -> Plan:
    """Return what encoding and decoding images of one size takes; nothing of that size is computed.

    Args:
        model: a run, a model directory, the name of a recipe with its defaults, or a model.
        shape: of an image, ``(C, *S)`` or ``(*S)``, or of a batch ``(B, C, *S)``.
        memory: budget for exact tiles.
        measure: compute a small region of each sweep to estimate seconds; only with a budget.

    Returns:
        The plan.

    Raises:
        ValueError: for a shape that is not the model's, or a budget that no tile fits into: the message says what would do.

    Example:
        >>> import omnivae
        >>> tiny = omnivae.kl_autoencoder(in_channels=1, channels=(8, 8), num_res_blocks=1, num_groups=4, mid_attention=False)
        >>> plan = plan_model(tiny.eval(), (1, 100, 61), memory="800kB", measure=False)
        >>> plan.padded_size, plan.latent_shape
        ((100, 62), (1, 4, 50, 31))
    """
    vae = _model(model)
    full = _full_shape(vae, shape)
    size = full[2:]
    padded, latent = vae.padded_size(size), vae.latent_size(size)
    networks: Any = (vae.encoder, vae.decoder)
    stacks = len(stack_starts(vae, padded[0]))
    seen = stack_shape(vae, padded)
    z_shape = (full[0], vae.latent_dim, *latent)
    schedules: list[Schedule | None] = [None, None]
    seconds: list[float | None] = [None, None]
    budget = None if memory is None else parse_bytes(memory)
    if budget is not None:
        tiled = Tiled(vae, memory=budget)
        schedules = [tiled.encode_schedule(size), tiled.decode_schedule(latent)]
        if measure:
            seconds = [full[0] * stacks * _seconds(schedule) for schedule in schedules if schedule is not None]
    output = (full[0], image_channels(vae), *(getattr(vae, "output_size", None) or size))
    weights = [p.numel() * p.element_size() for p in vae.parameters()]
    return Plan(
        input_shape=full,
        valid_multiples=strides(vae.encoder, vae.dim),
        padded_size=padded,
        latent_shape=z_shape,
        output_shape=output,
        parameters=vae.num_parameters(),
        parameter_bytes=sum(weights),
        encode_bytes=meta_bytes(networks[0], (full[0], full[1], *seen)),
        decode_bytes=meta_bytes(
            networks[1], (*z_shape[:2], *stack_shape(vae, latent, strides(vae.encoder, vae.dim)[0]))
        ),
        memory=budget,
        encode=schedules[0],
        decode=schedules[1],
        encode_s=seconds[0],
        decode_s=seconds[1],
        stacks=stacks,
    )


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the numbers of a shape such as "1x512x512x300".

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_shape("1x512x512x300")
        (1, 512, 512, 300)
    """
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(
            f"got --input {text}; expected numbers such as 1x512x512x300: channels and the size of each axis"
        )
    return tuple(int(part) for part in parts)


# -- inside


def _model(model: str | Path | VAE) -> VAE:
    if isinstance(model, VAE):
        return model
    if not Path(model).exists() and str(model) in RECIPES:
        made = RECIPES[str(model)]().eval()
    else:
        made = VAE.from_pretrained(find_model(model))
    if not made.pixels:
        raise ValueError(f"{model} is a model of sentences; plan takes models of images and volumes")
    return made


def _full_shape(vae: VAE, shape: tuple[int, ...]) -> tuple[int, ...]:
    missing = 2 + vae.dim - len(shape)
    full = ((1, vae.in_channels), (1,), ())[2 - missing] + tuple(shape) if 0 <= missing <= 2 else ()
    if not full or full[1] != vae.in_channels:
        raise ValueError(
            f"got an input of {_times(shape)}; this model takes {vae.in_channels} channels and {vae.dim} axes: "
            f"give {vae.in_channels}x{'x'.join('DHW'[-vae.dim :])}"
        )
    return full


@torch.no_grad()
def _seconds(schedule: Schedule) -> float:
    """Estimate how long a schedule takes here, from a small region of each sweep."""
    total = 0.0
    for step in schedule.steps:
        if not step.splits:
            continue
        node, known = step.field, set(step.reads)
        lengths = [-(-n // parts) for n, parts in zip(node.size, step.splits, strict=True)]
        while True:
            region = tuple(((n - m) // 2, (n - m) // 2 + m) for n, m in zip(node.size, lengths, strict=True))
            work = region_work(node, region, known)
            if work <= SAMPLE or max(lengths) == 1:
                break
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            lengths[longest] = -(-lengths[longest] // 2)
        source = _Numbers(known)
        best = min(_timed(step, node, region, source) for _ in range(3))  # the first one also prepares kernels
        total += best * step.work / max(work, 1.0)
    return total


def _timed(step: Any, node: Any, region: Any, source: MetaSource) -> float:
    begun = time.perf_counter()
    tile = compute(node, region, source)
    for reduce in step.reduces:
        reduce.update(None, tile, region)
    if step.keep:
        tile.clone()  # stands for the way into memory or a file
    return time.perf_counter() - begun


class _Numbers(MetaSource):
    """Values of the right shapes for a measurement."""

    def field(self, node: Any, region: Any) -> torch.Tensor | None:
        if node not in self.known and not isinstance(node, Input):
            return None
        seen = super().field(node, region)
        return None if seen is None else torch.full_like(seen, 0.5, device="cpu")

    def whole(self, node: Any) -> torch.Tensor:
        return torch.zeros(node.shape, dtype=node.dtype)

    def tensors(self, node: Any) -> Any:
        return node.tensors


def _describe(schedule: Schedule, seconds: float | None, each: str) -> str:
    tiles = sum(step.num_tiles for step in schedule.steps if step.splits)
    sweeps = sum(bool(step.splits) for step in schedule.steps)
    text = (
        f"{format_bytes(schedule.peak_bytes)} at once, {format_bytes(schedule.file_bytes)} in temporary files, {tiles} tiles in "
        f"{sweeps} sweeps, {schedule.factor:.2f}x the arithmetic"
    )
    if schedule.recomputed:
        text += f" ({schedule.recomputed} values are computed again for want of disk)"
    folder = scratch_folder()
    free = shutil.disk_usage(folder).free
    if schedule.file_bytes > free:
        text += f"; {folder} has only {format_bytes(free)} free: free disk there, set TMPDIR to another folder, or give more memory"
    return text + each if seconds is None else f"{text}{each}, about {_duration(seconds)} in all here"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in numbers) or "1"
