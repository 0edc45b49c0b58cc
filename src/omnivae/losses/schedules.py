"""Schedules: a weight as a function of training progress.

The linear and cyclical ones are the two formulas for KL annealing in common use (Bowman et al., Generating Sentences
from a Continuous Space, 2015; Fu et al., Cyclical Annealing Schedule, 2019), with ``beta = min(1, t / length)`` and
``beta = t' / (cycle / 2)`` in the first half of a cycle, 1 in the second.
"""

from __future__ import annotations

import math
from typing import Literal

from omnivae.component import Component

Unit = Literal["step", "epoch"]


class Schedule(Component):
    """Base of the schedules: a pure function of training progress.

    Attributes:
        unit: whether progress is counted in optimiser steps or in epochs.
    """

    abstract = True

    unit: Unit = "step"

    def __call__(self, t: float) -> float:
        """Return the value at progress ``t`` (steps or epochs, >= 0)."""
        raise TypeError(f"{type(self).__name__} does not define a value")

    def _set_unit(self, unit: str) -> None:
        if unit not in ("step", "epoch"):
            raise ValueError(f"got unit={unit!r}; expected 'step' or 'epoch'")
        self.unit = unit  # type: ignore[assignment]


class ConstantSchedule(Schedule):
    """The same value throughout.

    Args:
        value: the value.
    """

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, t: float) -> float:
        return self.value


class LinearSchedule(Schedule):
    """``start + (end - start) * min(1, t / length)``: linear annealing.

    Args:
        start: value at t = 0.
        end: value from ``length`` on.
        length: duration, in units.
        unit: "step" or "epoch".

    Example:
        >>> schedule = LinearSchedule(length=40, unit="epoch")
        >>> schedule(10), schedule(80)
        (0.25, 1.0)
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, length: float = 40.0, unit: Unit = "step") -> None:
        self.start, self.end, self.length = start, end, _positive("length", length)
        self._set_unit(unit)

    def __call__(self, t: float) -> float:
        return self.start + (self.end - self.start) * min(1.0, t / self.length)


class CosineSchedule(Schedule):
    """``end + (start - end) * (1 + cos(pi * min(1, t / length))) / 2``.

    Args:
        start: value at t = 0.
        end: value from ``length`` on.
        length: duration, in units.
        unit: "step" or "epoch".
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, length: float = 40.0, unit: Unit = "step") -> None:
        self.start, self.end, self.length = start, end, _positive("length", length)
        self._set_unit(unit)

    def __call__(self, t: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, t / self.length)))


class CyclicalSchedule(Schedule):
    """Cyclical annealing (Fu et al., Cyclical Annealing Schedule, 2019).

    With ``t' = t mod cycle_length``: ``t' / (ramp * cycle_length)`` while ``t' <= ramp * cycle_length``, else 1; scaled
    from [0, 1] to [start, end].

    Args:
        start: value at the beginning of each cycle.
        end: value that each cycle ramps up to.
        cycle_length: length of a cycle, in units.
        ramp: share of the cycle that ramps, in (0, 1].
        unit: "step" or "epoch".

    Example:
        >>> schedule = CyclicalSchedule(cycle_length=10, unit="epoch")
        >>> [schedule(t) for t in (0, 4, 5, 9, 10)]
        [0.0, 0.8, 1.0, 1.0, 0.0]
    """

    def __init__(
        self,
        start: float = 0.0,
        end: float = 1.0,
        cycle_length: float = 10.0,
        ramp: float = 0.5,
        unit: Unit = "step",
    ) -> None:
        if not 0 < ramp <= 1:
            raise ValueError(f"got ramp={ramp}; expected a share of the cycle in (0, 1]")
        self.start, self.end, self.ramp = start, end, ramp
        self.cycle_length = _positive("cycle_length", cycle_length)
        self._set_unit(unit)

    def __call__(self, t: float) -> float:
        within = t % self.cycle_length
        half = self.ramp * self.cycle_length
        fraction = within / half if within <= half else 1.0
        return self.start + (self.end - self.start) * fraction


def value_at(weight: float | Schedule, *, step: int, epoch: float) -> float:
    """Return a weight's value at a point of training.

    Args:
        weight: a number or a schedule.
        step: optimiser steps so far.
        epoch: epochs so far.

    Returns:
        The number, or the schedule's value in its own unit.
    """
    if isinstance(weight, Schedule):
        return weight(epoch if weight.unit == "epoch" else step)
    return float(weight)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"got {name}={value}; expected a positive number")
    return value
