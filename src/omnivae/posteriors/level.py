"""The posterior of one level in a hierarchy of latents: a Gaussian made from the network's parameters and the level's prior."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from omnivae.distributions import LOGVAR_MAX, LOGVAR_MIN, at_least_float32
from omnivae.posteriors.gaussian import PosteriorHead

Relation = Literal["absolute", "merge", "residual"]


class LevelPosterior(PosteriorHead):
    """Turns a level's two parameter tensors into its prior N(m, s²) and its posterior, in float32.

    - "absolute": the parameters are mean and log-variance of q.
    - "merge": they are those of a Gaussian q̂ of the image alone, and q ∝ q̂ · p, the precision-weighted mean (Sønderby et al.,
      Ladder Variational Autoencoders, 2016, eqs. 17 to 19).
    - "residual": they are relative to the prior, q = N(m + Δm, s² Δs²), so that
      ``KL = 1/2 sum (Δm² / s² + Δs² - log Δs² - 1)`` (Vahdat & Kautz, NVAE, 2020, eqs. 1 and 2).

    Args:
        latent_dim: channels of all levels together, as ``encode`` packs them.
        relation: "absolute", "merge" or "residual".
        bound: largest absolute logarithm of a standard deviation that a network may ask for, approached smoothly: NVAE's
            stabiliser, 5 there; 0 leaves the parameters as they are.

    Raises:
        ValueError: for an unknown relation or a negative bound.

    Example:
        >>> head = LevelPosterior(2, "merge", bound=0.0)
        >>> prior = head.split(torch.tensor([[0.0, 0.0]]))
        >>> head(torch.tensor([[1.0, 0.0]]), *prior)  # two equal Gaussians at 0 and 1: half the variance, half way
        (tensor([[0.5000]]), tensor([[-0.6931]]))
    """

    provides = frozenset({"density"})

    def __init__(self, latent_dim: int, relation: Relation = "residual", *, bound: float = 5.0) -> None:
        super().__init__()
        if relation not in get_args(Relation):
            raise ValueError(f"got relation={relation!r}; expected one of {', '.join(get_args(Relation))}")
        if not 0 <= bound < math.inf:
            raise ValueError(f"got bound={bound}; expected a number >= 0, such as 5")
        self.latent_dim = latent_dim
        self.relation: Relation = relation
        self.bound = bound

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance from a network's parameters.

        Args:
            params: ``[B, 2C, *S]``.

        Returns:
            Two tensors ``[B, C, *S]`` in at least single precision.
        """
        mean, logvar = at_least_float32(params).chunk(2, dim=1)
        if self.bound:
            logvar = 2 * self.bound * torch.tanh(logvar / (2 * self.bound))
        return mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def forward(self, params: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return mean and log-variance of q.

        Args:
            params: ``[B, 2C, *S]``.
            mean: of the prior, ``[B, C, *S]``.
            logvar: of the prior.

        Returns:
            Two tensors ``[B, C, *S]``.
        """
        own_mean, own_logvar = self.split(params)
        if self.relation == "absolute":
            return own_mean, own_logvar
        if self.relation == "residual":
            return mean + own_mean, logvar + own_logvar
        # Precisions add: log(1 / (1/a + 1/b)) = -logaddexp(-log a, -log b); the share of q̂'s precision is a sigmoid.
        share = torch.sigmoid(logvar - own_logvar)
        return share * own_mean + (1 - share) * mean, -torch.logaddexp(-own_logvar, -logvar)

    def extra_repr(self) -> str:
        """Name the relation."""
        return f"relation={self.relation}, bound={self.bound:g}"
