"""A dense latent as a grid of tokens of one channel, which is what pythae's VQ-VAE quantises with its fully connected networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks import MLPDecoder, MLPEncoder


class TokenEncoder(nn.Module, Component):
    """An encoder followed by a linear map to ``[B, 1, G, G]``, one cell for every ``stride`` pixels."""

    def __init__(self, network: MLPEncoder, grid: int, stride: int) -> None:
        super().__init__()
        self.network, self.to_tokens, self.grid = network, nn.Linear(network.out_channels, grid**2), grid
        self.in_channels, self.out_channels, self.stride, self.dim = network.in_channels, 1, stride, 2

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.to_tokens(self.network(x, cond)).unflatten(1, (1, self.grid, self.grid))


class TokenDecoder(nn.Module, Component):
    """A decoder of ``[B, 1, G, G]`` to values in (0, 1)."""

    def __init__(self, network: MLPDecoder, stride: int) -> None:
        super().__init__()
        self.network = network
        self.in_channels, self.out_channels, self.stride, self.dim = 1, network.out_channels, stride, 2

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        # pythae's decoder ends in a sigmoid, whatever is made of its output.
        return torch.sigmoid(self.network(z.flatten(1), cond))
