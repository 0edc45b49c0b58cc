"""Normalisations and reductions: what depends on every position, as sums over tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omnivae.models.tiled.graph import Constant, Local, Node, Reduce, Region, merge_moments, pieces
from omnivae.models.tiled.operators import handles, is_plain
from omnivae.models.tiled.record import LazyTensor, aten, field_of, node_of, on_meta


@handles(aten.native_group_norm)
def _group_norm(
    func: Any, x: LazyTensor, weight: Any, bias: Any, n: int, c: int, hxw: int, groups: int, eps: float
) -> Any:
    made = group_norm(x, weight, bias, groups, eps)
    return NotImplemented if made is NotImplemented else (made, None, None)


@handles("instance_norm")
def _instance_norm(
    func: Any,
    x: LazyTensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *rest: Any,
) -> Any:
    if not use_input_stats:
        return NotImplemented
    return group_norm(x, weight, bias, x.shape[1], eps)


def group_norm(x: LazyTensor, weight: Any, bias: Any, groups: int, eps: float) -> Any:
    """Record a normalisation over space and groups of channels."""
    source = field_of(x, x)
    if not is_plain(source, x.ndim - 2):
        return NotImplemented
    if source.axes[0] is not None:
        return x.like(_of_frames(x, source, weight, bias, groups, eps))
    shape = (2, 1, x.shape[1], *[1] * (x.ndim - 2))
    wide = torch.promote_types(x.dtype, torch.float32)
    statistics = Reduce(
        source,
        "moments",
        functools.partial(_affine, groups=groups, eps=eps, shape=shape, dtype=wide),
        shape,
        wide,
        tensors=(weight, bias),
    )
    statistics.module = x.recording.module
    return x.like(_apply(source, statistics))


def _apply(source: Node, statistics: Node) -> Node:
    return Local(
        lambda tile, affine: torch.addcmul(affine[1], tile, affine[0]).to(tile.dtype),
        source.shape,
        source.dtype,
        source.axes,
        (source, statistics),
        in_place=_scale_,
        aligned=False,
    )


def _scale_(tile: Tensor, affine: Tensor) -> Tensor:
    """Scale and shift a tile in place, in single precision at least and rounded once, as normalisations are."""
    if tile.dtype == affine.dtype:
        return tile.mul_(affine[0]).add_(affine[1])
    for part in pieces(tile, range(2, tile.ndim)):
        part.copy_(torch.addcmul(affine[1], part.to(affine.dtype), affine[0]))
    return tile


def _of_frames(x: LazyTensor, source: Node, weight: Any, bias: Any, groups: int, eps: float) -> Node:
    """Normalise each position along the first axis by itself: the frames of a clip, folded into the batch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (x.shape[0], 2 * x.shape[1], *[1] * (x.ndim - 2))
    statistics = FrameMoments(
        source,
        "moments",
        functools.partial(_affine_of_frames, groups=groups, eps=eps, shape=shape, dtype=wide),
        shape,
        wide,
        tensors=(weight, bias),
    )
    statistics.module = x.recording.module

    def scale(tile: Tensor, affine: Tensor) -> Tensor:
        factor, summand = affine.chunk(2, 1)
        return torch.addcmul(summand, tile, factor).to(tile.dtype)

    return Local(scale, source.shape, source.dtype, source.axes, (source, statistics))


class FrameMoments(Reduce):
    """Moments of each channel of each frame, where frames are the first dimension of a field ``[T, C, *S]``."""

    def update(self, state: Any, tile: Tensor, region: Region) -> Any:
        if state is None:
            frames, channels = self.inputs[0].shape[:2]
            state = (
                torch.zeros(frames, 1, dtype=torch.float64),
                *torch.zeros(2, frames, channels, dtype=torch.float64),
            )
        dims = range(2, tile.ndim)
        for part in pieces(tile, dims) if tile.dtype.itemsize < 4 else (tile,):
            variance, mean = torch.var_mean(
                part.to(torch.promote_types(part.dtype, torch.float32)), dim=[*dims], correction=0
            )
            count = math.prod(part.shape[2:])
            # Views: what is merged lands in the state.
            here = [value[slice(*region[0])] for value in state]
            merged = merge_moments(tuple(here), (count, mean.double().cpu(), variance.double().cpu() * count))
            for value, new in zip(here, merged, strict=True):
                value.copy_(new)
        return state


def _affine_of_frames(state: Any, weight: Tensor | None, bias: Tensor | None, **settings: Any) -> Tensor:
    """Return factors and summands ``[T, 2 * C, 1, ...]`` of each frame's channels."""
    groups, eps, shape, dtype = (settings[name] for name in ("groups", "eps", "shape", "dtype"))
    device = weight.device if weight is not None else state[1].device
    count, mean, squares = (value.to(device) for value in state)
    return torch.cat(_factors(count, mean, squares, weight, bias, groups, eps), 1).reshape(tuple(shape)).to(dtype)


def _affine(
    state: tuple[int, Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    groups: int,
    eps: float,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Return factor and summand of each channel."""
    count, mean, squares = state
    factor, summand = _factors(count, mean.reshape(1, -1), squares.reshape(1, -1), weight, bias, groups, eps)
    return torch.stack([factor, summand]).reshape(tuple(shape)).to(dtype)


def _factors(
    count: int | Tensor,
    mean: Tensor,
    squares: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return a and b of ``a * x + b = (x - mean) / sqrt(variance + eps) * weight + bias``.

    Args:
        count: positions.
        mean: of each channel, ``[N, C]``.
        squares: sums of squared deviations from it, ``[N, C]``.
        weight: ``[C]``.
        bias: ``[C]``.
        groups: of channels, each with one mean and variance.
        eps: added to variances.
    """
    each, means = squares / count, mean.unflatten(1, (groups, -1))
    centre = means.mean(2, keepdim=True)
    variance = (each.unflatten(1, (groups, -1)) + (means - centre).square()).mean(2, keepdim=True)
    factor = (variance + eps).rsqrt().expand_as(means).flatten(1)
    if weight is not None:
        factor = factor * weight.double()
    summand = -centre.expand_as(means).flatten(1) * factor
    if bias is not None:
        summand = summand + bias.double()
    return factor, summand


@handles(aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm)
def _batch_norm(func: Any, x: LazyTensor, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Any:
    source = field_of(x, x)
    training = bool(rest[0]) if len(rest) == 3 else False
    if training or mean is None or not is_plain(source, x.ndim - 2):
        return NotImplemented
    factor = (variance.double() + rest[-1]).rsqrt()
    factor = factor if weight is None else factor * weight.double()
    summand = -mean.double() * factor
    summand = summand if bias is None else summand + bias.double()
    shape = (2, 1, x.shape[1], *[1] * (x.ndim - 2))
    affine = torch.stack([factor, summand]).reshape(shape).to(torch.promote_types(x.dtype, torch.float32))
    return x.like(_apply(source, Constant(affine))), None, None


@handles(aten.native_layer_norm)
def _layer_norm(func: Any, x: LazyTensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    if not x.node.is_field or any(axis is not None for axis in x.node.axes[-len(shape) :]):
        return NotImplemented
    weights = [node_of(tensor) for tensor in (weight, bias) if tensor is not None]

    def normalize(tile: Tensor, *given: Tensor) -> Tensor:
        w = given[0] if weight is not None else None
        return func(tile, shape, w, given[-1] if bias is not None else None, eps)[0]

    made = Local(normalize, x.shape, x.dtype, x.node.axes, (x.node, *weights), aligned=False)
    return x.like(made), None, None


@handles(
    aten.mean, aten.sum, aten.var, aten.std, aten.amax, aten.amin, aten.linalg_vector_norm, aten.prod, aten.logsumexp
)
def _reduce(func: Any, x: LazyTensor, *rest: Any, **kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    place = 1 if name == "linalg_vector_norm" else 0
    given = kwargs.get("dim", rest[place] if len(rest) > place else None)
    dims = range(x.ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = sorted(dim % x.ndim for dim in dims)
    if not x.node.is_field:
        return NotImplemented
    made = on_meta(func, (x, *rest), kwargs)
    spatial = set(x.node.dims())
    if not spatial & set(dims):
        keep = made.ndim == x.ndim
        axes = [a for d, a in enumerate(x.node.axes) if keep or d not in dims]
        return x.like(Local(lambda tile: func(tile, *rest, **kwargs), made.shape, made.dtype, tuple(axes), (x.node,)))
    if not spatial <= set(dims) or name not in ("mean", "sum", "var", "std", "amax", "amin"):
        return NotImplemented
    # What is left of the dimensions after the spatial ones are gone.
    kept = [dim for dim in range(x.ndim) if dim not in spatial]
    others = tuple(kept.index(dim) for dim in dims if dim not in spatial)
    correction = kwargs.get("correction", 1)
    finish = functools.partial(
        _finish,
        name=name,
        dims=others,
        correction=1 if correction is None else correction,
        shape=tuple(made.shape),
        dtype=made.dtype,
    )
    node = Reduce(x.node, name if name in ("amax", "amin") else "moments", finish, made.shape, made.dtype)
    return x.like(node)


def _finish(
    state: Any, *, name: str, dims: tuple[int, ...], correction: float, shape: Any, dtype: torch.dtype
) -> Tensor:
    if name in ("amax", "amin"):
        value = getattr(torch, name)(state, dims) if dims else state
        return value.reshape(shape).to(dtype)
    count, mean, squares = state
    times = math.prod(mean.shape[dim] for dim in dims)
    centre = mean.mean(dims, keepdim=True) if dims else mean
    if name == "mean":
        value = centre
    elif name == "sum":
        value = centre * (count * times)
    else:
        spread = squares + count * (mean - centre).square()
        value = (spread.sum(dims) if dims else spread) / (count * times - correction)
        value = value.sqrt() if name == "std" else value
    return value.reshape(shape).to(dtype)
