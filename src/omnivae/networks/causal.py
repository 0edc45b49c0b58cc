"""A causal transformer: what it says at a place depends on that place and those before it (Radford et al., GPT-2, 2019)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

#: Keys and values of the places before, one pair a block, ``[B, heads, T, C / heads]`` each.
Memory = list[tuple[Tensor, Tensor] | None]


class CausalBlock(nn.Module):
    """Attention to this place and those before, then a perceptron, each on normalised input and added to it.

    Args:
        width: channels.
        num_heads: attention heads; divides the width.
        dropout: share of values that are dropped in training, in [0, 1).
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output, and the keys and values of all places up to here.

        Args:
            x: ``[B, T, C]``; with a memory, one place.
            before: keys and values of the places before ``x``.
        """
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.movedim(-3, 0).transpose(-3, -2)
        if before is not None:
            k, v = torch.cat([before[0], k], -2), torch.cat([before[1], v], -2)
        # A single place may look at all that is there.
        mixed = scaled_dot_product_attention(q, k, v, is_causal=before is None)
        x = x + self.drop(self.out(mixed.transpose(-3, -2).flatten(-2)))
        return x + self.drop(self.mlp(self.norm2(x))), (k, v)


class CausalTransformer(nn.Module):
    """Blocks of causal attention.

    Args:
        width: channels.
        depth: number of blocks, >= 1.
        num_heads: attention heads; divides the width.
        dropout: share of values that are dropped in training, in [0, 1).

    Raises:
        ValueError: for sizes below 1, or heads that do not divide the width.

    Example:
        >>> CausalTransformer(8, 2, 2)(torch.zeros(3, 5, 8))[0].shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, depth: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if min(width, depth, num_heads) < 1 or width % num_heads or not 0 <= dropout < 1:
            raise ValueError(
                f"got width={width}, depth={depth}, num_heads={num_heads}, dropout={dropout}; expected sizes of at least 1, heads "
                "that divide the width, and a dropout in [0, 1)"
            )
        self.blocks = nn.ModuleList(CausalBlock(width, num_heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Return ``[B, T, C]``, and what to give for the place after.

        Args:
            x: ``[B, T, C]``; with a memory, the one place after those in it.
            memory: of the places before.
        """
        found: Memory = []
        for block, before in zip(self.blocks, memory or [None] * len(self.blocks), strict=True):
            x, here = cast(CausalBlock, block)(x, before)
            found.append(here)
        return self.norm(x), found
