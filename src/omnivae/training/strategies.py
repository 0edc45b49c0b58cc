"""Lightning's strategies for one and for several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from omnivae.training.config import TrainingConfig
from omnivae.training.distributed import TIMEOUT, largest, several
from omnivae.training.opponents import average_over_processes
from omnivae.training.sharded import Sharded
from omnivae.training.world import World


def trainer_arguments(config: TrainingConfig, place: World, reaches_all: Callable[[], bool]) -> dict[str, Any]:
    """Return the ``Trainer``'s arguments that say where it runs.

    Args:
        config: how to train.
        place: this process.
        reaches_all: computes losses and returns whether their gradients reach every parameter that is trained.

    Returns:
        ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` and the plugin for the environment.
    """
    if place.size == 1:
        # Said explicitly: what a cluster's scheduler leaves in the environment must not turn one process into several.
        return {"accelerator": "auto", "devices": 1, "plugins": [LightningEnvironment()]}
    strategy = Sharded(place.size) if config.strategy == "fsdp" else DataParallel(reaches_all)
    return {
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": place.local_size,
        "num_nodes": place.size // place.local_size,
        "strategy": strategy,
        "plugins": [TorchElasticEnvironment()],
        "sync_batchnorm": torch.cuda.is_available(),
    }


class DataParallel(DDPStrategy):
    """Lightning's DDP, which looks for parameters without gradients in every step only where there are any.

    Args:
        reaches_all: computes losses and returns whether their gradients reach every parameter that is trained.
    """

    def __init__(self, reaches_all: Callable[[], bool]) -> None:
        # Statistics of the data are averaged by the trainer (see ``AverageStatistics``), not overwritten by rank 0's.
        super().__init__(timeout=TIMEOUT, broadcast_buffers=False, gradient_as_bucket_view=False)
        self._reaches_all = reaches_all

    def configure_ddp(self) -> None:
        # The likelihood's scale, for instance, takes no part in an L1 loss. Looking for such parameters costs a walk
        # through the graph in every step, and DDP hangs without it where there is one.
        with self.precision_plugin.forward_context():
            unused = largest(int(not self._reaches_all()))
        self._ddp_kwargs["find_unused_parameters"] = bool(unused)
        super().configure_ddp()


class AverageStatistics(pl.Callback):
    """Averages the running statistics of batch normalisation over the processes after every step.

    Each process sees its own share of a batch. The mean of the shares' means is that of the batch; the mean of their
    variances lacks the variance between the shares. On GPUs the layers see the whole batch instead (``SyncBatchNorm``).
    """

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average where a step was done."""
        if trainer.fit_loop._should_accumulate() or not several():
            return
        layers = [m for m in pl_module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
        tensors = [t for m in layers if m.training for t in (m.running_mean, m.running_var) if t is not None]
        if tensors:
            joint = torch.cat([tensor.flatten() for tensor in tensors])
            average_over_processes([joint])
            for tensor, part in zip(tensors, joint.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))
