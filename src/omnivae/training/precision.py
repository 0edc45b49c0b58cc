"""Low precision that never gives black or NaN images: what float16 cannot hold is computed in float32.

A :class:`Guard` on a network keeps the parts that :mod:`omnivae.training.overflow` finds in float32, and looks at every
result: where one is not finite all the same, it computes the call again in float32, says so, and keeps the part that was at
fault in float32 from then on.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from omnivae.training.overflow import Unsafe, find_unsafe, is_finite, lower, outermost, parent_of
from omnivae.types import strides

log = logging.getLogger(__name__)

#: Largest relative error (root mean square) of a network's result in float16 on the sample; beyond it more is kept in float32.
TOLERANCE = 0.02
#: Positions of a sample image: more would cost time and show little more.
SAMPLE_POSITIONS = 128**2


class Guard:
    """Runs a network in low precision and the parts of it that cannot be in float32.

    Every call costs one look at whether the result is finite (on an accelerator: a wait for it).

    Args:
        network: the network, its parameters in float32; hooks are put on it and its parameters change precision.
        name: what to call it in messages.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """

    def __init__(self, network: nn.Module, name: str, dtype: torch.dtype) -> None:
        self.network, self.name, self.dtype = network, name, dtype
        #: Names of the parts in float32; "" is the whole network.
        self.kept: tuple[str, ...] = ()
        self._wide: set[str] = set()
        self._wide_input = False
        self._handles: list[Any] = []
        self._args: tuple[Any, ...] = ()
        self._all_float32 = False
        #: Whether results are looked at.
        self.active = True
        network.guard = self  # type: ignore[assignment]
        _leave_to_python()
        self._own = [network.register_forward_pre_hook(self._before), network.register_forward_hook(self._after)]

    def keep(self, names: Iterable[str], wide: Iterable[str] = (), *, wide_input: bool = False) -> None:
        """Set which parts are computed in float32, and cast every parameter accordingly.

        Args:
            names: of the parts.
            wide: parts whose result stays in float32 too.
            wide_input: leave the network's input in float32.
        """
        self.kept = outermost(list(names))
        self._wide, self._wide_input = set(wide), wide_input
        #: Listed by ``VAE.float32_modules``; its presence says that the network casts its own inputs.
        self.network.float32_modules = self.qualified()  # type: ignore[assignment]
        self._cast_parameters()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for name in self.kept:
            if name:
                part = self.network.get_submodule(name)
                self._handles.append(part.register_forward_pre_hook(self._raise))
                back = self._leave_wide if name in self._wide else self._lower
                self._handles.append(part.register_forward_hook(back))

    def qualified(self) -> tuple[str, ...]:
        """Return the kept parts' names in the model."""
        return tuple(f"{self.name}.{n}" if n else self.name for n in self.kept)

    # -- around every call

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self._all_float32:
            self._args = args
        if self._all_float32 or self.kept == ("",):
            return tuple(lower(a, torch.float32) for a in args)
        return args if self._wide_input else tuple(lower(a, self.dtype) for a in args)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._all_float32 or not self.active:
            return output
        given, self._args = self._args, ()
        if is_finite(output):
            return output
        return self._again(given)

    def _again(self, args: tuple[Any, ...]) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            found, watch = find_unsafe(self._float32_twin(), [args])
        self._all_float32 = True
        self._cast_parameters()
        try:
            output = self.network(*args)
        finally:
            self._all_float32 = False
            self._cast_parameters()
        if not is_finite(output):
            raise FloatingPointError(
                f"the {self.name}'s result is not finite in float32 either: look for extreme values in the input, or for "
                "NaN in the model's weights"
            )
        news = [name for name in found if name not in self.kept]
        self.keep([*self.kept, *(news or [""])], self._wide | watch.wide, wide_input=watch.wide_input)
        _tell(self, found, f"a result in {_title(self.dtype)} was not finite; it was computed again in float32, and")
        return output

    def _float32_twin(self) -> nn.Module:
        twin = copy.deepcopy(self.network)
        twin.guard.remove()  # type: ignore[union-attr, operator]
        for parameter in twin.parameters():
            parameter.data = parameter.data.float()
        return twin

    def remove(self) -> None:
        """Take the hooks off; parameters stay as they are."""
        for handle in (*self._own, *self._handles):
            handle.remove()
        del self.network.guard, self.network.float32_modules

    # -- inside

    def _cast_parameters(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for name, module in self.network.named_modules():
                # Batch statistics and their scales are float32 beside low-precision activations in every kernel of torch.
                wide = self._all_float32 or isinstance(module, nn.modules.batchnorm._BatchNorm) or self._is_kept(name)
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.float32 if wide else self.dtype)

    def _is_kept(self, name: str) -> bool:
        return any(not kept or name == kept or name.startswith(f"{kept}.") for kept in self.kept)

    def _raise(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(lower(a, torch.float32) for a in args)

    def _lower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output if self._all_float32 else lower(output, self.dtype)

    def _leave_wide(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output


@functools.cache
def _leave_to_python() -> None:
    """Exclude the guards' hooks from compilation; when first needed, because the compiler takes seconds to import."""
    for name in ("_before", "_after"):
        setattr(Guard, name, torch.compiler.disable(getattr(Guard, name)))


def to_float16(network: nn.Module, name: str, calls: Sequence[tuple[Any, ...]]) -> Guard:
    """Put a float32 network into float16, in place, apart from the parts that float16 cannot hold.

    They are found in one bfloat16 run of the calls (see :func:`~omnivae.training.overflow.find_unsafe`); then the
    float16 network is held to the float32 one on the same calls, and more of it is kept in float32, up to all of it, until
    its results are finite and within 2 % (relative root mean square). Costs three forward passes of each call, and 1.5
    times the memory of the weights while it lasts.

    Args:
        network: with float32 parameters, in evaluation mode.
        name: what to call it in messages.
        calls: arguments of ``network``, such as ``[(x,), (another,)]``.

    Returns:
        The guard; its ``kept`` lists the parts in float32.
    """
    with torch.no_grad():
        want = [lower(network(*args), torch.float32) for args in calls]
        found, watch = find_unsafe(network, calls)
        original = {key: p.data for key, p in network.named_parameters()}
        guard = Guard(network, name, torch.float16)
        kept: tuple[str, ...] = outermost(list(found))
        while True:
            for key, parameter in network.named_parameters():
                parameter.data = original[key]
            guard.keep(kept, watch.wide, wide_input=watch.wide_input)
            guard.active = False  # the guard would mend what is to be seen here
            error = 0.0 if kept == ("",) else _error(network, calls, want)
            if error <= TOLERANCE:
                break
            log.info(
                "%s: %s in float16 with %s in float32; keeping more",
                name,
                "results are not finite" if math.isinf(error) else f"results are off by {error:.1%}",
                ", ".join(kept) or "nothing",
            )
            wider = outermost([parent_of(network, n) for n in kept if n] or [""])
            kept = wider if wider != kept else ("",)
        guard.active = True
    if kept:
        _tell(guard, found, "on sample images,")
    return guard


@torch.no_grad()
def sample_calls(
    model: Any, networks: Mapping[str, nn.Module], sample: Tensor | None = None
) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments that a VAE calls its networks with, for images, their reconstructions and samples.

    Args:
        model: a VAE in evaluation mode.
        networks: by name, "encoder" and "decoder".
        sample: images in the value range ``[B, C, *S]``; noise, black, white and smooth images by default.

    Returns:
        Calls by the network's name; encodings of the images, decodings of the posterior's mode and of a draw from it, and
        of a draw from the prior.
    """
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in networks}
    parameter = next(iter(model.parameters()))
    x = (_images(model) if sample is None else sample).to(parameter.device, torch.float32)
    cuda = [parameter.device] if parameter.is_cuda else []
    with torch.random.fork_rng(devices=cuda), ExitStack() as stack:
        torch.manual_seed(0)
        for name, network in networks.items():
            handle = network.register_forward_pre_hook(lambda module, args, into=calls[name]: into.append(args))
            stack.callback(handle.remove)
        cond = _conditions(model, x)
        posterior = model.encode(x, cond)
        latents = [posterior.mode(), posterior.rsample(1)[0][0]]
        if model.prior is not None:
            latents.append(model.prior(posterior.shape, model.encode, cond).sample())
        for z in latents:
            model.decode(z.expand(posterior.shape), cond)
    return calls


def _conditions(model: Any, x: Tensor) -> Tensor | None:
    """Return a condition for each image, as far from zero as classes and standardised attributes commonly are."""
    cond_dim = getattr(model, "cond_dim", None)
    return None if cond_dim is None else torch.eye(cond_dim, device=x.device)[torch.arange(len(x)) % cond_dim]


def _images(model: Any) -> Tensor:
    """Return noise, black, white and a smooth image of the model's size, or of 16 strides."""
    stride = strides(model.encoder, model.dim)
    size = list(model.image_size or model.statistics.get("image_size") or [16 * s for s in stride])
    while math.prod(size) > SAMPLE_POSITIONS and model.image_size is None and max(size) > max(stride):
        size = [max(s, n // 2) for s, n in zip(stride, size, strict=True)]
    low, high = model.value_range
    shape = (model.in_channels, *size)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(shape, generator=generator)
    smooth = (
        torch.stack(
            [
                torch.linspace(0, 1, n).reshape([-1 if a == i else 1 for a in range(len(size))]).expand(size)
                for i, n in enumerate(size)
            ]
        )
        .mean(0)
        .expand(shape)
    )
    images = torch.stack([noise, torch.zeros(shape), torch.ones(shape), smooth])
    return low + (high - low) * images


def _error(network: nn.Module, calls: Sequence[tuple[Any, ...]], want: Sequence[Tensor]) -> float:
    """Return the largest relative error of the calls, infinite where a result is not finite."""
    worst = 0.0
    for args, expected in zip(calls, want, strict=True):
        got = lower(network(*args), torch.float32)
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-12))
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _tell(guard: Guard, found: Mapping[str, Unsafe], why: str) -> None:
    reasons = "; ".join(
        f"{qualified} ({found[name]})" if name in found else qualified
        for name, qualified in zip(guard.kept, guard.qualified(), strict=True)
    )
    log.warning("%s what %s cannot hold stays in float32: %s", why, _title(guard.dtype), reasons)


def _title(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
