"""Transforms of volumes with an inverse: the idea, and how they are composed.

A transform looks at a volume and plans a :class:`Step`, which holds all that is needed to go there and back; a
:class:`Pipeline` plans several, one after another. What came out of a network goes back through the same steps to the source's
own grid and unit, and masks go along by nearest neighbours, without the steps that change values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from omnivae.data.volumes.resampling import Interpolation
from omnivae.volume import Volume


@dataclass(frozen=True)
class Step:
    """A transform planned for one volume.

    Attributes:
        kind: "geometry" moves voxels, "intensity" changes values.
        forward: applies it to a volume of the source's grid.
        backward: applies the inverse to a volume of the resulting grid.
        facts: figures to report, such as the share of values clipped.
        grid: size and affine of the result; None where they are the source's.
    """

    kind: Literal["geometry", "intensity"]
    forward: Callable[[Volume, Interpolation], Volume]
    backward: Callable[[Volume, Interpolation], Volume]
    facts: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[tuple[int, ...], np.ndarray] | None = None


class Transform(ABC):
    """Something that plans a step for a volume."""

    @abstractmethod
    def plan(self, volume: Volume) -> Step:
        """Return the step for a volume.

        Args:
            volume: that it will be applied to.

        Returns:
            The step.
        """


@dataclass(frozen=True)
class Applied:
    """What a pipeline made of a volume, and the way back.

    Attributes:
        volume: the result.
        source: geometry of the volume that went in (its values are not kept).
        steps: that were applied, in order.
        facts: their figures.
    """

    volume: Volume
    source: Volume
    steps: tuple[Step, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """Figures of all steps."""
        return {name: value for step in self.steps for name, value in step.facts.items()}

    def inverse(
        self, result: Volume | np.ndarray, *, values: bool = True, interpolation: Interpolation = "linear"
    ) -> Volume:
        """Bring something of the result's grid, such as a reconstruction, back to the source's grid and unit.

        Args:
            result: a volume or ``[C, I, J, K]`` of the result's size; any number of channels.
            values: whether values go back to the source's unit too; False for masks and error maps.
            interpolation: "nearest" for masks.

        Returns:
            A volume with the source's size, affine and origin.

        Raises:
            ValueError: for another size.
        """
        array = result.array if isinstance(result, Volume) else np.asarray(result)
        if array.ndim != 4 or array.shape[1:] != self.volume.size:
            raise ValueError(
                f"got an array of shape {list(array.shape)}; expected channels and the transformed size {list(self.volume.size)}"
            )
        same = len(array) == len(self.volume.array)
        out = self.volume.with_array(array, channels=self.volume.channels if same else ())
        for step in reversed(self.steps):
            if values or step.kind == "geometry":
                out = step.backward(out, interpolation)
        unit = self.source.unit if values else out.unit
        return out.with_array(out.array, unit=unit, affine=self.source.affine)

    def repeat(self, other: Volume, *, values: bool = False, interpolation: Interpolation = "nearest") -> Volume:
        """Take another volume of the source's grid, such as a mask, along the same way.

        Args:
            other: of the source's size.
            values: whether its values change too.
            interpolation: "nearest" for masks.

        Returns:
            A volume of the result's grid.

        Raises:
            ValueError: for another size.
        """
        if other.size != self.source.size:
            raise ValueError(f"got a volume of size {list(other.size)}; expected the source's {list(self.source.size)}")
        for step in self.steps:
            if values or step.kind == "geometry":
                other = step.forward(other, interpolation)
        return other


@dataclass(frozen=True)
class Pipeline(Transform):
    """Transforms, one after another.

    Args:
        transforms: in order.

    Example:
        >>> from omnivae.data.volumes import Orient, Pad, Window
        >>> volume = Volume(np.full((1, 5, 6, 7), -1000, np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]), unit="HU")
        >>> applied = Pipeline((Orient("RAS"), Window(-1000, 1000), Pad(multiple=4)))(volume)
        >>> applied.volume.size, applied.volume.orientation, float(applied.volume.array.max())
        ((8, 8, 8), 'RAS', 0.0)
        >>> back = applied.inverse(applied.volume)
        >>> back.size, back.orientation, back.unit, bool((back.array == volume.array).all())
        ((5, 6, 7), 'LPS', 'HU', True)
    """

    transforms: Sequence[Transform]

    def __call__(self, volume: Volume, *, interpolation: Interpolation = "linear") -> Applied:
        """Apply all transforms.

        Args:
            volume: any.
            interpolation: where a step resamples.

        Returns:
            The result and the way back.
        """
        steps, out = [], volume
        for transform in self.transforms:
            steps.append(transform.plan(out))
            out = steps[-1].forward(out, interpolation)
        return Applied(out, geometry_of(volume), tuple(steps))

    def plan(self, volume: Volume) -> Step:
        applied = self(volume)
        only = all(step.kind == "intensity" for step in applied.steps)
        return Step(
            "intensity" if only else "geometry",
            lambda v, mode: applied.repeat(v, values=True, interpolation=mode),
            lambda v, mode: applied.inverse(v, interpolation=mode),
            applied.facts,
            (applied.volume.size, applied.volume.affine),
        )


def geometry_of(volume: Volume, step: Step | None = None) -> Volume:
    """Return a volume of the same geometry whose values take no memory.

    Args:
        volume: any.
        step: that has moved it; its values are not looked at.
    """
    size, affine = (volume.size, volume.affine) if step is None or step.grid is None else step.grid
    empty = np.broadcast_to(np.zeros((), volume.array.dtype), (len(volume.array), *size))
    return volume.with_array(empty, affine=affine)
