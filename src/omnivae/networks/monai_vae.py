"""MONAI's ``VarAutoEncoder`` as an encoder and a decoder that share one module of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnivae.networks.layers import refuse_cond


def var_autoencoder(**arguments: Any) -> Any:
    """Return MONAI's ``VarAutoEncoder``.

    Args:
        arguments: as MONAI takes them.

    Returns:
        The module.

    Raises:
        ImportError: when MONAI is not installed; says how to.
    """
    try:
        from monai.networks.nets import VarAutoEncoder
    except ImportError as error:
        raise ImportError(
            "BetaVaeMonai is built on MONAI: install it with `pip install omnivae[microscopy]` or omnivae[medical]"
        ) from error
    return VarAutoEncoder(**arguments)


class _Half(nn.Module):
    """Some parts of a module that is registered elsewhere, so that no weight is saved under two names.

    To itself it is a network with these parts; to a module that holds it, and that holds the whole, it has none.
    """

    stride = 1  # of a vector latent

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.dim = int(model.dimensions)
        self.gradient_checkpointing = False
        # In a tuple: a module given as an attribute would be registered.
        self._whole = (model,)
        self._names = tuple(names)

    @property
    def whole(self) -> Any:
        """MONAI's module."""
        return self._whole[0]

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_names", ()):
            return getattr(self.whole, name)
        return super().__getattr__(name)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts."""
        for name in self._names:
            yield name, getattr(self.whole, name)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield itself and, unless a module that holds it asks (which has a memo), the parts and theirs."""
        yield prefix, self
        if memo is None:
            for name, part in self.named_children():
                yield from part.named_modules(set(), f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def run(self, part: nn.Module, x: Tensor) -> Tensor:
        """Call a part, recomputed in the backward pass if asked."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(part, x, use_reentrant=False)  # type: ignore[no-any-return]
        return part(x)


class VarEncoder(_Half):
    """Images of one size to mean and log-variance of a vector.

    Args:
        model: MONAI's ``VarAutoEncoder``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, ("encode", "intermediate", "mu", "logvar"))
        self.in_channels = int(model.in_channels)
        self.out_channels = 2 * int(model.latent_size)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map ``[B, in_channels, *S]`` to ``[B, 2 * latent_size]``."""
        refuse_cond(self, cond)
        h = self.run(self.intermediate, self.run(self.encode, x)).flatten(1)
        return torch.cat([self.mu(h), self.logvar(h)], dim=1)


class VarDecoder(_Half):
    """Vector to image.

    Args:
        model: MONAI's ``VarAutoEncoder``.
        output_size: spatial size that images are resampled to (linear in each axis), or ``None``.
    """

    def __init__(self, model: Any, output_size: Sequence[int] | None = None) -> None:
        super().__init__(model, ("decodeL", "decode"))
        self.in_channels = int(model.latent_size)
        self.out_channels = int(model.out_channels)
        self.output_size = None if output_size is None else tuple(output_size)
        factor = math.prod(model.strides)
        #: Spatial size before any resampling.
        self.natural_size = tuple(int(n) * factor for n in model.final_size)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map ``[B, latent_size]`` to ``[B, out_channels, *S]``."""
        refuse_cond(self, cond)
        h = F.relu(self.decodeL(x))
        h = h.unflatten(1, (self.whole.channels[-1], *(int(n) for n in self.whole.final_size)))
        y = self.run(self.decode, h)
        if self.output_size is not None and tuple(y.shape[2:]) != self.output_size:
            mode = ("linear", "bilinear", "trilinear")[self.dim - 1]
            y = F.interpolate(y, size=self.output_size, mode=mode, align_corners=False)
        return torch.sigmoid(y) if self.whole.use_sigmoid else y
