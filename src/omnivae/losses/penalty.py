"""The terms that a posterior brings itself: commitment to a code, entropy of the codes, norm of a latent."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.losses.base import Loss, Weight, event_size
from omnivae.types import Batch, VAEOutput


class Penalty(Loss):
    """One of the posterior's penalties, summed over the event and every latent that has it, mean over the batch.

    A configuration names the losses ``commitment``, ``entropy`` and ``norm``; this is the same for a penalty of your own.

    Args:
        of: key in ``posterior.penalties``.
        weight: factor in the total.
        per_element: divide by the number of latent elements.

    Example:
        >>> Penalty("commitment", weight=0.25).needs
        frozenset({'commitment'})
    """

    def __init__(self, of: str, weight: Weight = 1.0, per_element: bool = False) -> None:
        super().__init__(weight, per_element)
        if not of:
            raise ValueError("got an empty name; expected that of a posterior's penalty, such as commitment")
        self.of = of
        self.needs = frozenset({of})

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        found = [v for v in output.latents if self.of in v.posterior.penalties]
        if not found:
            known = sorted({name for v in output.latents for name in v.posterior.penalties})
            raise ValueError(f"no posterior has the penalty {self.of!r}; they have {', '.join(known) or 'none'}")
        terms = [self.reduce(v.posterior.penalties[self.of], event_size(v.z[0])) for v in found]
        return torch.stack(terms).sum()


class Commitment(Penalty):
    """Keeps the encoder near its codes: ||x - sg(code)||^2, summed over the event.

    van den Oord et al., Neural Discrete Representation Learning, 2017, eq. 3.

    Args:
        weight: the paper's beta, 0.25.
        per_element: divide by the number of latent elements.
    """

    name = "commitment"

    def __init__(self, weight: Weight = 0.25, per_element: bool = False) -> None:
        super().__init__("commitment", weight, per_element)


class CodeEntropy(Penalty):
    """Entropy of each code minus that of their average (Yu et al., Language Model Beats Diffusion, 2024, eq. 5).

    Args:
        weight: factor in the total.
        per_element: divide by the number of latent elements.
    """

    name = "entropy"

    def __init__(self, weight: Weight = 0.1, per_element: bool = False) -> None:
        super().__init__("entropy", weight, per_element)


class LatentNorm(Penalty):
    """||z||^2 of a plain autoencoder's latent (Ghosh et al., From Variational to Deterministic Autoencoders, 2020, eq. 6).

    Args:
        weight: factor in the total.
        per_element: divide by the number of latent elements.
    """

    name = "norm"

    def __init__(self, weight: Weight = 0.5, per_element: bool = False) -> None:
        super().__init__("norm", weight, per_element)
