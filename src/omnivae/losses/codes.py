"""The loss of a prior over codes."""

from __future__ import annotations

from torch import Tensor

from omnivae.losses.base import Loss
from omnivae.types import Batch, VAEOutput


class CodeNLL(Loss):
    """-log p(codes) in nats, summed over an image's codes, mean over the batch (van den Oord et al., VQ-VAE, 2017, section 3.1).

    The second stage of a quantised model is trained on it; a configuration of the first cannot name it.

    Args:
        weight: factor in the total.
        per_element: divide by the number of codes.
    """

    needs = frozenset({"codes"})

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        codes = batch["x"]
        return self.reduce(-output.likelihood.log_prob(codes), codes[0].numel())
