"""The base of the priors, and the standard normal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from omnivae.component import Component


class Prior(nn.Module, Component):
    """Base of the priors: a module from the latent's shape to p(z).

    Attributes:
        takes_cond: whether it can be part of a model with a condition.
        independent: whether the dimensions of z are independent under it.
    """

    abstract = True

    takes_cond: bool = True
    independent: bool = False

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        """Return p(z).

        Args:
            latent_shape: ``[B, C, *S]``.
            encode: the model's ``encode``; passed, never stored (a stored encoder would be saved twice).
            cond: condition, ``[B, E]``; a prior that cannot use it refuses it.

        Returns:
            Distribution of batch shape ``[B]`` and event shape ``[C, *S]``.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")


class StandardNormal(Prior):
    """p(z) = N(0, I), whatever the condition.

    Example:
        >>> StandardNormal()(torch.Size((2, 3))).log_prob(torch.zeros(2, 3)).shape
        torch.Size([2])
    """

    independent = True

    def __init__(self) -> None:
        super().__init__()
        # Only tells where and in which precision to create the density; never saved.
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        like: Tensor = self._like  # type: ignore[assignment]
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        zeros = torch.zeros((), dtype=dtype, device=like.device).expand(latent_shape)
        ones = torch.ones((), dtype=dtype, device=like.device).expand(latent_shape)
        return Independent(Normal(zeros, ones, validate_args=False), len(latent_shape) - 1, validate_args=False)
