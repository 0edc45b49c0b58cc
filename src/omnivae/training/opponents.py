"""Steps the opponents of adversarial losses (a GAN's discriminator) beside the model's own optimisation.

The model keeps Lightning's automatic optimisation: clipping, accumulation and the step count are its own. After each of its
batches the opponent's gradients are computed on the outputs of that batch, without their graph; the opponent steps when
the model steps. Outside of that its parameters are frozen, so the model's loss passes through it and leaves it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.losses import Loss
from omnivae.types import VAEOutput

#: Moment decays of the opponents' AdamW (VQGAN's).
BETAS = (0.5, 0.9)


def has_opponent(loss: nn.Module) -> bool:
    """Return whether a loss has an opponent to train."""
    return isinstance(getattr(loss, "opponent", None), nn.Module)


class Opponents(pl.Callback):
    """Trains the opponent of every loss that has one: AdamW, learning rate in step with the model's schedule.

    Args:
        losses: name to loss.
        learning_rate: the model's peak learning rate; an opponent's own is its loss's ``opponent_learning_rate``, or this.
    """

    def __init__(self, losses: Mapping[str, Loss], learning_rate: float) -> None:
        self.losses: dict[str, Any] = {name: loss for name, loss in losses.items() if has_opponent(loss)}
        self.learning_rate = learning_rate
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        self._restored: dict[str, Any] = {}
        self._gradients: dict[str, list[Tensor]] = {}
        self._values: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Create the optimisers, or continue those of the interrupted run."""
        for name, loss in self.losses.items():
            peak = getattr(loss, "opponent_learning_rate", None) or self.learning_rate
            optimizer = torch.optim.AdamW(loss.opponent.parameters(), lr=peak, betas=BETAS, weight_decay=0.0)
            if name in self._restored:
                optimizer.load_state_dict(self._restored[name])
            self._optimizers[name] = optimizer
        self._restored = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the batch's gradients up, and step where the model stepped."""
        output, pl_module.last_output = pl_module.last_output, None
        stepping = not trainer.fit_loop._should_accumulate()
        if output is None:
            # The model's update is skipped (see Guard): what its other batches gave is dropped with it, in every process.
            if stepping:
                self._gradients, self._values = {}, {}
            return
        # Half precision without gradient scaling would lose small gradients: the opponent is small enough for float32.
        half = trainer.precision == "16-mixed"
        context = nullcontext() if half else trainer.precision_plugin.forward_context()
        for name, loss in self.losses.items():
            if not loss.active:
                continue
            parameters = list(loss.opponent.parameters())
            loss.opponent.requires_grad_(True)
            with torch.enable_grad(), context:
                value = loss.opponent_loss(output, batch)
            gradients = torch.autograd.grad(value / trainer.accumulate_grad_batches, parameters)
            loss.opponent.requires_grad_(False)
            if name in self._gradients:
                torch._foreach_add_(self._gradients[name], gradients)
                self._values[name] = self._values[name] + value.detach()
            else:
                self._gradients[name], self._values[name] = list(gradients), value.detach()
            if stepping:
                self._step(name, parameters, pl_module)
                mean = self._values.pop(name) / trainer.accumulate_grad_batches
                pl_module.scalars[f"train/{name}_opponent"] = mean

    def _step(self, name: str, parameters: list[nn.Parameter], pl_module: Any) -> None:
        optimizer = self._optimizers[name]
        gradients = self._gradients.pop(name)
        average_over_processes(gradients)
        peak = getattr(self.losses[name], "opponent_learning_rate", None) or self.learning_rate
        # The model's rate in this very step, as a share of its peak: warm-up and schedule hold for both sides.
        share = pl_module.scalars.get("train/lr", self.learning_rate) / self.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        # No gradient may stay: the model's clipping would count it.
        optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimisers' state; the opponents' weights are part of the module's."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for when training starts."""
        self._restored = dict(state_dict)


def average_over_processes(gradients: Iterable[Tensor]) -> None:
    """Average tensors over the processes of a distributed run, in place; does nothing in a single one.

    Args:
        gradients: the same shapes in the same order in every process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    count = torch.distributed.get_world_size()
    if count > 1:
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
            gradient /= count


def detached(output: VAEOutput) -> VAEOutput:
    """Return an output of the same values without its graph, so that nothing of the step stays in memory.

    Args:
        output: a model's output.

    Returns:
        A new output; tensors share memory with the old one.
    """
    return _detach(output)


def _detach(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(_detach(v) for v in value)
    if isinstance(value, dict):
        return {k: _detach(v) for k, v in value.items()}
    if isinstance(value, nn.Module):
        return value
    # Outputs, latents, posteriors and distributions are plain objects that hold tensors.
    if isinstance(value, Distribution) or type(value).__module__.startswith("omnivae."):
        twin = copy.copy(value)
        twin.__dict__.update({k: _detach(v) for k, v in value.__dict__.items()})
        return twin
    return value
