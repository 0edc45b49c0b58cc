"""Training in float16 with automatic mixed precision: what float16 cannot hold is taken out of autocast.

Gradient scaling (Micikevicius et al., Mixed Precision Training, 2018) mends gradients that vanish or overflow; it does not
help where the forward pass overflows: the loss stays NaN at any scale, every step is skipped and nothing is learnt.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from omnivae.training.overflow import Unsafe, Watch, is_finite, lower, outermost

log = logging.getLogger(__name__)


class AutocastGuard:
    """Looks at a network in its first float16 autocast call, and again whenever a result is not finite.

    The parts that float16 cannot hold run without autocast from then on, on float32 inputs, and the call is repeated, so
    that no step is lost. A result that is not finite in float32 either is handed on as it is: the training loop stops for
    it. Each call costs one wait for the device, which gradient scaling has anyway, and a copy of the batch statistics.

    Args:
        network: the network; hooks are put on it.
        name: what to call it in messages.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network, self.name = network, name
        #: Names of the parts that run in float32; "" is the whole network.
        self.kept: tuple[str, ...] = ()
        self._looked = self._busy = False
        self._call: tuple[tuple[Any, ...], list[Tensor]] | None = None
        self._off: list[Any] = []
        self._handles: list[Any] = []
        self._own = [
            network.register_forward_pre_hook(self._before),
            network.register_forward_hook(self._after, always_call=True),
        ]

    def keep(self, names: Iterable[str]) -> None:
        """Take more parts out of autocast.

        Args:
            names: of the parts; "" is the whole network.
        """
        self.kept = outermost([*self.kept, *names])
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for name in filter(None, self.kept):
            part = self.network.get_submodule(name)
            self._handles.append(part.register_forward_pre_hook(self._leave_autocast))
            self._handles.append(part.register_forward_hook(self._enter_autocast, always_call=True))
        # Compiled code does not notice new hooks.
        torch.compiler.reset()

    def remove(self) -> None:
        """Take every hook off."""
        for handle in (*self._own, *self._handles):
            handle.remove()

    # -- around every call

    @torch.compiler.disable
    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not _in_float16(args):
            return None
        if not self._busy:
            self._remember(args)
        return self._leave_autocast(module, args) if self.kept == ("",) else None

    def _remember(self, args: tuple[Any, ...]) -> None:
        if not self._looked:
            self._looked = True
            found = self._look(args)
            if found:
                self.keep(found)
                self._tell(found, "in the first batch")
        self._call = (args, [b.clone() for b in self.network.buffers()] if self.network.training else [])

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.kept == ("",):
            if self._off:
                self._enter_autocast(module, args, output)
            self._call = None
            return output
        if self._busy or self._call is None:
            return output
        call, self._call = self._call, None
        if is_finite(output):
            return output
        return self._again(*call, output)

    def _again(self, args: tuple[Any, ...], buffers: list[Tensor], output: Any) -> Any:
        self._busy = True
        try:
            self._restore(buffers)
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices=_devices(args)),
                torch.autocast(_kind(args), enabled=False),
            ):
                if not is_finite(self.network(*(lower(a, torch.float32) for a in args))):
                    return output
            self._restore(buffers)
            found = self._look(args)
            for names in (found, [""]):
                if not names:
                    continue
                self.keep(names)
                mended = self.network(*args)
                if is_finite(mended):
                    break
                self._restore(buffers)
            self._tell(found, "a result in float16 was not finite; it was computed again, and")
            return mended
        finally:
            self._busy = False

    def _look(self, args: tuple[Any, ...]) -> dict[str, Unsafe]:
        """Run under bfloat16 autocast, which casts as float16's does, on a copy: nothing of the training changes."""
        twin = copy.deepcopy(self.network)
        device = torch.device(_kind(args))
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            # Older GPUs compute no bfloat16 convolutions: a few images on the CPU tell as much.
            device = torch.device("cpu")
            twin, args = twin.to(device), tuple(a[:2].to(device) if isinstance(a, Tensor) else a for a in args)
        watch = Watch(twin)
        busy, twin_guard = self._busy, _guard_of(twin)
        if twin_guard is not None:
            twin_guard._busy = True
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=_devices(args)),
            torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False),
        ):
            watch.run(*args)
        self._busy = busy
        return {name: unsafe for name, unsafe in watch.found.items() if name not in self.kept}

    # -- inside

    @torch.compiler.disable
    def _leave_autocast(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        context = torch.autocast(_kind(args), enabled=False)
        context.__enter__()
        self._off.append(context)
        return tuple(lower(a, torch.float32) for a in args)

    @torch.compiler.disable
    def _enter_autocast(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._off.pop().__exit__(None, None, None)

    def _restore(self, buffers: list[Tensor]) -> None:
        # A first attempt has left NaN in the batch statistics.
        if buffers:
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)

    def _tell(self, found: dict[str, Unsafe], why: str) -> None:
        reasons = [f"{self.name}{'.' * bool(n)}{n}" + (f" ({found[n]})" if n in found else "") for n in self.kept]
        log.warning("%s what float16 cannot hold is computed in float32: %s", why, "; ".join(reasons))


class HalfPrecision(pl.Callback):
    """Puts an :class:`AutocastGuard` on the encoder and the decoder of a model that is trained in float16."""

    def __init__(self) -> None:
        self.guards: list[AutocastGuard] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put the guards on, where training is in float16."""
        if trainer.precision == "16-mixed":
            self.guards = [AutocastGuard(getattr(pl_module.vae, part), part) for part in ("encoder", "decoder")]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the guards off."""
        self._remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Take the guards off."""
        self._remove()

    def _remove(self) -> None:
        for guard in self.guards:
            guard.remove()
        self.guards = []


def _guard_of(network: nn.Module) -> AutocastGuard | None:
    hooks = (getattr(hook, "__self__", None) for hook in network._forward_hooks.values())
    return next((owner for owner in hooks if isinstance(owner, AutocastGuard)), None)


def _kind(args: tuple[Any, ...]) -> str:
    return next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")


def _devices(args: tuple[Any, ...]) -> list[torch.device]:
    return [a.device for a in args if isinstance(a, Tensor) and a.is_cuda][:1]


def _in_float16(args: tuple[Any, ...]) -> bool:
    kind = _kind(args)
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
