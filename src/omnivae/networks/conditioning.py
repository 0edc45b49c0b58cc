"""How a network takes a condition ``[B, E]``: planes at its input, conditional batch normalisation, or FiLM, in 0-D to 3-D.

Concatenation says the condition once, at the input (Sohn et al., Learning Structured Output Representation, 2015). The other
two say it to every stage, as a scale and a shift of each channel.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from omnivae.networks.layers import BATCH_NORM, refuse_cond

Conditioning = Literal["concat", "batch_norm", "film"]

#: Width of the hidden layer between the condition and the scales and shifts.
HIDDEN = 64
#: Standard deviation of the weights behind it: at first a condition changes scales and shifts by about as much.
START = 0.1


class FiLM(nn.Module):
    """Feature-wise linear modulation, ``(1 + gamma(c)) * x + beta(c)`` (Perez et al., FiLM, 2018, eq. 2).

    Args:
        cond_dim: size E of the condition.
        channels: channels of the features.

    Example:
        >>> FiLM(10, 4)(torch.zeros(2, 4, 8, 8), torch.zeros(2, 10)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, cond_dim: int, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(cond_dim, HIDDEN)
        self.act = nn.ReLU()
        self.project = nn.Linear(HIDDEN, 2 * channels)
        nn.init.normal_(self.project.weight, std=START)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return features ``[B, C, *S]`` modulated by a condition ``[B, E]``."""
        scale, shift = self.project(self.act(self.hidden(cond.to(self.hidden.weight.dtype)))).chunk(2, dim=1)
        axes = (..., *[None] * (x.ndim - 2))
        return x * (1 + scale[axes]) + shift[axes]


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with a scale and a shift that follow the condition (de Vries et al., Modulating Early Visual Processing
    by Language, 2017, eq. 4 to 6).

    Their gamma + Δgamma(c) and beta + Δbeta(c) are the scale and shift of :class:`FiLM`, whose biases are gamma - 1 and beta.

    Args:
        cond_dim: size E of the condition.
        channels: channels of the features.
        dim: number of spatial axes, 0 to 3.

    Example:
        >>> ConditionalBatchNorm(10, 4, dim=2)(torch.zeros(2, 4, 8, 8), torch.zeros(2, 10)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, cond_dim: int, channels: int, *, dim: int) -> None:
        super().__init__()
        self.norm = BATCH_NORM[dim](channels, affine=False)
        self.film = FiLM(cond_dim, channels)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return features ``[B, C, *S]``, normalised and modulated by a condition ``[B, E]``."""
        return self.film(self.norm(x), cond)


class ConditionedStage(nn.Module):
    """A layer, normalisation and activation with the condition between the last two.

    Args:
        layer: a convolution or linear map; without a bias where the conditional batch normalisation would take it away.
        norm: its normalisation, or ``None`` where ``modulation`` normalises, or nothing does.
        modulation: takes features and a condition.
        act: the activation.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module | None, modulation: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.modulation, self.act = layer, norm, modulation, act

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return features ``[B, C', *S']`` of features ``[B, C, *S]`` and a condition ``[B, E]``."""
        x = self.layer(x)
        if self.norm is not None:
            x = self.norm(x)
        return self.act(self.modulation(x, cond))


def modulation(conditioning: Conditioning, cond_dim: int, channels: int, *, dim: int) -> nn.Module:
    """Return what says the condition to one stage.

    Args:
        conditioning: "batch_norm" or "film".
        cond_dim: size E of the condition.
        channels: channels of the stage.
        dim: number of spatial axes, 0 to 3.

    Returns:
        A module from features ``[B, C, *S]`` and a condition ``[B, E]`` to features.
    """
    if conditioning == "batch_norm":
        return ConditionalBatchNorm(cond_dim, channels, dim=dim)
    return FiLM(cond_dim, channels)


def with_planes(x: Tensor, cond: Tensor) -> Tensor:
    """Append a condition to features: constant planes behind the channels of ``[B, C, *S]``, numbers behind ``[B, C]``.

    Args:
        x: ``[B, C, *S]``.
        cond: ``[B, E]``.

    Returns:
        ``[B, C + E, *S]``.

    Example:
        >>> with_planes(torch.zeros(2, 1, 8, 8), torch.ones(2, 10)).shape
        torch.Size([2, 11, 8, 8])
    """
    planes = cond.to(x.dtype)[(..., *[None] * (x.ndim - 2))].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, planes], dim=1)


def check_conditioning(cond_dim: int | None, conditioning: str, norm: str = "batch") -> None:
    """Raise ``ValueError`` for a kind of conditioning that does not exist or does not go with the normalisation.

    Args:
        cond_dim: size E of the condition, >= 1, or ``None`` for a network without one.
        conditioning: "concat", "batch_norm" or "film".
        norm: normalisation of the network's stages.
    """
    if conditioning not in get_args(Conditioning):
        raise ValueError(f"got conditioning={conditioning!r}; expected {', '.join(get_args(Conditioning))}")
    if cond_dim is not None and cond_dim < 1:
        raise ValueError(f"got cond_dim={cond_dim}; expected at least 1, or None for a network without a condition")
    if cond_dim is not None and conditioning == "batch_norm" and norm != "batch":
        raise ValueError(
            f"got conditioning='batch_norm' with norm={norm!r}; set norm to 'batch', or conditioning to 'film' or 'concat'"
        )


def check_cond(network: nn.Module, cond: Tensor | None, batch: int) -> None:
    """Raise ``ValueError`` unless a network is given the condition that it was built for, and none where it was built without.

    Args:
        network: has ``cond_dim``, the size E or ``None``.
        cond: the condition.
        batch: number of images B.
    """
    cond_dim = network.cond_dim
    if cond_dim is None:
        refuse_cond(network, cond)
    elif cond is None or tuple(cond.shape) != (batch, cond_dim):
        got = "no condition" if cond is None else f"a condition of shape {tuple(cond.shape)}"
        raise ValueError(
            f"got {got}; this {type(network).__name__} was built for one of shape {(batch, cond_dim)}: pass cond"
        )
