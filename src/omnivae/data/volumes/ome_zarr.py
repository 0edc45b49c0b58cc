"""OME-Zarr images and plates (NGFF 0.4 and 0.5, and 0.1 to 0.3 as far as they go), read with zarr alone.

The paths of resolution levels come from the metadata, never from habit; axes may be written in either case, and be three to five;
channels may have no names. A crop reads the chunks that it touches and no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from omnivae.component import suggestion
from omnivae.data.volumes.header import VolumeHeader
from omnivae.data.volumes.nifti import pick_time
from omnivae.data.volumes.ome_zarr_metadata import ImageAbout, attributes, describe, inside, member, open_group
from omnivae.data.volumes.values import check_samples, native
from omnivae.volume import Space, Stored, Unit, Volume

Range = slice | tuple[int, int] | None


@dataclass(frozen=True)
class OmeZarrImage:
    """One image of an OME-Zarr store at one resolution, whose voxels are read when they are asked for.

    Args:
        path: of the image, or of a plate together with ``position``.
        level: of resolution, 0 the finest.
        position: field of view of a plate, such as "A/1/0".

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for a store without ``multiscales``, a plate without ``position``, axes that are not understood, and levels
            that are not there.
    """

    path: Path
    level: int = 0
    position: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        _ = self._about  # every mistake shows here, not at the first crop

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Time points, channels, and voxels along z, y, x."""
        t, c, z, y, x = (self._sizes.get(axis, 1) for axis in "tczyx")
        return t, c, z, y, x

    @property
    def axes(self) -> str:
        """Axes as they are stored, such as "tczyx", in lower case."""
        return self._about.axes

    @property
    def dtype(self) -> np.dtype:
        """Type of the samples."""
        return np.dtype(self._array.dtype)

    @property
    def levels(self) -> int:
        """Number of resolution levels."""
        return self._about.levels

    @property
    def version(self) -> str:
        """Of the specification, such as "0.4"."""
        return self._about.version

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels; empty where the store has none."""
        return self._about.channels

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Along z, y and x: micrometres (mm for a patient's volume)."""
        z, y, x = (float(np.diag(self._about.affine)[n]) for n in range(3))
        return z, y, x

    @property
    def affine(self) -> np.ndarray:
        """From indices (z, y, x) to the stage, micrometres along the same three axes."""
        return self._about.affine

    @property
    def problems(self) -> tuple[str, ...]:
        """What is unusual, a sentence each."""
        return self._about.problems

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Voxels of a chunk along z, y and x: crops along these borders read least."""
        sizes = dict(zip(self.axes, self._array.chunks, strict=True))
        z, y, x = (sizes.get(axis, 1) for axis in "zyx")
        return z, y, x

    def channel_index(self, channel: str | int) -> int:
        """Return the index of a channel.

        Args:
            channel: its name, or its number.

        Returns:
            The index.

        Raises:
            ValueError: for a channel that is not there, listing those that are.
        """
        count, names = self.shape[1], self.channels
        if isinstance(channel, str) and names.count(channel) == 1:
            return names.index(channel)
        if isinstance(channel, str) and names.count(channel) > 1:
            raise ValueError(f"{self._name} has {names.count(channel)} channels called {channel!r}: choose by number")
        if isinstance(channel, int) or channel.isdigit():
            if 0 <= int(channel) < count:
                return int(channel)
            raise ValueError(f"{self._name} has {count} channels; got channel {channel}; expected 0 to {count - 1}")
        has = f"it has {', '.join(names)}" if names else f"its {count} channels have no names: choose by number, from 0"
        raise ValueError(f"{self._name} has no channel {channel!r}{suggestion(channel, names)}; {has}")

    def crop(
        self,
        *,
        z: Range = None,
        y: Range = None,
        x: Range = None,
        channels: Sequence[str | int] | None = None,
        time: int | None = None,
    ) -> np.ndarray:
        """Read a box of voxels.

        Args:
            z: slice, or first and last index (not included), along z; None for all.
            y: along y.
            x: along x.
            channels: names or numbers, in the order wanted; None for all.
            time: which of several time points.

        Returns:
            ``[C, Z, Y, X]`` in the stored type.

        Raises:
            ValueError: for boxes that reach beyond the image, unknown channels, and damaged chunks.
        """
        times, count, *size = self.shape
        cut = {axis: _range(r, n, axis, self._name) for axis, r, n in zip("zyx", (z, y, x), size, strict=True)}
        cut["t"] = slice(at := pick_time(times, time, self._name), at + 1)
        wanted = None if channels is None else [self.channel_index(channel) for channel in channels]
        if wanted is None or wanted == list(range(count)):
            return self._read({**cut, "c": slice(0, count)})
        return np.concatenate([self._read({**cut, "c": slice(c, c + 1)}) for c in wanted])

    def volume(self, *, channels: Sequence[str | int] | None = None, time: int | None = None) -> Volume:
        """Read the whole image at this resolution.

        Args:
            channels: as :meth:`crop`.
            time: as there.

        Returns:
            The volume, axes z, y, x; of a patient's volume that this library wrote, the axes and affine that it had.

        Raises:
            ValueError: as :meth:`crop`.
        """
        array = self.crop(channels=channels, time=time)
        check_samples(array.dtype, self._name)
        names = self.channels
        if names and channels is not None:
            names = tuple(names[self.channel_index(channel)] for channel in channels)
        about = self._about
        if self._space() == "patient":
            array = np.ascontiguousarray(array.transpose(0, 3, 2, 1))
        return Volume(
            array,
            self._world(),
            unit="HU" if about.own.get("unit") == "HU" else "arbitrary",
            space=self._space(),
            channels=names,
            stored=Stored(array.dtype.name),
            source=str(self.path) + (f"/{self.position}" if self.position else ""),
            format="ome-zarr",
            origin={"version": self.version, "chunks": self.chunks},
            problems=self.problems,
        )

    def header(self) -> VolumeHeader:
        """Return shape, geometry and type."""
        times, c, *size = self.shape
        i, j, k = reversed(size) if self._space() == "patient" else size
        unit: Unit = "HU" if self._about.own.get("unit") == "HU" else "arbitrary"
        return VolumeHeader(
            (c, i, j, k),
            self._world(),
            self.dtype.name,
            unit=unit,
            space=self._space(),
            channels=self.channels,
            times=times,
            levels=self.levels,
            format="ome-zarr",
            source=str(self.path) + (f"/{self.position}" if self.position else ""),
            problems=self.problems,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Other processes open the store themselves.
        return {"path": self.path, "level": self.level, "position": self.position}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    @property
    def _name(self) -> str:
        return str(self.path / self.position) if self.position else str(self.path)

    @property
    def _sizes(self) -> dict[str, int]:
        return dict(zip(self.axes, self._array.shape, strict=True))

    @cached_property
    def _about(self) -> ImageAbout:
        return describe(self._group, self._name, self.level)

    @cached_property
    def _group(self) -> Any:
        group = open_group(self.path)
        plate = attributes(group).get("plate")
        if self.position is None:
            if plate is not None:
                found = plate_positions(self.path)
                raise ValueError(
                    f"{self.path} is a plate of {len(found)} fields of view; expected one: choose a position, such as "
                    f"{found[0] if found else 'A/1/0'}"
                )
            return group
        if plate is None:
            raise ValueError(f"{self.path} is no plate and has no position {self.position!r}: leave position out")
        known = plate_positions(self.path)
        if self.position.strip("/") not in known:
            shown = ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
            raise ValueError(
                f"{self.path} has no position {self.position!r}{suggestion(self.position, known)}; it has {shown or 'none'}"
            )
        return open_group(self.path / self.position.strip("/"))

    @cached_property
    def _array(self) -> Any:
        return member(self._group, self._about.dataset, self._name)

    def _space(self) -> Space:
        return "patient" if self._about.own.get("space") == "patient" else "stage"

    def _world(self) -> np.ndarray:
        """Return the affine of the volume: of a patient's, the one that was stored, coarsened to this level."""
        if self._space() != "patient":
            return self.affine
        factors = np.array(self._about.coarser)[::-1]
        coarse = np.diag([*factors, 1.0])
        coarse[:3, 3] = (factors - 1) / 2  # the first voxel lies in the middle of those that it stands for
        return np.asarray(self._about.own["affine"], dtype=np.float64) @ coarse

    def _read(self, cut: Mapping[str, slice]) -> np.ndarray:
        try:
            part = np.asarray(self._array[tuple(cut.get(axis, slice(None)) for axis in self.axes)])
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ValueError(f"{self._name} is damaged: voxels cannot be read ({reason}): copy it again") from error
        kept = [axis for axis in "tczyx" if axis in self.axes]
        part = part.transpose([self.axes.index(axis) for axis in kept])
        shape = dict(zip(kept, part.shape, strict=True))
        return native(part.reshape([shape.get(axis, 1) for axis in "czyx"]))


def plate_positions(path: str | Path) -> list[str]:
    """List the fields of view of a plate, such as "A/1/0", in natural order.

    Args:
        path: of the plate.

    Returns:
        Their paths within the plate; empty where it is an image.

    Raises:
        ValueError: for wells that the plate lists but does not have.
    """
    from omnivae.data.volumes.listing import natural

    path = Path(path)
    plate = attributes(open_group(path)).get("plate")
    if plate is None:
        return []
    found = []
    for well in plate.get("wells", []):
        name = inside(str(well["path"]), path)
        about = attributes(open_group(path / name)).get("well")
        if about is None:
            raise ValueError(
                f"{path / name} is listed as a well of a plate but says nothing about its images: copy it again"
            )
        found += [f"{name}/{inside(str(image['path']), path)}" for image in about.get("images", [])]
    return sorted(found, key=natural)


def _range(given: Range, size: int, axis: str, name: str) -> slice:
    if given is None:
        return slice(0, size)
    if isinstance(given, slice):
        if given.step not in (None, 1):
            raise ValueError(f"got a step of {given.step} along {axis}; expected whole ranges")
        first = 0 if given.start is None else given.start
        last = size if given.stop is None else given.stop
    else:
        first, last = given
    if not 0 <= first < last <= size:
        raise ValueError(f"got {axis} from {first} to {last} of {name}; expected a range within 0 to {size}")
    return slice(first, last)
