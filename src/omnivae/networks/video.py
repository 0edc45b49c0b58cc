"""2-D networks lifted to video: every spatial convolution gains a temporal extent, everything else works frame by frame.

Frames are folded into the batch, so normalisation, attention and resampling are those of the 2-D network; a lifted
convolution unfolds them, repeats the first and last frame at the ends and convolves in time too. Ho et al., Video
Diffusion Models (2022) fold in this way; Carreira & Zisserman, Quo Vadis, Action Recognition? (2017) inflate kernels.

With kernel w of the 2-D convolution, the lifted one starts as (0, w, 0) ("central") or (w, w, w) / 3 ("average"). For one
frame, repeated at both ends, both give w * x exactly: 0 + w * x + 0, and 3 * (w / 3) * x. Zero padding in time would not.

Shapes: B clips, T frames, C channels, H, W.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.networks.kl import KLDecoder, KLEncoder, Upsample
from omnivae.networks.layers import check_divisible
from omnivae.types import strides

Inflation = Literal["central", "average"]
#: Networks whose shortcuts never cross a resampling, so that the resampling may take time with it.
RESAMPLES_TIME = (ConvEncoder, ConvDecoder, KLEncoder, KLDecoder)


class _Clips:
    """How many clips the folded batch holds at present; shared by all convolutions of a network."""

    def __init__(self) -> None:
        self.number = 1


class TemporalConv(nn.Conv3d):
    """A 2-D convolution with a temporal extent, on frames folded into the batch.

    Args:
        convolution: the 2-D convolution.
        clips: how many clips the batch holds.
        time_kernel: odd number of frames that it sees.
        time_stride: frames that become one.
        repeat: times that each frame is repeated first.
        inflation: "central" or "average".
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        clips: _Clips,
        *,
        time_kernel: int,
        time_stride: int,
        repeat: int,
        inflation: Inflation,
    ) -> None:
        height, width = _padding(convolution)
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            _with_time(time_kernel, convolution.kernel_size),
            stride=_with_time(time_stride, convolution.stride),
            padding=(0, height, width),
            dilation=_with_time(1, convolution.dilation),
            groups=convolution.groups,
            bias=convolution.bias is not None,
        )
        self.clips, self.repeat = clips, repeat
        _take_over(self, convolution, inflation)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B * T, C, H, W]`` to ``[B * T', C', H', W']``."""
        clip = _unfolded(x, self.clips, self.repeat, self.kernel_size[0] // 2)
        return super().forward(clip).transpose(1, 2).flatten(0, 1)


class TemporalConvTranspose(nn.ConvTranspose3d):
    """A transposed 2-D convolution with a temporal extent, on frames folded into the batch.

    Args:
        convolution: the 2-D convolution.
        clips: how many clips the batch holds.
        time_kernel: odd number of frames that it sees.
        repeat: times that each frame is repeated first.
        inflation: "central" or "average".
    """

    def __init__(
        self, convolution: nn.ConvTranspose2d, clips: _Clips, *, time_kernel: int, repeat: int, inflation: Inflation
    ) -> None:
        height, width = _padding(convolution)
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            _with_time(time_kernel, convolution.kernel_size),
            stride=_with_time(1, convolution.stride),
            # Of the frames that a transposed convolution adds, only those that see a whole kernel are kept.
            padding=(time_kernel - 1, height, width),
            output_padding=_with_time(0, convolution.output_padding),
            dilation=_with_time(1, convolution.dilation),
            groups=convolution.groups,
            bias=convolution.bias is not None,
        )
        self.clips, self.repeat = clips, repeat
        _take_over(self, convolution, inflation)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map ``[B * T, C, H, W]`` to ``[B * T', C', H', W']``."""
        clip = _unfolded(x, self.clips, self.repeat, self.kernel_size[0] // 2)
        return super().forward(clip, output_size).transpose(1, 2).flatten(0, 1)


class LiftedNetwork(nn.Module, Component):
    """A 2-D network lifted to clips ``[B, C, T, H, W]``: convolutions see neighbouring frames, the rest one frame at a time.

    For a clip of one frame it computes what the 2-D network computes; with ``inflation="central"`` so it does for every
    frame of every clip, until it is trained.

    Args:
        network: a network of images; its weights are copied, inflated.
        time_kernel: odd number of frames that a convolution sees.
        time_stride: frames that become one frame of features, a power of two: the deepest resamplings halve time too. 1
            keeps every frame; more is possible for :class:`ConvEncoder`, :class:`KLEncoder` and their decoders.
        inflation: "central" or "average".

    Raises:
        ValueError: for a network that is not 2-D, has flat features or has nothing to lift, or times that do not fit.

    Example:
        >>> network = LiftedNetwork(KLEncoder(1, 4, (8, 8, 8, 8), num_res_blocks=1, num_groups=4))
        >>> network.stride, network(torch.zeros(2, 1, 5, 16, 24)).shape
        ((1, 8, 8), torch.Size([2, 4, 5, 2, 3]))
    """

    def __init__(
        self, network: nn.Module, *, time_kernel: int = 3, time_stride: int = 1, inflation: Inflation = "central"
    ) -> None:
        super().__init__()
        name = type(network).__name__
        if getattr(network, "dim", None) != 2 or getattr(network, "grid", None) is not None:
            raise ValueError(
                f"got a {name} with dim={getattr(network, 'dim', None)}; expected a network of images with a spatial latent: "
                "build it with dim=2 and latent='spatial'"
            )
        if time_kernel < 1 or time_kernel % 2 == 0:
            raise ValueError(f"got time_kernel={time_kernel}; expected an odd number of frames, such as 3")
        if time_stride < 1 or time_stride & (time_stride - 1):
            raise ValueError(f"got time_stride={time_stride}; expected a power of two, such as 1 or 4")
        if inflation not in get_args(Inflation):
            raise ValueError(f"got inflation={inflation!r}; expected {' or '.join(get_args(Inflation))}")
        if time_stride > 1 and not isinstance(network, RESAMPLES_TIME):
            known = ", ".join(cls.__name__ for cls in RESAMPLES_TIME)
            raise ValueError(f"got time_stride={time_stride}; a {name} keeps every frame, only {known} resample time")
        self.dim = 3
        self.in_channels: int = network.in_channels  # type: ignore[assignment]
        self.out_channels: int = network.out_channels  # type: ignore[assignment]
        self.cond_dim: int | None = getattr(network, "cond_dim", None)
        self.stride: tuple[int, ...] = (time_stride, *strides(network, 2))  # type: ignore[arg-type]
        self._clips = _Clips()
        # The original keeps its weights and its place in other models.
        self.network = copy.deepcopy(network)
        self._lift(time_kernel, time_stride, inflation)

    def _lift(self, time_kernel: int, time_stride: int, inflation: Inflation) -> None:
        modules = list(self.network.modules())
        repeats, halves = _resamplings(modules, time_stride, type(self.network).__name__)
        lifted: dict[nn.Module, nn.Module] = {}
        for module in modules:
            if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                continue
            shared: dict[str, Any] = {
                # What looks at one pixel looks at one frame; it is lifted so that all kernels have five axes (memory layout).
                "time_kernel": time_kernel if max(module.kernel_size) > 1 else 1,
                "repeat": 2 if module in repeats else 1,
                "inflation": inflation,
            }
            if isinstance(module, nn.ConvTranspose2d):
                lifted[module] = TemporalConvTranspose(module, self._clips, **shared)
            else:
                lifted[module] = TemporalConv(module, self._clips, time_stride=2 if module in halves else 1, **shared)
        if not lifted:
            raise ValueError(f"a {type(self.network).__name__} has no spatial convolutions to lift")
        for parent in modules:
            for name, child in parent.named_children():
                if child in lifted:
                    setattr(parent, name, lifted[child])

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features of clips.

        Args:
            x: ``[B, in_channels, T, H, W]``.
            cond: condition ``[B, E]`` of each clip; ``None`` for a network built without.

        Returns:
            ``[B, out_channels, T', H', W']``.

        Raises:
            ValueError: for a size that does not fit.
        """
        clips = len(x)
        if isinstance(self.network, (ConvEncoder, KLEncoder)):
            check_divisible(self, x)
        if cond is not None:
            cond = cond.repeat_interleave(x.shape[2], 0)
        self._clips.number = clips
        y = self.network(x.transpose(1, 2).flatten(0, 1), cond)
        if self.training and y.requires_grad:
            # Backward, checkpointed blocks run once more, by when another batch may have passed through.
            y.register_hook(lambda _: setattr(self._clips, "number", clips))
        return y.unflatten(0, (clips, -1)).transpose(1, 2)


def _resamplings(modules: list[nn.Module], time_stride: int, name: str) -> tuple[set[nn.Module], set[nn.Module]]:
    """Return the convolutions that double time and those that halve it: the deepest ones."""
    down = [m for m in modules if type(m) is nn.Conv2d and max(m.stride) > 1]
    up: list[Any] = [m for m in modules if type(m) is nn.ConvTranspose2d and max(m.stride) > 1]
    up += [m.conv for m in modules if isinstance(m, Upsample)]
    steps = int(math.log2(time_stride))
    if steps > max(len(down), len(up)):
        raise ValueError(f"got time_stride={time_stride}; this {name} resamples {max(len(down), len(up))} times")
    return set(up[:steps]), set(down[len(down) - steps :])


def _unfolded(x: Tensor, clips: _Clips, repeat: int, margin: int) -> Tensor:
    """Return ``[B, C, T + 2 * margin, H, W]``, first and last frame repeated."""
    clip = x.unflatten(0, (clips.number, -1)).transpose(1, 2)
    if repeat > 1:
        clip = clip.repeat_interleave(repeat, 2)
    if not margin:
        return clip
    first, last = clip[:, :, :1], clip[:, :, -1:]
    return torch.cat([first] * margin + [clip] + [last] * margin, 2)


def _with_time(time: int, plane: tuple[int, ...]) -> tuple[int, int, int]:
    return time, plane[0], plane[1]


def _padding(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        raise ValueError(
            f"got a convolution with padding={convolution.padding!r}, mode {convolution.padding_mode!r}; expected zeros, "
            "a number an axis"
        )
    return convolution.padding[0], convolution.padding[1]


@torch.no_grad()
def _take_over(lifted: nn.Module, convolution: nn.Module, inflation: Inflation) -> None:
    weight: Any = lifted.weight
    lifted.weight = nn.Parameter(inflated(convolution.weight, weight.shape[2], inflation))  # type: ignore[arg-type]
    if lifted.bias is not None:
        lifted.bias = nn.Parameter(convolution.bias.detach().clone())  # type: ignore[union-attr, operator]


def inflated(weight: Tensor, frames: int, inflation: Inflation) -> Tensor:
    """Return a kernel over ``frames`` frames that does to a still image what the kernel of images does.

    Args:
        weight: ``[O, I, *K]``.
        frames: odd.
        inflation: "central" puts the kernel at the middle frame, "average" a share of it at each.

    Returns:
        ``[O, I, frames, *K]``; its sum over frames is ``weight``.

    Example:
        >>> inflated(torch.ones(1, 1, 1, 1), 3, "central").flatten()
        tensor([0., 1., 0.])
    """
    weight = weight.detach()
    if inflation == "average":
        return (weight / frames).unsqueeze(2).repeat_interleave(frames, 2)
    margin = frames // 2
    return F.pad(weight.unsqueeze(2), (0, 0) * (weight.ndim - 2) + (margin, margin))
