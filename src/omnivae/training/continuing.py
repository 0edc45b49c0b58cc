"""What Lightning's restoring of an optimiser leaves undone when a run continues."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def continue_optimizer(optimizer: Optimizer, schedule: LambdaLR) -> None:
    """Let a restored optimiser go on with the options of this run, and with moments laid out like the weights.

    A checkpoint holds contiguous tensors, and fused optimisers walk through a weight and its moments in the order of memory:
    contiguous moments of a channels-last weight would be taken for those of other elements. A checkpoint also holds the learning
    rate, the decay and the moment decays that it was written with, which would win over what is asked for now. Nothing changes
    where the run was not interrupted.

    Args:
        optimizer: as restored, or new.
        schedule: of its learning rate.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    peak = optimizer.defaults["lr"]
    schedule.base_lrs = [peak] * len(optimizer.param_groups)
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group.update(optimizer.defaults)
        group["initial_lr"], group["lr"] = peak, peak * factor(schedule.last_epoch)
