"""Parts of a model that keep their weights for a while, or learn at a rate of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

log = logging.getLogger(__name__)


class Freezing:
    """Keeps parts of a model as they are, throughout or for the first steps; a function of the step, so it continues with a run.

    Args:
        vae: the model.
        names: submodules, such as "encoder".
        steps: optimiser steps for which they stay; ``None`` for the whole run.
        joint: whether several processes train together: what they exchange is agreed on at the start, so there the gradients
            of a phase are computed and dropped.

    Raises:
        ValueError: for a part that the model does not have.
    """

    def __init__(self, vae: nn.Module, names: Sequence[str], *, steps: int | None, joint: bool) -> None:
        self.names, self.steps, self.joint = tuple(names), steps, joint
        self.parts = [part_of(vae, name, "training.freeze") for name in names]
        self._frozen: bool | None = None
        if steps is None:
            for part in self.parts:
                part.requires_grad_(False)

    def active(self, step: int) -> bool:
        """Return whether the parts keep their weights in a step."""
        return bool(self.parts) and (self.steps is None or step < self.steps)

    def leaves_nothing(self, module: nn.Module) -> bool:
        """Return whether nothing that a module trains is left to train while the parts are frozen."""
        frozen = {id(p) for part in self.parts for p in part.parameters()}
        return all(id(p) in frozen for p in module.parameters() if p.requires_grad)

    def begin(self, step: int) -> None:
        """Prepare a training step: a frozen part has no gradients, and its normalisation statistics do not drift either."""
        active = self.active(step)
        if active:
            for part in self.parts:
                part.eval()
        if self.steps is None or active is self._frozen:
            return
        before, self._frozen = self._frozen, active
        for part in self.parts:
            if not active and before is not None:
                part.train()
            if not self.joint:
                part.requires_grad_(not active)
        if before is not None and not active:
            log.info(
                "step %d: %s now %s trained", step, " and ".join(self.names), "is" if len(self.names) == 1 else "are"
            )

    def drop_gradients(self, step: int) -> None:
        """Leave frozen parts out of an update: an optimiser passes over parameters without a gradient, and their moments."""
        if self.steps is not None and self.joint and self.active(step):
            for part in self.parts:
                for parameter in part.parameters():
                    parameter.grad = None


def part_of(vae: nn.Module, name: str, option: str) -> nn.Module:
    """Return a submodule by its name.

    Args:
        vae: the model.
        name: as in ``named_modules``.
        option: what asks for it, for the message.

    Returns:
        The submodule.

    Raises:
        ValueError: when there is none; names the parts.
    """
    part = dict(vae.named_modules()).get(name) if name else None
    if part is None:
        parts = ", ".join(n for n, _ in vae.named_children())
        raise ValueError(f"got {option}={name!r}; this model has {parts}")
    return part


def rate_groups(
    module: nn.Module, vae: nn.Module, multipliers: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the optimiser's groups: parameters that share a multiple of the learning rate.

    Args:
        module: whose parameters are trained.
        vae: the model, part of it.
        multipliers: submodule of the model to the multiple of its rate; of nested ones the innermost counts.

    Returns:
        Groups, and the multiple of each; the first one's is 1 where any parameter has that.

    Raises:
        ValueError: for a part that the model does not have.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> rate_groups(model, model, {"0": 0.1})[1]
        [1.0, 0.1]
    """
    rates: dict[int, float] = {}
    # Outer parts first, so that what is inside has the last word.
    for name in sorted(multipliers, key=lambda name: name.count(".")):
        for parameter in part_of(vae, name, "training.lr_multipliers").parameters():
            rates[id(parameter)] = float(multipliers[name])
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            found.setdefault(rates.get(id(parameter), 1.0), []).append(parameter)
    order = sorted(found, key=lambda rate: (rate != 1.0, rate))
    return [{"params": found[rate]} for rate in order], order
