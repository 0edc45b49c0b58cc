"""Attention over a grid of positions, with axial rotary positions and query/key normalisation.

Shapes: x is ``[B, C, *S]``; inside, suffixes name axes: N positions, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnivae.networks.layers import rms_norm

#: Rows of logits computed at once where :func:`attend` computes them itself: they stay in the cache.
ROWS = 512
ROPE_BASE = 10_000.0


def axial_rope(size: Sequence[int], head_dim: int, *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine tables of rotary positions, one axis after the other.

    Each spatial axis rotates its own share of the channel pairs by ``position * base**(-i/n)`` (Su et al., RoFormer, 2021;
    axial form: Heo et al., Rotary Position Embedding for Vision Transformer, 2024), so that dot products depend on
    differences of positions only. Pairs left over when the axes do not divide them are not rotated.

    Args:
        size: spatial size of the grid.
        head_dim: channels of a head; even.
        device: where to build the tables.

    Returns:
        cos and sin, float32 ``[N, head_dim / 2]``, positions in row-major order.
    """
    pairs = head_dim // 2
    per_axis = pairs // len(size)
    frequency = ROPE_BASE ** (-torch.arange(per_axis, device=device, dtype=torch.float32) / max(1, per_axis))
    grid = torch.meshgrid(*[torch.arange(n, device=device, dtype=torch.float32) for n in size], indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1) * frequency for axis in grid], dim=1)
    angles = F.pad(angles, (0, pairs - angles.shape[1]))
    return angles.cos(), angles.sin()


def rotate(x_BNHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + D/2) by their position's angle.

    Args:
        x_BNHD: queries or keys.
        cos_ND: cosines, ``[N, D / 2]``.
        sin_ND: sines, ``[N, D / 2]``.

    Returns:
        Same shape as ``x_BNHD``.
    """
    a, b = x_BNHD.chunk(2, dim=-1)
    cos, sin = cos_ND[:, None].to(x_BNHD.dtype), sin_ND[:, None].to(x_BNHD.dtype)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)), dim=-1)


def attend(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v: ``scaled_dot_product_attention``, or what is faster than it.

    Torch's CPU kernel computes bfloat16 in float32 steps unless the CPU has AMX. On those with AVX-512 BF16 only, plain
    matrix products on a few rows at a time are 2.5 times faster (4,096 positions) and as flat in memory.

    Args:
        q_BHND: queries.
        k_BHND: keys.
        v_BHND: values.

    Returns:
        ``[B, H, N, D]``.
    """
    batch, heads, positions, channels = q_BHND.shape
    by_rows = (
        q_BHND.dtype == torch.bfloat16
        and q_BHND.device.type == "cpu"
        and positions >= ROWS
        and not (torch.is_grad_enabled() and q_BHND.requires_grad)
        and not torch.compiler.is_compiling()
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )
    if not by_rows:
        return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
    q_BHND = q_BHND * channels**-0.5
    out_BNHD = torch.empty(batch, positions, heads, channels, dtype=q_BHND.dtype)
    for b in range(batch):
        for h in range(heads):
            q, k, v = q_BHND[b, h], k_BHND[b, h], v_BHND[b, h]
            for start in range(0, positions, ROWS):
                rows = slice(start, start + ROWS)
                out_BNHD[b, rows, h] = (q[rows] @ k.T).softmax(-1) @ v
    return out_BNHD.transpose(1, 2)


class GridAttention(nn.Module):
    """Self-attention over all positions of a grid (Vaswani et al., Attention Is All You Need, 2017).

    Queries and keys are normalised (Henry et al., Query-Key Normalization for Transformers, 2020) and rotated.

    Args:
        channels: channels of x.
        head_dim: channels of a head; must divide ``channels`` and be even.
        use_rope: rotate queries and keys by position.

    Raises:
        ValueError: when heads do not divide the channels.
    """

    def __init__(self, channels: int, head_dim: int = 64, use_rope: bool = True) -> None:
        super().__init__()
        if channels % head_dim or head_dim % 2:
            raise ValueError(
                f"got {channels} channels and head_dim={head_dim}; expected an even head_dim that divides the channels"
            )
        self.head_dim = head_dim
        self.use_rope = use_rope
        self.qkv = nn.Linear(channels, 3 * channels)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.projection = nn.Linear(channels, channels)
        self._tables: tuple[tuple[object, ...], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return attention over the positions of ``[B, C, *S]``, same shape."""
        size = tuple(x.shape[2:])
        tokens_BNC = x.flatten(2).transpose(1, 2)
        # Heads split behind the token axis, so each head's channels stay contiguous: with a strided last axis
        # scaled_dot_product_attention falls back to the quadratic-memory kernel without a word.
        q, k, v = self.qkv(tokens_BNC).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        q, k = rms_norm(q, self.q_norm.weight, 1e-6), rms_norm(k, self.k_norm.weight, 1e-6)
        if self.use_rope:
            cos, sin = self._rope(size, q)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out_BHND = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out_BNC = self.projection(out_BHND.transpose(1, 2).flatten(2))
        return out_BNC.transpose(1, 2).unflatten(2, size)

    def _rope(self, size: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        key = (size, like.device, like.dtype)
        if torch.compiler.is_compiling():
            return self._build(size, like)
        if self._tables is None or self._tables[0] != key:
            # Tensors made in inference mode could not serve training later.
            with torch.inference_mode(False), torch.no_grad():
                self._tables = (key, self._build(size, like))
        return self._tables[1]

    def _build(self, size: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = axial_rope(size, self.head_dim, device=like.device)
        return cos.to(like.dtype), sin.to(like.dtype)


class AbsolutePositions(nn.Module):
    """A learned embedding for every position of a reference grid, resized linearly to other grids.

    Args:
        channels: channels of x.
        size: reference grid.
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(1, channels, *size))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the embedding of its positions."""
        table: Tensor = self.table
        if table.shape[2:] != x.shape[2:]:
            mode = ("linear", "bilinear", "trilinear")[x.ndim - 3]
            table = F.interpolate(table, size=x.shape[2:], mode=mode, align_corners=False)
        return x + table.to(x.dtype)
