"""Fully connected encoder and decoder: the networks of the first VAE papers, for images of one small size."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.layers import check_dim, refuse_cond

Activation = Literal["tanh", "relu", "elu", "softplus"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "softplus": nn.Softplus}


class MLPEncoder(nn.Module, Component):
    """Images, flattened, to features by fully connected layers.

    Args:
        in_channels: image channels.
        image_size: size of the images, one number >= 1 for each of 1 to 3 axes.
        hidden: width of each layer; two of 200 as in Burda et al., Importance Weighted Autoencoders, 2016.
        activation: "tanh", "relu", "elu" or "softplus", after every layer.

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
    ) -> None:
        super().__init__()
        _check(in_channels, image_size, hidden, activation)
        self.dim = len(image_size)
        self.in_channels = in_channels
        self.image_size = tuple(image_size)
        self.stride = 1
        self.out_channels = hidden[-1]
        self.layers = _layers((in_channels * math.prod(image_size), *hidden), activation)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: ``[B, in_channels, *image_size]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, hidden[-1]]``.

        Raises:
            ValueError: for a condition, or another size.
        """
        refuse_cond(self, cond)
        if tuple(x.shape[2:]) != self.image_size:
            raise ValueError(
                f"got an image of size {tuple(x.shape[2:])}; this fully connected network takes {self.image_size}"
            )
        return self.layers(x.flatten(1))


class MLPDecoder(nn.Module, Component):
    """A vector to likelihood parameters: the mirror of :class:`MLPEncoder`, without a final activation.

    Args:
        latent_dim: size of z.
        out_channels: channels of the result; the likelihood says how many it needs.
        image_size: size of the images.
        hidden: width of each layer, deepest first.
        activation: "tanh", "relu", "elu" or "softplus", after every layer but the last.

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
    ) -> None:
        super().__init__()
        _check(latent_dim, image_size, hidden, activation)
        self.dim = len(image_size)
        self.in_channels = latent_dim
        self.out_channels = out_channels
        self.image_size = tuple(image_size)
        self.stride = 1
        self.layers = _layers((latent_dim, *hidden), activation)
        self.head = nn.Linear(hidden[-1], out_channels * math.prod(image_size))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, out_channels, *image_size]``.

        Raises:
            ValueError: for a condition.
        """
        refuse_cond(self, cond)
        return self.head(self.layers(x)).unflatten(1, (self.out_channels, *self.image_size))


def _layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"linear{index}"] = nn.Linear(inputs, outputs)
        layers[f"act{index}"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)


def _check(channels: int, image_size: Sequence[int], hidden: Sequence[int], activation: str) -> None:
    check_dim(len(image_size))
    if channels < 1 or min(image_size) < 1 or not hidden or min(hidden) < 1:
        raise ValueError(
            f"got {channels} channels, image_size={tuple(image_size)} and hidden={tuple(hidden)}; expected positive numbers"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"got activation={activation!r}; expected one of {', '.join(ACTIVATIONS)}")
