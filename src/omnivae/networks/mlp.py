"""Fully connected encoder and decoder: the networks of the first VAE papers, for images of one small size."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.conditioning import (
    ConditionedStage,
    Conditioning,
    check_cond,
    check_conditioning,
    modulation,
    with_planes,
)
from omnivae.networks.layers import check_dim

Activation = Literal["tanh", "relu", "elu", "softplus", "leaky_relu"]
MLPNorm = Literal["batch", "none"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}


class MLPEncoder(nn.Module, Component):
    """Images, flattened, to features by fully connected layers.

    Args:
        in_channels: image channels.
        image_size: size of the images, one number >= 1 for each of 1 to 3 axes.
        hidden: width of each layer; two of 200 as in Burda et al., Importance Weighted Autoencoders, 2016.
        activation: "tanh", "relu", "elu", "softplus" or "leaky_relu" (slope 0.1), after every layer.
        norm: "batch" for a batch normalisation before every activation, or "none".
        cond_dim: size E of the condition, or ``None`` for a network without one.
        conditioning: "concat" (numbers behind the input), "batch_norm" or "film"; counts only with a ``cond_dim``.

    Example:
        >>> import torch
        >>> MLPEncoder(1, (28, 28), (32, 16))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: Sequence[int] = (28, 28),
        hidden: Sequence[int] = (200, 200),
        *,
        activation: Activation = "tanh",
        norm: MLPNorm = "none",
        cond_dim: int | None = None,
        conditioning: Conditioning = "concat",
    ) -> None:
        super().__init__()
        check_conditioning(cond_dim, conditioning)
        _check(in_channels, image_size, hidden, activation, norm)
        self.dim = len(image_size)
        self.in_channels = in_channels
        self.cond_dim, self.conditioning = cond_dim, conditioning
        self.image_size = tuple(image_size)
        self.stride = 1
        self.out_channels = hidden[-1]
        self.layers = _layers((in_channels * math.prod(image_size), *hidden), activation, norm, cond_dim, conditioning)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, *image_size]``.
            cond: condition ``[B, cond_dim]``; ``None`` for a network built without.

        Returns:
            ``[B, hidden[-1]]``.

        Raises:
            ValueError: for another size, a missing condition, or one that the network was not built for.
        """
        check_cond(self, cond, len(x))
        if tuple(x.shape[2:]) != self.image_size:
            raise ValueError(
                f"got an image of size {tuple(x.shape[2:])}; this fully connected network takes {self.image_size}"
            )
        return _through(self.layers, x.flatten(1), cond)


class MLPDecoder(nn.Module, Component):
    """A vector to likelihood parameters: the mirror of :class:`MLPEncoder`, without a final activation.

    Args:
        latent_dim: size of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        image_size: size of the images.
        hidden: width of each layer, deepest first.
        activation: "tanh", "relu", "elu", "softplus" or "leaky_relu" (slope 0.1), after every layer but the last.
        norm: "batch" for a batch normalisation before every activation, or "none".
        cond_dim: size E of the condition, or ``None`` for a network without one.
        conditioning: "concat" (numbers behind the input), "batch_norm" or "film"; counts only with a ``cond_dim``.

    Example:
        >>> import torch
        >>> MLPDecoder(4, 1, (28, 28), (16, 32))(torch.zeros(2, 4)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        out_channels: int = 1,
        image_size: Sequence[int] = (28, 28),
        hidden: Sequence[int] = (200, 200),
        *,
        activation: Activation = "tanh",
        norm: MLPNorm = "none",
        cond_dim: int | None = None,
        conditioning: Conditioning = "concat",
    ) -> None:
        super().__init__()
        check_conditioning(cond_dim, conditioning)
        _check(latent_dim, image_size, hidden, activation, norm)
        self.dim = len(image_size)
        self.in_channels = latent_dim
        self.cond_dim, self.conditioning = cond_dim, conditioning
        self.out_channels = out_channels
        self.image_size = tuple(image_size)
        self.stride = 1
        self.layers = _layers((latent_dim, *hidden), activation, norm, cond_dim, conditioning)
        self.head = nn.Linear(hidden[-1], out_channels * math.prod(image_size))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim]``.
            cond: condition ``[B, cond_dim]``; ``None`` for a network built without.

        Returns:
            ``[B, out_channels, *image_size]``.

        Raises:
            ValueError: for a missing condition, or one that the network was not built for.
        """
        check_cond(self, cond, len(x))
        return self.head(_through(self.layers, x, cond)).unflatten(1, (self.out_channels, *self.image_size))


def _layers(
    widths: Sequence[int], activation: str, norm: str, cond_dim: int | None, conditioning: Conditioning
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    modulated = cond_dim is not None and conditioning != "concat"
    if cond_dim is not None and not modulated:
        widths = (widths[0] + cond_dim, *widths[1:])
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        act = ACTIVATIONS[activation]()
        own_norm = nn.BatchNorm1d(outputs) if norm == "batch" else None
        # A bias before batch normalisation would be subtracted again.
        linear = nn.Linear(inputs, outputs, bias=own_norm is None and not (modulated and conditioning == "batch_norm"))
        if cond_dim is not None and modulated:
            # Conditional batch normalisation is one already.
            layers[f"stage{index}"] = ConditionedStage(
                linear,
                own_norm if conditioning != "batch_norm" else None,
                modulation(conditioning, cond_dim, outputs, dim=0),
                act,
            )
            continue
        layers[f"linear{index}"] = linear
        if own_norm is not None:
            layers[f"norm{index}"] = own_norm
        layers[f"act{index}"] = act
    return nn.Sequential(layers)


def _through(layers: nn.Sequential, x: Tensor, cond: Tensor | None) -> Tensor:
    if cond is not None and not isinstance(layers[0], ConditionedStage):
        x = with_planes(x, cond)
    for layer in layers:
        x = layer(x, cond) if isinstance(layer, ConditionedStage) else layer(x)
    return x


def _check(channels: int, image_size: Sequence[int], hidden: Sequence[int], activation: str, norm: str) -> None:
    check_dim(len(image_size))
    if channels < 1 or min(image_size) < 1 or not hidden or min(hidden) < 1:
        raise ValueError(
            f"got {channels} channels, image_size={tuple(image_size)} and hidden={tuple(hidden)}; expected positive numbers"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"got activation={activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    if norm not in ("batch", "none"):
        raise ValueError(f"got norm={norm!r}; expected 'batch' or 'none'")
