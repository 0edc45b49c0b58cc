"""Finds what a network cannot compute in float16: activations that overflow or vanish, weights that rounding destroys.

The network runs once in bfloat16, which has float32's range and goes through the same casts as float16: every tensor that
would be float16 is seen with its true size. Looking at float16 itself would show only the first overflow, and NaN after it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Largest number of float16, and its smallest one of full precision.
FLOAT16_MAX, FLOAT16_TINY = 65504.0, 2.0**-14
#: Activations may grow by this factor from the sample to other images before they overflow.
MARGIN = 4.0
#: Largest relative error (root mean square) that rounding a weight matrix to float16 may make; 2e-4 is usual.
WEIGHT_ERROR = 0.01
#: Logits of attention computed at once while their size is looked at.
_ROWS = 256


@dataclass(frozen=True)
class Unsafe:
    """A module that float16 cannot hold.

    Attributes:
        module: its name in the network; "" is the network itself.
        operation: what it computed.
        largest: largest absolute value there; for weights the relative error of rounding them.
        kind: "overflow", "underflow" or "weights".
    """

    module: str
    operation: str
    largest: float
    kind: str

    def __str__(self) -> str:
        if self.kind == "weights":
            return f"its weights lose {self.largest:.0%} in float16"
        limit = f"ends at {FLOAT16_MAX:g}" if self.kind == "overflow" else f"loses digits below {FLOAT16_TINY:.1e}"
        return f"{self.operation} reaches {self.largest:.3g}, float16 {limit}"


def unit_of(network: nn.Module, name: str) -> str:
    """Return the smallest part around a module that can be computed in another precision than its surroundings.

    A block may read its children's weights itself (a 1x1 convolution as a matrix product) and adds and multiplies between
    them, so a layer stands alone only in a container or at the network's top.

    Args:
        network: the network.
        name: a module's name in it.

    Returns:
        The name of the module or of the block around it; "" is the network.
    """
    if not name:
        return name
    module, holder = network.get_submodule(name), network.get_submodule(name.rpartition(".")[0])
    if _only_calls(module):
        return parent_of(network, name)
    alone = any(True for _ in module.children()) or holder is network or _only_calls(holder)
    return name if alone else parent_of(network, name)


def parent_of(network: nn.Module, name: str) -> str:
    """Return the nearest module around ``name`` that is more than a container; "" is the network."""
    while name:
        name = name.rpartition(".")[0]
        if not _only_calls(network.get_submodule(name)):
            break
    return name


def outermost(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without those that lie inside another of them, sorted."""
    unique = set(names)
    if "" in unique:
        return ("",)
    return tuple(sorted(n for n in unique if not any(n.startswith(f"{other}.") for other in unique)))


def unsafe_weights(network: nn.Module) -> dict[str, Unsafe]:
    """Return the parts whose weights float16 cannot hold: beyond its range, or mostly below it.

    Args:
        network: with float32 parameters.

    Returns:
        By the part's name.
    """
    found: dict[str, Unsafe] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue  # stays in float32 beside low-precision activations
        for key, parameter in module.named_parameters(recurse=False):
            value = parameter.detach().float()
            largest = float(value.abs().max()) if value.numel() else 0.0
            unit = unit_of(network, name)
            if largest > FLOAT16_MAX:
                found.setdefault(unit, Unsafe(unit, key, largest, "overflow"))
            elif value.ndim >= 2 and largest > 0:
                lost = float((value.half().float() - value).norm() / value.norm())
                if lost > WEIGHT_ERROR:
                    found.setdefault(unit, Unsafe(unit, key, lost, "weights"))
    return found


class Watch(TorchDispatchMode):
    """Notes every low-precision tensor that leaves float16's range, and the part of the network that it appears in.

    Args:
        network: the network that runs; hooks on its modules say which of them is at work.
        dtype: low precision of the run.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.found: dict[str, Unsafe] = {}
        #: Parts whose result stays in float32, because float16 cannot hold it either.
        self.wide: set[str] = set()
        #: Whether the network's own input is out of range.
        self.wide_input = False
        #: Modules that were called as such; others have their weights read by the block around them.
        self.called: set[str] = set()
        self._out_of_range: dict[int, Tensor] = {}
        self._stack: list[str] = [""]
        self._units = {name: unit_of(network, name) for name, _ in network.named_modules()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        unit, name = self._units[self._stack[-1]], func.overloadpacket.__name__.strip("_")
        tensors = [a for a in _flat((args, kwargs)) if isinstance(a, Tensor)]
        # Taking a view of a tensor is not reading it: it shares the storage, by which tensors are known here.
        before = [] if func.is_view else [_extent(t) for t in tensors if self._is_out_of_range(t)]
        out = func(*args, **kwargs)
        if func.is_view or "empty" in name:  # fresh memory holds anything
            return out
        if before:
            # Reading such a tensor needs float32 as much as making one.
            self._note(unit, f"input of {name}", *before[0])
        if "scaled_dot_product" in name and args[0].dtype == self.dtype:
            # Kernels differ in where they keep the logits; all of them are safe if float16 could hold them.
            largest = _largest_logit(args[0], args[1], kwargs.get("scale"))
            if largest * MARGIN > FLOAT16_MAX:
                self._note(unit, f"{name} (logits)", largest, "overflow")
        result = out[0] if isinstance(out, (tuple, list)) and out else out  # what kernels return beside it is theirs
        if isinstance(result, Tensor) and result.dtype == self.dtype and result.numel() > 1:
            extent = _extent(result)
            if extent[1]:
                self._out_of_range[_storage(result)] = result
                self._note(unit, name, *extent)
            elif result.numel() * result.element_size() == result.untyped_storage().nbytes():
                self._out_of_range.pop(_storage(result), None)  # written over in place
        return out

    def run(self, *args: Any) -> Any:
        """Run the network and watch it.

        Args:
            args: of its ``forward``; tensors in the low precision, or under autocast.

        Returns:
            Its result.
        """
        handles = []
        for name, module in self.network.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave(name), always_call=True))
        for argument in _flat(args):
            if isinstance(argument, Tensor) and argument.is_floating_point() and _extent(argument)[1]:
                self._out_of_range[_storage(argument)] = argument
                self.wide_input = True
        try:
            with self:
                return self.network(*args)
        finally:
            for handle in handles:
                handle.remove()
            self._out_of_range.clear()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._stack.append(name)
            self.called.add(name)

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()
            if any(self._is_out_of_range(t) for t in _flat(output) if isinstance(t, Tensor)):
                self.wide.add(name)

        return hook

    def _is_out_of_range(self, x: Tensor) -> bool:
        return bool(self._out_of_range) and _storage(x) in self._out_of_range

    def _note(self, unit: str, operation: str, largest: float, kind: str) -> None:
        self.found.setdefault(unit, Unsafe(unit, operation, largest, kind or "overflow"))


def find_unsafe(network: nn.Module, calls: Sequence[tuple[Any, ...]]) -> tuple[dict[str, Unsafe], Watch]:
    """Find the parts of a float32 network that float16 cannot hold, by running a bfloat16 copy of it.

    Costs half the memory of the weights once more, and for each call one forward pass in bfloat16 with a look at the
    extremes of every result.

    Args:
        network: with float32 parameters; left as it is.
        calls: the arguments of each run.

    Returns:
        The parts by name; and the watch that saw them, which knows whose results must stay in float32.
    """
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    watch = Watch(twin)
    with torch.no_grad():
        for args in calls:
            watch.run(*(lower(a, torch.bfloat16) for a in args))
    found = watch.found
    for name, unsafe in unsafe_weights(network).items():
        while name and name not in watch.called:
            name = parent_of(network, name)
        found.setdefault(name, unsafe)
    return found, watch


def lower(value: Any, dtype: torch.dtype) -> Any:
    """Return a floating tensor in ``dtype``; anything else as it is, containers element by element."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(lower(v, dtype) for v in value)
    if isinstance(value, Mapping):
        return {k: lower(v, dtype) for k, v in value.items()}
    return value


def is_finite(value: Any) -> bool:
    """Return whether every floating tensor inside a result is finite; one pass over it and one wait for the device."""
    for x in _flat(value):
        if isinstance(x, Tensor) and x.is_floating_point():
            # A sum is finite where every element is, unless it overflows itself.
            total = x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32))
            if not bool(torch.isfinite(total)) and not bool(torch.isfinite(x).all()):
                return False
    return True


def _extent(x: Tensor) -> tuple[float, str]:
    """Return the largest absolute value, and "overflow" or "underflow" where float16 could not hold it with a margin."""
    low, high = torch.aminmax(x.detach())
    largest = max(abs(float(low)), abs(float(high)))
    if math.isinf(largest):
        # What masks attention is infinite on purpose, in any precision.
        largest = float(torch.where(torch.isinf(x), 0, x).detach().abs().max())
    if largest * MARGIN > FLOAT16_MAX:  # NaN is no overflow: float32 would not mend it
        return largest, "overflow"
    return largest, "underflow" if 0 < largest < FLOAT16_TINY else ""


def _largest_logit(q: Tensor, k: Tensor, scale: float | None) -> float:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q, k = q.float(), k.float()
    # Cauchy-Schwarz first: it settles the usual case without the product.
    bound = float(q.norm(dim=-1).max() * k.norm(dim=-1).max()) * factor
    if bound * MARGIN <= FLOAT16_MAX:
        return bound
    parts = [(q[..., i : i + _ROWS, :] @ k.mT).abs().max() for i in range(0, q.shape[-2], _ROWS)]
    return float(torch.stack(parts).max()) * factor


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _only_calls(module: nn.Module) -> bool:
    """Return whether a module computes nothing itself: it calls its children, or is a list of them."""
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Mapping):
        yield from _flat(list(value.values()))
    else:
        yield value
