"""A volume through a model and back: into the model's intensities and orientation, encoded, decoded, and home to its own grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from omnivae.data.cache import SHARE, free_memory
from omnivae.data.volumes.transforms import Applied
from omnivae.data.volumes.windows import contract_pipeline
from omnivae.jobs.volumes_channels import choose_channels, known_channels
from omnivae.models import VAE
from omnivae.models.tiled.memory import parse_bytes
from omnivae.volume import Unit, Volume

log = logging.getLogger(__name__)

Mode = Literal["exact", "blended"]


@dataclass(frozen=True)
class Rebuilt:
    """A volume and what a model made of it.

    Attributes:
        original: as it was read, with the channels that the model takes.
        reconstruction: on the same grid, in the same unit and type.
        below: voxels below the model's window, which came back as its lower end.
        above: voxels above it.
        resampled: whether voxels were interpolated on the way there and back.
        window: lowest and highest value that the model sees of this volume, of the first channel where they differ; without
            clipping, of all values.
        notes: what a reader must know.
    """

    original: Volume
    reconstruction: Volume
    below: int
    above: int
    resampled: bool
    window: tuple[float, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A volume as a model sees it.

    Attributes:
        applied: in the model's orientation, voxel size and intensities, and the way back.
        limits: lowest and highest value that a decoding may have.
        window: lowest and highest value that the model sees of the first channel; without clipping, of all values.
        below: voxels below the window, which come back as its lower end.
        above: voxels above it.
    """

    applied: Applied
    limits: tuple[float, float]
    window: tuple[float, float]
    below: int
    above: int


class VolumeCodec:
    """Reconstructs volumes with a model, in the contract that the model was trained with.

    Args:
        model: a VAE with three spatial axes.
        intensity: the contract of a model that has none of its own, as ``statistics["intensity"]`` would hold it.
        memory: what encoding and decoding may add to the memory, such as "4GB"; ``None`` computes the volume whole.
        mode: of the tiles: "exact", or "blended".
        instead: whether ``intensity`` counts instead of the model's own contract: that of latents which were encoded in it.

    Raises:
        ValueError: for a model of another number of axes, without a contract, or with two, and one whose ``statistics["channels"]``
            are no names of its channels.
    """

    def __init__(
        self,
        model: VAE,
        *,
        intensity: Mapping[str, Any] | None = None,
        memory: str | None = None,
        mode: Mode = "exact",
        instead: bool = False,
    ) -> None:
        if model.dim != 3:
            raise ValueError(
                f"this model takes images of {model.dim} axes, and volumes have three: use a model of volumes (MaisiVAE, "
                "BetaVae25D, conv_vae with dim 3)"
            )
        if model.cond_dim is not None:
            raise ValueError("this model takes a condition, which volumes do not have: use one without")
        own = None if instead else model.statistics.get("intensity")
        if own is not None and intensity is not None:
            raise ValueError(
                f"this model has an intensity contract of its own ({_said(own)}): leave out the window and the percentiles"
            )
        contract = own if own is not None else intensity
        if contract is None:
            raise ValueError(
                "this model does not say which values it takes: give the window of its training in HU (--window -1000 1000), or "
                "percentiles (--percentiles 0 99.5)"
            )
        self.model = model
        self.contract: dict[str, Any] = {"range": list(model.value_range), **contract}
        self.pipeline = contract_pipeline(self.contract)
        self.channels = known_channels(model.statistics, model.in_channels)
        self.memory, self.mode = memory, mode
        self._said: set[str] = set()

    @property
    def unit(self) -> Unit:
        """Of the values that the model was trained on."""
        return "HU" if self.contract.get("unit") == "HU" else "arbitrary"

    def __call__(self, volume: Volume, *, progress: Callable[[float], None] | None = None) -> Rebuilt:
        """Encode and decode a volume.

        Args:
            volume: in the unit of the contract.
            progress: of tiles; is called with the share done, from 0 to 2 (encoded, decoded).

        Returns:
            The volume, and what came back on its own grid.

        Raises:
            ValueError: for another unit, number of channels or a size that the model does not take.
            MemoryError: when it does not fit.
        """
        return self._through(volume, progress)[0]

    def with_errors(self, volume: Volume, *, progress: Callable[[float], None] | None = None) -> tuple[Rebuilt, Volume]:
        """Encode and decode a volume, and say how far off each voxel is.

        The errors are taken where the model sees the volume: values beyond its window count as the window's ends, and what
        resampling to the model's voxel size loses is no error.

        Args:
            volume: in the unit of the contract.
            progress: as of calling.

        Returns:
            The volume and what came back, and the absolute errors ``[1, I, J, K]`` float32 on its own grid: in HU for a contract
            in HU; otherwise as shares of the model's window (1 is its width), averaged over the channels.

        Raises:
            ValueError: as of calling.
            MemoryError: when it does not fit.
        """
        rebuilt, applied, decoded = self._through(volume, progress)
        seen = applied.volume.array
        first, last = self.contract["range"]
        low, high = (first, last) if self.contract.get("clip", True) else (-math.inf, math.inf)
        errors = np.abs(decoded.clip(low, high) - seen).mean(axis=0, keepdims=True, dtype=np.float32) / (last - first)
        if self.unit == "HU":
            ends = np.asarray(applied.facts["window"], dtype=np.float64)
            errors *= np.float32((ends[1] - ends[0]).mean())
        back = applied.inverse(errors.astype(np.float32, copy=False), values=False)
        array = np.ascontiguousarray(back.array, dtype=np.float32)
        return rebuilt, volume.with_array(array, unit=self.unit, channels=(), stored=None)

    def choose(self, volume: Volume) -> Volume:
        """Return the channels of a volume that the model was trained on, by their names; what was chosen is logged once.

        Args:
            volume: with any channels.

        Raises:
            ValueError: when the volume has another number of channels, and the model's are not among them.
        """
        chosen, said = choose_channels(volume, self.channels, self.model.in_channels)
        if said and said not in self._said:
            self._said.add(said)
            (log.warning if chosen is volume else log.info)("%s", said)
        return chosen

    def see(self, volume: Volume) -> Seen:
        """Return a volume as the model sees it.

        Args:
            volume: in the unit of the contract, with the channels that the model takes, as :meth:`choose` returns it.

        Raises:
            ValueError: for another unit, or number of channels.
        """
        if self.unit == "HU" and volume.unit != "HU":
            raise ValueError(
                "this model takes Hounsfield units, and the values are of an arbitrary unit: give a CT, or its DICOM series"
            )
        if len(volume.array) != self.model.in_channels:
            raise ValueError(
                f"{volume.source or 'the volume'} has {len(volume.array)} channels and the model takes {self.model.in_channels}: "
                "call choose first"
            )
        applied = self.pipeline(volume)
        seen = applied.volume.array
        low, high = self.model.value_range
        if float(seen.min()) < low - 1e-4 or float(seen.max()) > high + 1e-4:
            # A contract that does not clip (MAISI's of MR): the model saw such values in training.
            low, high = min(low, float(seen.min())), max(high, float(seen.max()))
        window = applied.facts.get("window", list(self.model.value_range))
        first = [float(np.asarray(end).reshape(-1)[0]) for end in window]
        below = above = 0
        if self.contract.get("clip", True):
            below, above = _outside(volume.array, window)
        else:
            first = [min(first[0], float(volume.array[0].min())), max(first[1], float(volume.array[0].max()))]
        return Seen(applied, (low, high), (first[0], first[1]), below, above)

    def encode(self, seen: Seen, *, progress: Callable[[float], None] | None = None) -> Any:
        """Return the posterior of a volume.

        Args:
            seen: the volume as the model sees it.
            progress: of tiles; is called with the share done, from 0 to 1.

        Raises:
            ValueError: for a size that the model does not take, and a budget that no tile fits into.
            MemoryError: when it does not fit.
        """
        array = np.ascontiguousarray(seen.applied.volume.array, dtype=np.float32)
        self._check_budget(array.shape, decode=False)
        return self._encode(array, progress)

    def decode(
        self,
        z: Tensor,
        applied: Applied,
        limits: tuple[float, float],
        *,
        like: Volume,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[Volume, tuple[str, ...]]:
        """Return what a latent decodes to, on the grid of the volume that was encoded.

        Args:
            z: the latent ``[C, *S]``.
            applied: the way back.
            limits: as of :class:`Seen`.
            like: geometry, unit, type and origin of that volume; its values are not looked at.
            progress: as of encoding.

        Returns:
            The volume, and what a reader must know.

        Raises:
            ValueError: for a budget that no tile fits into.
            MemoryError: when it does not fit.
        """
        size = applied.volume.size
        self._check_budget((len(like.array), *size), encode=False)
        return self._home(self._decode(z[None], size, progress), applied, limits, like)

    def _through(self, volume: Volume, progress: Callable[[float], None] | None) -> tuple[Rebuilt, Applied, np.ndarray]:
        volume = self.choose(volume)
        seen = self.see(volume)
        decoded = self._run(np.ascontiguousarray(seen.applied.volume.array, dtype=np.float32), progress)
        reconstruction, notes = self._home(decoded, seen.applied, seen.limits, volume)
        rebuilt = Rebuilt(
            original=volume,
            reconstruction=reconstruction,
            below=seen.below,
            above=seen.above,
            resampled=bool(seen.applied.facts.get("resampled", False)),
            window=seen.window,
            notes=notes,
        )
        return rebuilt, seen.applied, decoded

    def _home(
        self, decoded: np.ndarray, applied: Applied, limits: tuple[float, float], like: Volume
    ) -> tuple[Volume, tuple[str, ...]]:
        np.clip(decoded, *limits, out=decoded)
        array, lost = _as_stored(applied.inverse(decoded).array, like.array.dtype)
        notes = (f"{lost:,} values beyond {like.array.dtype} became its ends",) if lost else ()
        return like.with_array(array), notes

    def _check_budget(self, shape: Sequence[int], *, encode: bool = True, decode: bool = True) -> None:
        """Refuse a budget that exact tiles do not fit into, with one that they do fit into, before anything is computed."""
        if self.memory is None or self.mode != "exact":
            return
        budget, size = parse_bytes(self.memory), tuple(shape[1:])
        tiled = self._tiled()
        try:
            if encode:
                tiled.encode_schedule(size)
            if decode:
                tiled.decode_schedule(self.model.latent_size(size))
        except ValueError as error:
            reason = str(error).split(": give memory=")[0].split("; got memory=")[0]
            raise ValueError(
                f"got --memory {self.memory}, and {reason}: {_plan_that_fits(self.model, (1, *shape), budget)}"
            ) from error

    def _run(self, array: np.ndarray, progress: Callable[[float], None] | None) -> np.ndarray:
        self._check_budget(array.shape)
        posterior = self._encode(array, progress)
        return self._decode(posterior, array.shape[1:], progress and (lambda share: progress(1 + share)))

    @torch.no_grad()
    def _encode(self, array: np.ndarray, progress: Callable[[float], None] | None) -> Any:
        x = torch.from_numpy(array)[None]
        if self.memory is not None:
            return self._tiled(progress).encode(x)
        with self._told_what_fits(array.shape):
            return self.model.encode(x.to(self._device))

    @torch.no_grad()
    def _decode(self, z: Any, size: Sequence[int], progress: Callable[[float], None] | None) -> np.ndarray:
        if self.memory is not None:
            decoded = self._tiled(progress).decode(z, size=size)
        else:
            with self._told_what_fits((self.model.in_channels, *size)):
                decoded = self.model.decode(z.to(self._device) if isinstance(z, Tensor) else z, size=size)
        return np.asarray(decoded[0].float().cpu().numpy())

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tiled(self, progress: Callable[[float], None] | None = None) -> Any:
        from omnivae.models.tiled.wrapper import Tiled

        def tell(tiles: Any) -> None:
            if progress is not None:
                progress(float(tiles.fraction))

        assert self.memory is not None
        return Tiled(self.model, memory=parse_bytes(self.memory), mode=self.mode, progress=tell)

    @contextmanager
    def _told_what_fits(self, shape: Sequence[int]) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            size = " x ".join(str(n) for n in shape[1:])
            # A quarter of what is free leaves room for the volume, its copies and everybody else.
            said = _plan_that_fits(self.model, (1, *shape), int(SHARE * free_memory()))
            raise MemoryError(f"a volume of {size} does not fit into memory whole: {said}") from error


def check_precision(memory: str | None, mode: Mode, precision: str) -> None:
    """Raise ``ValueError`` for exact tiles in another precision than float32.

    Args:
        memory: budget, or None.
        mode: of the tiles.
        precision: of the networks.
    """
    if memory is not None and mode == "exact" and precision != "32":
        raise ValueError(
            f"got --memory and --precision {precision}; exact tiles are computed in float32: leave out --precision"
        )


def _plan_that_fits(model: VAE, shape: Sequence[int], memory: int) -> str:
    """Return the option that makes exact tiles fit, and the tiles.

    The least budget is searched upwards from the given one by factors of 1.25: where a smaller one suffices for encoding, decoding
    may need more.
    """
    from omnivae.jobs.plan import plan_model

    while True:
        # Up to the next number of two digits, so that what is printed is what was planned.
        step = 10 ** max(0, len(str(memory)) - 2)
        memory = -(-memory // step) * step
        try:
            plan = plan_model(model, tuple(shape), memory=memory, measure=False)
        except ValueError:
            if memory > max(1e12, 1e6 * math.prod(shape)):
                return "no budget was found that exact tiles fit into: give --mode blended"
            memory = int(1.25 * memory) + 1
            continue
        rows = [" ".join(line.split()) for line in str(plan).splitlines() if ", tiled" in line]
        return f"give --memory {_budget(memory)} ({'; '.join(rows)})"


def _budget(memory: int) -> str:
    """Return bytes as the option takes them.

    Example:
        >>> _budget(13_000_000), _budget(1_700_000_000), _budget(900)
        ('13MB', '1.7GB', '900')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if memory >= size:
            return f"{memory / size:g}{unit}"
    return str(memory)


def _said(contract: Mapping[str, Any]) -> str:
    kind = next((name for name in ("window", "percentiles", "zscore") if name in contract), "window")
    return f"{kind} {contract.get(kind)}, unit {contract.get('unit', 'arbitrary')}"


def _outside(array: np.ndarray, window: Any) -> tuple[int, int]:
    """Count the voxels below and above a window, or those of each channel."""
    low, high = (np.asarray(end, dtype=np.float64).reshape(-1, 1, 1, 1) for end in window)
    return int(np.count_nonzero(array < low)), int(np.count_nonzero(array > high))


def _as_stored(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Return values in a type, rounded for integers, and how many did not fit."""
    if dtype.kind not in "iu":
        return array.astype(dtype, copy=False), 0
    limits = np.iinfo(dtype)
    out = np.empty(array.shape, dtype)
    lost = 0
    step = max(1, 2**22 // max(1, math.prod(array.shape[:-1])))
    for start in range(0, array.shape[-1], step):
        part = (..., slice(start, start + step))
        values = np.rint(array[part].astype(np.float64))
        lost += int(np.count_nonzero((values < limits.min) | (values > limits.max)))
        out[part] = values.clip(limits.min, limits.max).astype(dtype)
    return out, lost
