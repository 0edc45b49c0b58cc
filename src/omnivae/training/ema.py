"""Exponential moving average of the weights, warmed up: decay min(ema, (1 + n) / (10 + n)) after n updates.

Without the warm-up a short run's average would still be mostly the random initialisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


class Ema(WeightAveraging):
    """Keeps the average beside the weights; validation, pictures and the model directory use it.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._update, use_buffers=True)
        self.decay = decay

    def averaged(self, pl_module: Any) -> nn.Module:
        """Return the averaged model.

        Args:
            pl_module: the module that is trained.
        """
        assert self._average_model is not None, "the average exists only while training"
        return self._average_model.module.vae  # type: ignore[return-value]

    @torch.no_grad()
    def _update(self, averaged: Any, current: Any, num_averaged: Any) -> None:
        lerp_all(averaged, current, warmed_up(self.decay, int(num_averaged)))


def warmed_up(decay: float, count: int) -> float:
    """Return the decay after ``count`` updates.

    Args:
        decay: in [0, 1).
        count: updates made.

    Example:
        >>> warmed_up(0.9, 1), warmed_up(0.9, 1000)
        (0.18181818181818182, 0.9)
    """
    return min(decay, (1 + count) / (10 + count))


def lerp_all(averaged: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """Move averages towards the present values, in place; whole numbers are copied.

    Args:
        averaged: the averages.
        current: as many, of the same shapes.
        decay: share of the average that stays.
    """
    floating: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a, c in zip(averaged, current, strict=True):
        if a.dtype.is_floating_point:
            floating[0].append(a)
            floating[1].append(c)
        else:
            a.copy_(c)
    if floating[0]:
        torch._foreach_lerp_(floating[0], floating[1], 1 - decay)
