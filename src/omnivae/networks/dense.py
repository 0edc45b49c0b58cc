"""Fully connected layers between a network and a vector latent, as the papers on disentanglement have them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from omnivae.component import Component
from omnivae.types import Network


class DenseAfter(nn.Module, Component):
    """An encoder with flat features, and fully connected layers with ReLU after it.

    Args:
        body: network from images to ``[B, C]``.
        hidden: width of each layer.

    Raises:
        ValueError: for no layer, a width below 1, or a network with spatial features.

    Example:
        >>> import torch
        >>> from omnivae.networks import ConvEncoder
        >>> DenseAfter(ConvEncoder(1, (8,), image_size=(8, 8)), (16,))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 16])
    """

    def __init__(self, body: Network, hidden: Sequence[int]) -> None:
        super().__init__()
        _check(body, hidden)
        self.dim: int = body.dim  # type: ignore[attr-defined]
        self.in_channels, self.stride = body.in_channels, body.stride
        self.out_channels = hidden[-1]
        self.body = body
        self.layers = _layers((body.out_channels, *hidden))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: as the body takes them.
            cond: condition ``[B, E]`` of the body.

        Returns:
            ``[B, hidden[-1]]``.
        """
        return self.layers(self.body(x, cond))


class DenseBefore(nn.Module, Component):
    """Fully connected layers with ReLU, and a decoder that takes what they return for its latent.

    Args:
        latent_dim: size of z.
        hidden: width of each layer; the last is the body's ``in_channels``.
        body: network from ``[B, hidden[-1]]`` to likelihood parameters.

    Raises:
        ValueError: for no layer, a width below 1, or a network that takes another width or a spatial latent.

    Example:
        >>> import torch
        >>> from omnivae.networks import ConvDecoder
        >>> DenseBefore(4, (16,), ConvDecoder(16, 1, (8,), image_size=(8, 8)))(torch.zeros(2, 4)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int], body: Network) -> None:
        super().__init__()
        _check(body, (latent_dim, *hidden))
        if not hidden or body.in_channels != hidden[-1]:
            raise ValueError(
                f"got hidden={tuple(hidden)}; expected the last to be {body.in_channels}, which the body takes"
            )
        self.dim: int = body.dim  # type: ignore[attr-defined]
        self.in_channels, self.out_channels, self.stride = latent_dim, body.out_channels, body.stride
        self.layers = _layers((latent_dim, *hidden))
        self.body = body

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return likelihood parameters.

        Args:
            x: ``[B, latent_dim]``.
            cond: condition ``[B, E]`` of the body.

        Returns:
            What the body returns.
        """
        return self.body(self.layers(x), cond)


def _layers(widths: Sequence[int]) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"linear{index}"] = nn.Linear(inputs, outputs)
        layers[f"act{index}"] = nn.ReLU()
    return nn.Sequential(layers)


def _check(body: Network, hidden: Sequence[int]) -> None:
    if not hidden or min(hidden) < 1:
        raise ValueError(f"got hidden={tuple(hidden)}; expected the width of each layer, at least one of at least 1")
    if getattr(body, "grid", ()) is None:
        raise ValueError(f"fully connected layers need a vector: build {type(body).__name__} with an image_size")
