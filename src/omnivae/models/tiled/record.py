"""Run a network on a tensor without memory, and keep the graph of what it does.

The network's own code runs, with the true shapes; only the arithmetic is put off. Operations that treat all positions alike or
look at neighbours become nodes that can be computed region by region; any other one takes its input whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from omnivae.models.tiled.graph import AsField, Constant, Gather, Input, Local, Node, Whole

aten = torch.ops.aten
Handler = Callable[..., Any]
#: Operators of the tensor library, and functions above them, that are understood; filled by :mod:`omnivae.models.tiled.operators`.
OPERATORS: dict[Any, Handler] = {}
FUNCTIONS: dict[Any, Handler] = {}
_VIEWS = {
    "view",
    "_unsafe_view",
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "expand",
    "slice",
    "select",
    "split",
}
_VIEWS |= {"split_with_sizes", "unbind", "detach", "alias"}


class Recording:
    """What is known while a network is recorded: the number of spatial axes, and the module that runs."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.modules: list[str] = []

    @property
    def module(self) -> str:
        """The innermost module that runs, by name and class."""
        return self.modules[-1] if self.modules else "the network"

    @contextmanager
    def names(self, network: nn.Module) -> Iterator[None]:
        """Follow which module runs."""
        handles = []
        for name, module in network.named_modules():
            label = f"{name} ({type(module).__name__})" if name else type(module).__name__
            handles.append(module.register_forward_pre_hook(lambda m, a, label=label: self.modules.append(label)))
            handles.append(module.register_forward_hook(lambda m, a, o: self.modules.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class LazyTensor(torch.Tensor):
    """A tensor with a shape, a precision and a node, but no numbers."""

    node: Node
    recording: Recording
    aliased: bool

    @staticmethod
    def __new__(cls: type[LazyTensor], node: Node, recording: Recording, device: torch.device) -> LazyTensor:
        made = torch.Tensor._make_wrapper_subclass(cls, node.shape, dtype=node.dtype, device=device)  # type: ignore[attr-defined]
        made.node, made.recording, made.aliased = node, recording, False
        return made

    def __init__(self, node: Node, recording: Recording, device: torch.device) -> None:
        node.module = node.module or recording.module

    def like(self, node: Node) -> LazyTensor:
        """Return another tensor of the same recording."""
        return LazyTensor(node, self.recording, self.device)

    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        return f"LazyTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = FUNCTIONS.get(func) or FUNCTIONS.get(getattr(func, "__name__", None))
        if handler is not None:
            with torch._C.DisableTorchFunctionSubclass():
                made = handler(func, *args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name.endswith("_") and not name.startswith("_"):
            return _in_place(func, args, kwargs)
        handler = OPERATORS.get(func.overloadpacket)
        made = NotImplemented if handler is None else handler(func, *args, **kwargs)
        if made is NotImplemented:
            made = pointwise(func, *args, **kwargs) if torch.Tag.pointwise in func.tags else NotImplemented
        if made is NotImplemented:
            made = on_whole(func, *args, **kwargs)
        if name in _VIEWS:
            for value in tree_flatten((made, args))[0]:
                if isinstance(value, LazyTensor):
                    value.aliased = True
        return made


def record(network: nn.Module, shape: Sequence[int], *, cond: Tensor | None = None) -> tuple[Input, Node]:
    """Return the input and the output of a network's graph.

    Args:
        network: in evaluation mode.
        shape: of its input, ``[1, C, *S]``.
        cond: condition ``[1, E]``.

    Returns:
        Two nodes; the second one is computed from the first.

    Raises:
        ValueError: for a network that decides by the numbers it sees, or writes them somewhere.
    """
    dim = len(shape) - 2
    parameter = next(network.parameters(), torch.empty(0))
    recording = Recording(dim)
    source = Input(shape, parameter.dtype, (None, None, *range(dim)))
    # In inference mode operators would arrive in other forms, before they are broken down into the ones that are known here.
    with torch.inference_mode(False), torch.no_grad(), recording.names(network):
        x = LazyTensor(source, recording, parameter.device)
        try:
            made = network(x, cond) if cond is not None else network(x)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{recording.module} cannot be computed in exact tiles ({reason}); use mode='blended'"
            ) from error
    if not isinstance(made, LazyTensor):
        raise ValueError(
            f"{type(network).__name__} returns {type(made).__name__}, which does not follow from its input tile by tile"
        )
    node = made.node if made.node.is_field or made.node.shape[:1] != (1,) else AsField(made.node, len(made.shape) - 2)
    return source, node


def node_of(value: Any) -> Node:
    """Return the node of a tensor, lazy or real."""
    return value.node if isinstance(value, LazyTensor) else Constant(value)


def first_lazy(values: Any) -> LazyTensor:
    """Return the first lazy tensor of nested arguments."""
    return next(value for value in tree_flatten(values)[0] if isinstance(value, LazyTensor))


def field_of(value: Any, like: LazyTensor) -> Node:
    """Return the node of a tensor as a field."""
    node = node_of(value)
    if node.is_field:
        return node
    dim = like.recording.dim
    return AsField(node, min(dim, len(node.shape) - 2)) if len(node.shape) > 2 else node


def on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operator makes of shapes."""
    flat, spec = tree_flatten((args, kwargs))
    flat = [torch.empty(v.shape, dtype=v.dtype, device="meta") if isinstance(v, Tensor) else v for v in flat]
    flat = [torch.device("meta") if isinstance(v, torch.device) else v for v in flat]
    args, kwargs = tree_unflatten(flat, spec)
    return func(*args, **kwargs)


def bind(func: Any, args: Any, kwargs: Any) -> tuple[Callable[..., Any], list[Any]]:
    """Return the operator as a function of its tensors alone, and these tensors."""
    flat, spec = tree_flatten((args, kwargs))
    places = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
    tensors = [flat[i] for i in places]
    rest = [None if isinstance(value, Tensor) else value for value in flat]

    def operation(*given: Tensor) -> Any:
        filled = list(rest)
        for i, value in zip(places, given, strict=True):
            filled[i] = value
        positional, named = tree_unflatten(filled, spec)
        return func(*positional, **named)

    return operation, tensors


def pointwise(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Record an operator that treats each element alone."""
    made = on_meta(func, args, kwargs)
    operation, tensors = bind(func, args, kwargs)
    lazy, nodes = first_lazy((args, kwargs)), [node_of(t) for t in tensors]
    axes: list[int | None] = [None] * made.ndim
    for node in nodes:
        for dim, axis in enumerate(node.axes, start=made.ndim - len(node.axes)):
            if axis is None:
                continue
            if axes[dim] not in (None, axis):
                return NotImplemented
            axes[dim] = axis
    fields = [node for node in nodes if node.is_field]
    if not fields:
        return NotImplemented
    count = sum(axis is not None for axis in axes)
    if any(sum(axis is not None for axis in node.axes) != count for node in fields):
        return NotImplemented
    in_place = getattr(aten, func.overloadpacket.__name__ + "_", None)
    in_place = getattr(in_place, func._overloadname, None) if in_place is not None else None
    writes = None if in_place is None or args[0] is not tensors[0] else bind(in_place, args, kwargs)[0]
    return lazy.like(Local(operation, made.shape, made.dtype, tuple(axes), nodes, in_place=writes))


def on_whole(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Record an operator that needs all positions at once."""
    if getattr(func, "_schema", None) is not None and func._schema.is_mutable:
        raise RuntimeError(f"it writes into a tensor with {func}")
    lazy = first_lazy((args, kwargs))
    if func is aten.view.default:
        func = aten.reshape.default  # what is gathered from tiles may lie in another order in memory
    made = on_meta(func, args, kwargs)
    operation, tensors = bind(func, args, kwargs)
    nodes = []
    for tensor in tensors:
        node = node_of(tensor)
        if node.is_field:
            node = Gather(node, f"{getattr(func, '__name__', func)} between all positions")
            node.module = lazy.recording.module
        nodes.append(node)
    if isinstance(made, Tensor):
        return lazy.like(Whole(operation, made.shape, made.dtype, nodes))
    flat, spec = tree_flatten(made)
    values = [
        lazy.like(Whole(_part(operation, i), v.shape, v.dtype, nodes)) if isinstance(v, Tensor) else v
        for i, v in enumerate(flat)
    ]
    return tree_unflatten(values, spec)


def _part(operation: Callable[..., Any], i: int) -> Callable[..., Tensor]:
    return lambda *given: tree_flatten(operation(*given))[0][i]


def _in_place(func: Any, args: Any, kwargs: Any) -> Any:
    target = args[0]
    name = func.overloadpacket.__name__[:-1]
    plain = getattr(getattr(aten, name, None), func._overloadname, None)
    if not isinstance(target, LazyTensor) or plain is None:
        raise RuntimeError(f"it writes into a tensor with {func}")
    if target.aliased:
        raise RuntimeError(f"it changes a view in place with {func}")
    made = LazyTensor.__torch_dispatch__(plain, (LazyTensor,), args, kwargs)
    if made.shape != target.shape:
        raise RuntimeError(f"{func} changes the shape of its target")
    if made.dtype != target.dtype:
        made = pointwise(aten._to_copy.default, made, dtype=target.dtype)
    target.node = made.node
    return target
