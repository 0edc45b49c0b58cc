"""Which operators are understood, and what node each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnivae.models.tiled.graph import Local, Node, Region
from omnivae.models.tiled.nodes import (
    Concatenate,
    Index,
    Pad,
    Shuffle,
    Transposed,
    Upsample,
    Window,
    Windowed,
    crop,
    regroup,
)
from omnivae.models.tiled.record import (
    FUNCTIONS,
    OPERATORS,
    Handler,
    LazyTensor,
    aten,
    field_of,
    first_lazy,
    node_of,
    on_meta,
    pointwise,
)


def handles(*operators: Any) -> Callable[[Handler], Handler]:
    """Return a decorator that names a handler for operators, or for functions above them by name."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            table = OPERATORS if isinstance(operator, torch._ops.OpOverloadPacket) else FUNCTIONS
            table[operator] = handler
        return handler

    return register


def is_plain(node: Node, count: int) -> bool:
    """Whether the last ``count`` dimensions are spatial and channels are dimension 1."""
    dims = len(node.shape)
    return node.is_field and dims == count + 2 and all(a is not None for a in node.axes[2:]) and node.axes[1] is None


# -- windows


@handles(aten.convolution)
def _convolution(
    func: Any,
    x: Any,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if isinstance(weight, LazyTensor) or isinstance(bias, LazyTensor):
        return NotImplemented
    lazy = first_lazy((x,))
    source, count = field_of(x, lazy), weight.ndim - 2
    if not is_plain(source, count):
        return NotImplemented
    shape = on_meta(func, (x, weight, bias, stride, padding, dilation, transposed, output_padding, groups), {}).shape
    stride, padding, dilation = ([v[0]] * count if len(v) == 1 else list(v) for v in (stride, padding, dilation))
    kernel = weight.shape[2:]
    windows = {
        axis: Window(kernel[i], stride[i], padding[i], dilation[i])
        for i, axis in enumerate(source.axes[2:])
        if axis is not None
    }
    zeros = [0] * count
    if transposed:

        def transpose(tile: Tensor, w: Tensor, b: Tensor | None, extra: list[int]) -> Tensor:
            return func(tile, w, b, stride, zeros, dilation, True, extra, groups)

        # The nodes name windows by axis, in the order of the weight's dimensions.
        cost = weight.shape[0] // groups * math.prod(kernel) / math.prod(stride)
        return lazy.like(Transposed(transpose, shape, source, windows, tensors=(weight, bias), cost=cost))

    def convolve(tile: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        w = _channels_last(w)
        if _unfolds(tile, w):
            return torch.mkldnn_convolution(tile, w, b, zeros, stride, dilation, groups)
        return func(tile, w, b, stride, zeros, dilation, False, zeros, groups)

    cost = weight.shape[1] * math.prod(kernel)
    return lazy.like(Windowed(convolve, shape, source, windows, tensors=(weight, bias), cost=cost))


def _channels_last(weight: Tensor) -> Tensor:
    """Return the weight of a convolution of one channel with the strides of channels last, which otherwise nobody can tell.

    Without them the result is made with channels first, and then copied: twice the memory for the widest tile of a network.
    """
    if weight.shape[1] != 1 or weight.ndim not in (4, 5) or not weight.is_contiguous():
        return weight
    strides = weight.stride()
    return weight.as_strided(weight.shape, (strides[0], 1, *strides[2:]))


def _unfolds(tile: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would write out all neighbours of a 3-D tile on a CPU: 4 to 8 times the time, up to 20 times the memory.

    It takes oneDNN, which does not, only for kernels wider than one, and above a number of positions that a tile in a small memory
    stays below.
    """
    return (
        tile.ndim == 5
        and tile.device.type == "cpu"
        and tile.dtype == torch.float32
        and (math.prod(tile.shape[:4]) <= 20480 or math.prod(weight.shape[2:]) == 1)
        and bool(torch.backends.mkldnn.is_available())
        and bool(torch.backends.mkldnn.enabled)
    )


@handles("upsampled_convolution")
def _upsampled_convolution(func: Any, convolution: Any, x: Any) -> Any:
    source = field_of(x, x)
    weight, bias = convolution.weight, convolution.bias
    if not is_plain(source, x.ndim - 2) or weight.ndim != x.ndim:
        return convolution(F.interpolate(x, scale_factor=2, mode="nearest"))
    shape = (x.shape[0], weight.shape[0], *(2 * n for n in x.shape[2:]))

    def fold(tile: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return func(_Convolution(w, b), tile)

    cost = weight.shape[1] * (8 / 27 if x.ndim == 5 else 4 / 9 if x.ndim == 4 else 2 / 3) * weight[0, 0].numel()
    return x.like(_Folded(fold, shape, source, tensors=(weight, bias), cost=cost))


class _Convolution:
    """A convolution 3 wide with weights from somewhere else."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        count = x.ndim - 2
        return aten.convolution(x, self.weight, self.bias, [1] * count, [1] * count, [1] * count, False, [0] * count, 1)


class _Folded(Node):
    """Doubling by repetition and a 3-wide convolution in one: a position sees its neighbours before the doubling."""

    heavy = True

    def __init__(
        self, operation: Callable[..., Tensor], shape: Sequence[int], source: Node, *, tensors: Any, cost: float
    ) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,), tensors)
        self.operation, self.cost = operation, cost

    def needs(self, region: Region) -> list[Region | None]:
        size = self.inputs[0].size
        return [
            tuple((max(a // 2 - 1, 0), min(-(-b // 2) + 1, n)) for (a, b), n in zip(region, size, strict=True)),
        ]

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        need = self.needs(region)[0]
        assert need is not None
        # The operation pads with zeros: right at the image's border, and cut off at a tile's.
        made = self.operation(tiles.pop(), *tensors)
        return crop(
            made,
            self,
            {i: (a - 2 * low, b - 2 * low) for i, ((a, b), (low, _)) in enumerate(zip(region, need, strict=True))},
        )

    def work(self, region: Region) -> float:
        return super().work(region) * self.cost


@handles(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
def _pool(func: Any, x: LazyTensor, kernel: Sequence[int], stride: Sequence[int] = (), *rest: Any) -> Any:
    source, count = field_of(x, x), x.ndim - 2
    largest = func.overloadpacket.__name__.startswith("max")
    padding = list(rest[0]) if rest else [0]
    plain = all(value in (True, False, None, [1], [1] * count) for value in rest[1:])
    ceil = bool(rest[2 if largest else 1]) if len(rest) > (2 if largest else 1) else False
    counts_padding = len(rest) < 3 or rest[2] or not any(padding)
    if not is_plain(source, count) or not plain or ceil or not (largest or counts_padding):
        return NotImplemented
    kernel, stride, padding = ([v[0]] * count if len(v) == 1 else list(v) for v in (kernel, stride or kernel, padding))
    shape = [
        *x.shape[:2],
        *((n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True)),
    ]
    windows = {a: Window(kernel[i], stride[i], padding[i]) for i, a in enumerate(source.axes[2:]) if a is not None}

    def pool(tile: Tensor) -> Tensor:
        made = func(tile, kernel, stride)
        return made[0] if largest else made

    fill = -math.inf if largest else 0.0
    made = x.like(Windowed(pool, shape, source, windows, fill=fill))
    return (made, None) if largest else made


# -- resampling and padding


@handles(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)
def _nearest(func: Any, x: LazyTensor, size: Sequence[int], *scales: Any) -> Any:
    return _upsample(func, x, size, linear=False, arguments=())


@handles(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)
def _linear(func: Any, x: LazyTensor, size: Sequence[int], align_corners: bool, *scales: Any) -> Any:
    return NotImplemented if align_corners else _upsample(func, x, size, linear=True, arguments=(False,))


def _upsample(func: Any, x: LazyTensor, size: Sequence[int], *, linear: bool, arguments: tuple[Any, ...]) -> Any:
    source = field_of(x, x)
    if not is_plain(source, len(size)) or any(n % m for n, m in zip(size, x.shape[2:], strict=True)):
        return NotImplemented
    factors = [1] * len(source.size)
    for axis, n, m in zip(source.axes[2:], size, x.shape[2:], strict=True):
        assert axis is not None
        factors[axis] = n // m

    def enlarge(tile: Tensor, new: list[int]) -> Tensor:
        return func(tile, new, *arguments)

    return x.like(Upsample(enlarge, (*x.shape[:2], *size), source, factors, linear=linear))


@handles(aten.pixel_shuffle, aten.pixel_unshuffle)
def _shuffle(func: Any, x: LazyTensor, factor: int) -> Any:
    source = field_of(x, x)
    if not is_plain(source, 2):
        return NotImplemented
    shape = on_meta(func, (x, factor), {}).shape
    ratio = (factor, 1) if func.overloadpacket is aten.pixel_shuffle else (1, factor)
    ratios = [ratio if axis in source.axes[2:] else (1, 1) for axis in range(len(source.size))]
    return x.like(Shuffle(lambda tile, made: func(tile, factor), shape, source, source.axes, ratios))


@handles(aten.constant_pad_nd)
def _pad(func: Any, x: LazyTensor, amounts: Sequence[int], value: float = 0.0) -> Any:
    source = field_of(x, x)
    before = [0] * len(source.size)
    for place in range(len(amounts) // 2):
        axis = source.axes[len(source.axes) - 1 - place]
        if axis is not None:
            before[axis] = amounts[2 * place]
        elif any(amounts[2 * place : 2 * place + 2]):
            return _local(func, x, source, source.axes, (amounts, value)) if source.is_field else NotImplemented
    return x.like(Pad(on_meta(func, (x, amounts), {}).shape, source, before, float(value)))


@handles(
    aten.reflection_pad1d,
    aten.reflection_pad2d,
    aten.reflection_pad3d,
    aten.replication_pad1d,
    aten.replication_pad2d,
    aten.replication_pad3d,
)
def _border(func: Any, x: LazyTensor, amounts: Sequence[int]) -> Any:
    source = field_of(x, x)
    if not is_plain(source, len(amounts) // 2):
        return NotImplemented
    index = {}
    for place in range(len(amounts) // 2):
        axis, n = source.axes[len(source.axes) - 1 - place], x.shape[-1 - place]
        positions = torch.arange(-amounts[2 * place], n + amounts[2 * place + 1])
        if func.overloadpacket.__name__.startswith("reflection"):
            positions = n - 1 - (n - 1 - positions.abs()).abs()
        assert axis is not None
        index[axis] = positions.clamp(0, n - 1)
    return x.like(Index(on_meta(func, (x, amounts), {}).shape, source, index))


# -- dimensions


@handles(aten.view, aten._unsafe_view, aten.reshape)
def _view(func: Any, x: LazyTensor, shape: Sequence[int]) -> Any:
    if not x.node.is_field:
        return NotImplemented
    target = list(on_meta(func, (x, shape), {}).shape)
    found = regroup(x.node.shape, x.node.axes, target)
    if found is None:
        return NotImplemented
    axes, ratios = found
    return x.like(Shuffle(_reshape(target, axes), target, x.node, axes, ratios))


@handles(aten.expand)
def _expand(func: Any, x: LazyTensor, shape: Sequence[int], **kwargs: Any) -> Any:
    if not x.node.is_field:
        return NotImplemented
    target = list(on_meta(func, (x, shape), {}).shape)
    axes = (None,) * (len(target) - x.ndim) + x.node.axes
    if any(a is not None and n != m for a, n, m in zip(x.node.axes, x.shape, target[-x.ndim :], strict=True)):
        return NotImplemented

    def expand(tile: Tensor, made: Region) -> Tensor:
        return tile.expand(
            [n if a is None else made[a][1] - made[a][0] for n, a in zip(target, axes, strict=True)]
        ).clone()

    return x.like(Shuffle(expand, target, x.node, axes, [(1, 1)] * len(x.node.size)))


def _reshape(target: Sequence[int], axes: Sequence[int | None]) -> Callable[[Tensor, Region], Tensor]:
    def reshape(tile: Tensor, made: Region) -> Tensor:
        return tile.reshape([n if a is None else made[a][1] - made[a][0] for n, a in zip(target, axes, strict=True)])

    return reshape


def _local(func: Any, x: LazyTensor, source: Node, axes: Sequence[int | None], rest: Sequence[Any]) -> Any:
    made = on_meta(func, (x, *rest), {})
    return x.like(Local(lambda tile: func(tile, *rest), made.shape, made.dtype, tuple(axes), (source,)))


@handles(aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze)
def _rearrange(func: Any, x: LazyTensor, *rest: Any) -> Any:
    if not x.node.is_field or (func is aten.squeeze.default):
        return NotImplemented
    axes, name = list(x.node.axes), func.overloadpacket.__name__
    if name == "permute":
        axes = [axes[dim] for dim in rest[0]]
    elif name in ("transpose", "t"):
        a, b = rest or (0, 1)
        axes[a], axes[b] = axes[b], axes[a]
    elif name == "unsqueeze":
        axes.insert(rest[0] % (x.ndim + 1), None)
    else:
        dims = {dim % x.ndim for dim in (rest[0] if isinstance(rest[0], Sequence) else [rest[0]])}
        dims = {dim for dim in dims if x.shape[dim] == 1}
        if any(axes[dim] is not None for dim in dims):
            return NotImplemented
        axes = [axis for dim, axis in enumerate(axes) if dim not in dims]
    return _local(func, x, x.node, axes, rest)


@handles(aten.slice)
def _slice(
    func: Any, x: LazyTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    if not x.node.is_field:
        return NotImplemented
    dim %= x.ndim
    axis = x.node.axes[dim]
    if axis is None:
        return _local(func, x, x.node, x.node.axes, (dim, start, end, step))
    positions = torch.arange(x.shape[dim])[slice(start, end, step)]
    shape = [*x.shape[:dim], len(positions), *x.shape[dim + 1 :]]
    if step == 1 and len(positions):
        before = [0] * len(x.node.size)
        before[axis] = -int(positions[0])
        return x.like(Pad(shape, x.node, before, 0.0))
    return x.like(Index(shape, x.node, {axis: positions})) if len(positions) else NotImplemented


@handles(aten.flip)
def _flip(func: Any, x: LazyTensor, dims: Sequence[int]) -> Any:
    if not x.node.is_field:
        return NotImplemented
    chosen = {dim % x.ndim for dim in dims}
    spatial = {x.node.axes[dim]: torch.arange(x.shape[dim]).flip(0) for dim in chosen if x.node.axes[dim] is not None}
    plain = [dim for dim in chosen if x.node.axes[dim] is None]
    made = _local(func, x, x.node, x.node.axes, (plain,)) if plain else x
    return x.like(Index(x.shape, made.node, spatial)) if spatial else made  # type: ignore[arg-type]


@handles(aten._softmax, aten._log_softmax)
def _softmax(func: Any, x: LazyTensor, dim: int, *rest: Any) -> Any:
    if not x.node.is_field or x.node.axes[dim] is not None:
        return NotImplemented
    return _local(func, x, x.node, x.node.axes, (dim, *rest))


@handles(aten.select, aten.unbind)
def _select(func: Any, x: LazyTensor, dim: int = 0, *rest: Any) -> Any:
    if not x.node.is_field or x.node.axes[dim] is not None:
        return NotImplemented
    dim %= x.ndim
    axes = [axis for d, axis in enumerate(x.node.axes) if d != dim]
    if func.overloadpacket is aten.select:
        return _local(func, x, x.node, axes, (dim, *rest))
    return [_local(aten.select.int, x, x.node, axes, (dim, i)) for i in range(x.shape[dim])]


@handles(aten.split, aten.split_with_sizes)
def _split(func: Any, x: LazyTensor, sizes: Any, dim: int = 0) -> Any:
    if not x.node.is_field:
        return NotImplemented
    n = x.shape[dim]
    lengths = [min(sizes, n - i) for i in range(0, n, sizes)] if isinstance(sizes, int) else list(sizes)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [_slice(aten.slice.Tensor, x, dim, a, a + b) for a, b in zip(starts, lengths, strict=True)]


@handles(aten.cat)
def _cat(func: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    lazy = first_lazy(tensors)
    dim %= lazy.ndim
    fields = [t.node for t in tensors if isinstance(t, LazyTensor) and t.node.is_field]
    shape = list(on_meta(func, (tensors, dim), {}).shape)
    if not fields or len({t.dtype for t in tensors}) > 1 or len({node.axes for node in fields}) > 1:
        return NotImplemented
    if fields[0].axes[dim] is None:
        nodes = [node_of(t) for t in tensors]
        return lazy.like(Local(lambda *tiles: torch.cat(tiles, dim), shape, lazy.dtype, fields[0].axes, nodes))
    if len(fields) < len(tensors):
        return NotImplemented
    return lazy.like(Concatenate(shape, fields, fields[0].axes[dim]))  # type: ignore[arg-type]


@handles(aten.clone, aten._to_copy, aten.detach, aten.alias, aten.lift_fresh, aten.contiguous)
def _same(func: Any, x: LazyTensor, **kwargs: Any) -> Any:
    dtype = kwargs.get("dtype") or x.dtype
    if dtype == x.dtype:
        return x.like(x.node)
    return pointwise(aten._to_copy.default, x, dtype=dtype)


@handles(torch._C._nn.linear, "linear")
def _linear_map(func: Any, x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not isinstance(x, LazyTensor) or not x.node.is_field or x.node.axes[-1] is not None:
        return NotImplemented
    shape = (*x.shape[:-1], weight.shape[0])
    return x.like(_Linear(x.node, weight, bias, shape))


class _Linear(Node):
    """A linear map over the last dimension."""

    heavy = True

    def __init__(self, source: Node, weight: Tensor, bias: Tensor | None, shape: Sequence[int]) -> None:
        super().__init__(shape, source.dtype, source.axes, (source,), (weight, bias))

    def compute(self, tiles: list[Any], tensors: Sequence[Any], region: Region) -> Tensor:
        return F.linear(tiles.pop(), *tensors)

    def work(self, region: Region) -> float:
        return super().work(region) * self.inputs[0].shape[-1]
