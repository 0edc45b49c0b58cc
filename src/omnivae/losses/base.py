"""The loss protocol and its one reduction rule.

A loss maps a model's output and the batch to one unweighted scalar: **sum over the event, mean over the batch**, in nats
where it is a density. ``per_element=True`` divides by the number of elements of the event instead; it is how "mean over
everything" losses of other code bases are spelt here. The weight, a number or a schedule, is applied by the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.component import Component, from_config, registered
from omnivae.losses.schedules import Schedule, value_at
from omnivae.types import Batch, VAEOutput

Weight = float | Schedule | dict[str, Any]


class Refusal(ValueError):
    """A combination that makes no sense.

    Args:
        problem: the loss, and what it misses.
        alternatives: two things to do, each of which works.

    Example:
        >>> str(Refusal("the loss 'kl' needs a density", ("drop 'kl'", "use a gaussian posterior")))
        "the loss 'kl' needs a density: drop 'kl', or use a gaussian posterior"
    """

    def __init__(self, problem: str, alternatives: tuple[str, str]) -> None:
        super().__init__(f"{problem}: {alternatives[0]}, or {alternatives[1]}")
        self.alternatives = alternatives


class Loss(nn.Module, Component):
    """Base of the losses.

    Args:
        weight: factor in the total: a number, a schedule, or a schedule's configuration
            (``{"component": "LinearSchedule", "length": 1000}``).
        per_element: divide by the number of elements of the event (pixels, or latent elements for a KL).

    Attributes:
        name: key in the ``losses`` section of a configuration.
        num_samples: posterior samples K that the loss asks for.
        needs: what the model must have: what its posterior provides ("density", "diagonal", "indices", or the name of a
            penalty), "prior", "independent prior" (in its dimensions), "kl of each element", "vector latent", "one latent",
            "planes" (two or three spatial axes), "pictures" (images of 1 or 3 channels), "any size" (a latent that is resized
            and turned decodes to an image that is).
        instead: property that is missing -> the setting to change, where dropping the loss is not the first thing to do.
        replaces: losses that this one stands in the place of.
        decodes: whether it decodes latents of its own, a second pass through the decoder.
        of_batch: whether it is one number of all images of a batch together and no mean over them: several processes then
            compute it on the batch of all of them.
        gather: a tensor of this process's share, its images first, to that of all shares; set by the trainer where ``of_batch``
            and there are several processes.
        decode: p(x|z) of any z of this batch, its condition included; set by the trainer where ``decodes``.
        least_size: least number of pixels along each axis of an image.
        smaller: the setting that lowers ``least_size``, in words.
        step: optimiser steps so far, set by the trainer.
        epoch: epochs so far, set by the trainer.
    """

    abstract = True

    name: str = ""
    num_samples: int = 1
    needs: frozenset[str] = frozenset()
    instead: Mapping[str, str] = MappingProxyType({})
    replaces: frozenset[str] = frozenset()
    decodes: bool = False
    of_batch: bool = False
    gather: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor], Distribution] | None = None
    least_size: int = 1
    smaller: str = ""
    step: int = 0
    epoch: float = 0.0

    def __init__(self, weight: Weight = 1.0, per_element: bool = False) -> None:
        super().__init__()
        self.weight = as_schedule("weight", weight)
        self.per_element = per_element

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        """Return the unweighted loss.

        Args:
            output: the model's output.
            batch: the batch it was computed from.

        Returns:
            A scalar.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Create what depends on the model, and refuse a model of the wrong kind; the trainer calls it before the first step.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z; 0 for a vector.
        """

    def seen_size(self, size: Sequence[int]) -> Sequence[int]:
        """Return those of an image's sizes that ``least_size`` is about: all, unless the loss looks at slices.

        Args:
            size: spatial size.

        Returns:
            Some of its numbers.
        """
        return size

    @property
    def inside(self) -> str | None:
        """The setting that has it take gradients between z and the pixels (``"adaptive=true"``), or ``None``."""
        return None

    def current_weight(self) -> float:
        """Return the weight at the present step."""
        return value_at(self.weight, step=self.step, epoch=self.epoch)

    def whole(self, share: Tensor) -> Tensor:
        """Return a tensor of the whole batch: what it is given, and every other process's share where there are several.

        Args:
            share: this process's, its images first, ``[B, ...]``.

        Returns:
            ``[N B, ...]`` for N processes.
        """
        return share if self.gather is None else self.gather(share)

    def reduce(self, per_sample: Tensor, event_size: int) -> Tensor:
        """Apply the reduction rule.

        Args:
            per_sample: sums over the event, ``[B]`` or ``[K, B]``.
            event_size: number of elements of the event.

        Returns:
            The mean over the batch, divided by ``event_size`` where ``per_element`` is set.
        """
        mean = per_sample.mean()
        return mean / event_size if self.per_element else mean


def as_schedule(name: str, value: Weight) -> float | Schedule:
    """Return a number or the schedule that a configuration describes.

    Args:
        name: what the value is for, for the message.
        value: number, schedule, or a schedule's configuration.

    Returns:
        A finite number or a schedule.

    Raises:
        ValueError: for anything else.
    """
    built = from_config(value) if isinstance(value, dict) else value
    if isinstance(built, Schedule):
        return built
    if isinstance(built, (int, float)) and math.isfinite(built):
        return float(built)
    raise ValueError(
        f"got {name}={value!r}; expected a finite number or a schedule such as {{component: LinearSchedule, length: 1000}}"
    )


def target_of(batch: Batch, output: VAEOutput) -> Tensor:
    """Return what the reconstruction is compared with: ``target`` where the batch has one, else ``x``.

    Args:
        batch: the batch.
        output: the model's output.

    Returns:
        ``[B, C, *S]``.

    Raises:
        ValueError: when its shape is not the reconstruction's: broadcasting would change the loss in silence.
    """
    target = batch.get("target", batch["x"])
    shape = output.likelihood.batch_shape[1:] + output.likelihood.event_shape
    if target.shape != shape:
        raise ValueError(
            f"got a target of shape {tuple(target.shape)}; the reconstruction's is {tuple(shape)}: give the batch a target of "
            "that shape, or build a model that returns its input's (BetaVae25D and BetaVaeMonai: match_input=True)"
        )
    return target


def event_size(x: Tensor) -> int:
    """Return the number of elements of one sample of ``[B, ...]``."""
    return x[0].numel()


def loss_classes() -> dict[str, type[Loss]]:
    """Return every loss by its configuration key."""
    return {cls.name: cls for cls in registered(Loss).values() if cls.name}
