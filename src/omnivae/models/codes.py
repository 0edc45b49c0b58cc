"""The second stage of a quantised autoencoder: codes in the place of images, and a prior over them to be trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.types import Latent, VAEOutput


class Codes:
    """The codes of a batch, where a trainer expects a posterior.

    Args:
        indices: ``[B, ...]``.
    """

    input_size: tuple[int, ...] | None = None
    cond: Tensor | None = None

    def __init__(self, indices: Tensor) -> None:
        self.indices = indices

    @property
    def shape(self) -> torch.Size:
        """Shape of the codes."""
        return self.indices.shape

    @property
    def penalties(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def mode(self) -> Tensor:
        """Return the codes."""
        return self.indices

    def rsample(self, k: int = 1) -> tuple[Tensor, None]:
        """Return the codes k times."""
        return self.indices.unsqueeze(0).expand(k, *self.indices.shape), None


class _Provider(nn.Module):
    provides = frozenset({"codes"})


class CodeModel(nn.Module):
    """A prior over codes, dressed as a model that a trainer knows how to train: its images are codes.

    Args:
        prior: module with ``distribution(n)``, whose value are codes, and ``length`` and ``num_codes``.
    """

    pixels = False
    dim = 0
    in_channels = latent_dim = 1
    image_size: tuple[int, ...] = ()
    value_range = (0.0, 1.0)

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior
        self.posterior = _Provider()

    def forward(
        self, x: Tensor, cond: Tensor | None = None, *, num_samples: int = 1, sample: bool | None = None
    ) -> VAEOutput:
        """Return the distribution of the codes, as the prior of the one latent.

        Args:
            x: codes, ``[B, *S]`` or ``[B, *S, Q]``.
            cond: none.
            num_samples: 1.
            sample: makes no difference: codes are not random.
        """
        # Computed here, so that it is the network's forward pass that a trainer wraps, and not what a loss does later.
        distribution = Scored(self.prior.distribution(len(x)).log_prob(x))
        codes = Codes(x)
        return VAEOutput(latents=(Latent(codes, distribution, codes.rsample()[0], None),), likelihood=distribution)

    def agreement(self, output: VAEOutput, x: Tensor) -> dict[str, Tensor]:
        """Return the negative log-likelihood in bits for each code."""
        nats = -output.likelihood.log_prob(x).mean()
        return {"bits_per_code": nats / (math.log(2) * self.prior.length)}

    def num_values(self, x: Tensor) -> float:
        """Return how many codes an image has."""
        return float(self.prior.length)


class Scored(Distribution):
    """A distribution of which one value's log-probability is known: that of the batch.

    Args:
        log_prob: in nats, ``[B]``.
    """

    arg_constraints = {}

    def __init__(self, log_prob: Tensor) -> None:
        self._log_prob = log_prob
        super().__init__(log_prob.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return it, whatever is asked."""
        return self._log_prob
