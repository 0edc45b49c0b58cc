"""Fully sharded training: every process keeps its share of weights, gradients, optimiser state and moving average.

Lightning's strategy for PyTorch's ``fully_shard`` (Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel,
2023). Encoder and decoder are gathered one at a time while they compute. Checkpoints and model directories are those of any
other run: whole tensors, written by rank 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from omnivae.losses import Loss
from omnivae.training.config import TrainingConfig
from omnivae.training.distributed import TIMEOUT
from omnivae.training.ema import lerp_all, warmed_up
from omnivae.training.module import VAEModule
from omnivae.training.opponents import average_over_processes

_GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SCATTER = StateDictOptions(full_state_dict=True)


def check_sharded(config: TrainingConfig, losses: Mapping[str, Loss]) -> None:
    """Refuse what cannot be trained in shards.

    Args:
        config: how to train.
        losses: name to loss.

    Raises:
        ValueError: names the option and what to set it to.
    """
    for name, bad in (("compile", True), ("channels_last", True), ("precision", "16")):
        if getattr(config, name) == bad:
            good = "bf16 or 32" if name == "precision" else "auto or false"
            raise ValueError(f"got training.{name}={bad} with training.strategy=fsdp; set it to {good}, or use ddp")
    inside = [f"losses.{name}.{loss.inside}" for name, loss in losses.items() if loss.inside]
    if inside:
        raise ValueError(
            f"got training.strategy=fsdp and {inside[0]}, which takes gradients inside the model; change the latter, or use ddp"
        )


class ShardedModule(VAEModule):
    """A :class:`VAEModule` whose model is divided among the processes when training starts."""

    #: A model of the same architecture as a whole, in main memory of rank 0: what pictures and model directories are made
    #: from. In a tuple: as a part of this module it would be trained and saved.
    _whole: tuple[nn.Module, ...] = ()

    def configure_model(self) -> None:
        """Divide the model, and the losses that have something to train."""
        if isinstance(self.vae, FSDPModule):
            return
        if self.global_rank == 0:
            self._whole = (copy.deepcopy(self.vae),)
        if torch.cuda.is_available():
            self.vae = nn.SyncBatchNorm.convert_sync_batchnorm(self.vae)
            self.losses = nn.SyncBatchNorm.convert_sync_batchnorm(self.losses)
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        # A single number cannot be divided (see ``on_before_optimizer_step``), and opponents have an optimiser of their own.
        kept = {p for p in self.vae.parameters() if p.ndim == 0}
        kept |= {p for p in self.losses.parameters() if p.ndim == 0 or not p.requires_grad}
        for part in (self.vae.encoder, self.vae.decoder, self.vae):
            fully_shard(part, mesh=mesh, ignored_params=kept)  # type: ignore[arg-type]
        # Called by themselves in validation; gathering belongs to ``forward`` otherwise.
        register_fsdp_forward_method(self.vae, "decode")
        register_fsdp_forward_method(self.vae, "encode")
        for loss in self.losses.values():
            if set(loss.parameters()) - kept:
                fully_shard(loss, mesh=mesh, ignored_params=kept)

    @property
    def fused(self) -> bool:
        """Whether the optimiser may update all tensors at once: not divided ones and whole ones."""
        return super().fused and not self._undivided()

    def _undivided(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor)]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the gradients of what is not divided, then measure and judge all of them."""
        average_over_processes([p.grad for p in self._undivided() if p.grad is not None])
        super().on_before_optimizer_step(optimizer)

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm of whole and divided gradients together."""
        parts = [[g for g in gradients if isinstance(g, DTensor) is divided] for divided in (True, False)]
        norms = [torch.nn.utils.get_total_norm(part) for part in parts if part]
        return torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as in a model that is not divided, one tensor at a time."""
        limit = self.config.gradient_clip
        factor = min(1.0, limit / (float(self.scalars.get("train/grad_norm", 0.0)) + 1e-6))
        for gradient in [p.grad for p in self.parameters() if p.grad is not None] if limit else []:
            if self.config.gradient_clip_algorithm == "value":
                gradient.clamp_(-limit, limit)
            else:
                gradient.mul_(factor)

    def whole_model(self) -> nn.Module:
        """Return the model with its present weights as a whole; every process must call this, rank 0 gets the weights."""
        reshard(self)
        state = get_model_state_dict(self, options=_GATHER)
        if not self._whole:
            return self.vae
        whole = self._whole[0]
        whole.load_state_dict({k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")})
        return whole


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for ``fully_shard`` over all processes, with whole checkpoints in this library's format.

    Args:
        size: number of processes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(
            data_parallel_size=size, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=TIMEOUT
        )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimiser's state as a whole, numbered as in an optimiser that is not divided; empty but on rank 0."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: Any = get_optimizer_state_dict(self.model, optimizer, options=_GATHER)  # type: ignore[arg-type]
        if not state:
            return {}
        numbers = {name: number for number, name in enumerate(self._names(optimizer))}
        groups = [g | {"params": [numbers[name] for name in g["params"]]} for g in state["param_groups"]]
        return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, and divide weights and optimiser state among the processes."""
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        assert isinstance(self.model, nn.Module)
        state = checkpoint.get("current_model_state", checkpoint["state_dict"])
        set_model_state_dict(self.model, state, options=_SCATTER)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = self._names(optimizer)
            named: Any = {
                "state": {names[number]: value for number, value in saved["state"].items()},
                "param_groups": [g | {"params": [names[n] for n in g["params"]]} for g in saved["param_groups"]],
            }
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
            # What had no gradient so far has no state, and must not get one by being asked for it.
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, parameter in enumerate(parameters):
                if number not in saved["state"]:
                    optimizer.state.pop(parameter, None)
        return checkpoint

    def _names(self, optimizer: Optimizer) -> list[str]:
        assert isinstance(self.model, nn.Module)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


class ShardedEma(pl.Callback):
    """The moving average of a divided model: each process averages its share. Saved like :class:`~omnivae.training.ema.Ema`.

    Args:
        decay: in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self._average: list[Tensor] = []
        self._restored: dict[str, Tensor] | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start at the present weights, or continue."""
        self._average = [tensor.clone() for tensor in _tensors(pl_module)]
        if self._restored is not None:
            with self.swapped(pl_module):
                set_model_state_dict(pl_module, dict(self._restored), options=_SCATTER)
            self._restored = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average where a step was done."""
        if trainer.global_step <= self._step:
            return
        self._step = trainer.global_step
        # The first average is the weights themselves, as in the one that is not divided.
        decay = warmed_up(self.decay, self.count) if self.count else 0.0
        lerp_all(self._average, _tensors(pl_module), decay)
        self.count += 1

    def averaged(self, pl_module: Any) -> nn.Module:
        """Return the averaged model as a whole; every process must ask, rank 0 gets the weights.

        Args:
            pl_module: the module that is trained.
        """
        with self.swapped(pl_module):
            return pl_module.whole_model()

    def swapped(self, pl_module: Any) -> Swap:
        """Return a context in which the module holds the average."""
        return Swap(self._average, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Validate the average."""
        self.swapped(pl_module).__enter__()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Give the weights back."""
        self.swapped(pl_module).__exit__()

    def state_dict(self) -> dict[str, Any]:
        """Return the last step averaged."""
        return {"latest_update_step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last step averaged."""
        self._step = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the average where the weights were."""
        with self.swapped(pl_module):
            # What is not divided comes as it is, and would change with the weights.
            state: dict[str, Any] = get_model_state_dict(pl_module, options=_GATHER)
            average = {name: value.clone() for name, value in state.items()}
        checkpoint["current_model_state"], checkpoint["state_dict"] = checkpoint["state_dict"], average
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.count)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the average for when training starts."""
        if "averaging_state" in checkpoint:
            self._restored, self.count = checkpoint["state_dict"], int(checkpoint["averaging_state"]["n_averaged"])


class Swap:
    """Exchanges a module's tensors with others, and back.

    Args:
        others: as many as the module has parameters and buffers.
        module: the module.
    """

    def __init__(self, others: list[Tensor], module: nn.Module) -> None:
        self.others, self.module = others, module

    @torch.no_grad()
    def __enter__(self) -> None:
        for other, own in zip(self.others, _tensors(self.module), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    def __exit__(self, *error: object) -> None:
        self.__enter__()


def reshard(module: nn.Module) -> None:
    """Give up what was gathered for a forward pass without a backward pass."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return this process's share of every parameter, and every buffer."""
    reshard(module)
    parameters = [p.to_local() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]
    return [p.detach() for p in parameters] + list(module.buffers())
