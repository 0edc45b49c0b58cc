"""Three-dimensional convolutions of an input shallower than their kernel, kept out of bfloat16 on a CPU.

oneDNN's gradient of their weights is wrong there: garbage that need not even be infinite, and memory is written that belongs
to others (seen with torch 2.15 for every depth from 2 to the kernel's less one; other axes, 1-D, 2-D and float32 are right).
Clips and thin stacks come to such depths inside a network. A convolution of so few slices costs little in float32.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

Convolution = nn.Conv3d | nn.ConvTranspose3d


class ShallowConvolutions(pl.Callback):
    """Runs the convolutions of a training on a CPU without autocast where the input has fewer slices than the kernel."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        """Put hooks on, where training is in low precision on a CPU."""
        if str(trainer.precision).startswith("32") or trainer.strategy.root_device.type != "cpu":
            return
        self.watch(pl_module)

    def watch(self, network: nn.Module) -> None:
        """Put hooks on every convolution of a network that may meet an input shallower than its kernel.

        Args:
            network: the network.
        """
        for module in network.modules():
            if isinstance(module, Convolution) and module.kernel_size[0] > 2:
                self._handles.append(module.register_forward_pre_hook(_leave))
                self._handles.append(module.register_forward_hook(_enter, always_call=True))

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def on_fit_end(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        """Take the hooks off."""
        self.remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Take the hooks off."""
        self.remove()


def is_shallow(module: Convolution, depth: int) -> bool:
    """Return whether an input of so many slices is shallower than the kernel.

    Args:
        module: a convolution.
        depth: slices.

    Example:
        >>> is_shallow(nn.Conv3d(1, 1, 3), 2), is_shallow(nn.Conv3d(1, 1, 3), 3)
        (True, False)
    """
    return depth < (module.kernel_size[0] - 1) * module.dilation[0] + 1


@torch.compiler.disable
def _leave(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x: Tensor = args[0]
    if not torch.is_autocast_enabled(x.device.type) or not is_shallow(module, x.shape[-3]):  # type: ignore[arg-type]
        return None
    context = torch.autocast(x.device.type, enabled=False)
    context.__enter__()
    # A stack: gradient checkpointing calls the module again while nothing else is open, and threads have their own modules.
    module.__dict__.setdefault("_without_autocast", []).append((context, torch.get_autocast_dtype(x.device.type)))
    return (x.float(), *args[1:])


@torch.compiler.disable
def _enter(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    opened = module.__dict__.get("_without_autocast")
    if not opened:
        return output
    context, dtype = opened.pop()
    context.__exit__(None, None, None)
    return output.to(dtype) if isinstance(output, Tensor) else output
