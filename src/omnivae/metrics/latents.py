"""Statistics of a model's latents over a dataset, the same to the last digit in whatever order the images come."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian
from omnivae.metrics.inference import Inference

#: Sums are kept in two parts, multiples of 2**-4 and of 2**-34: float64 then adds 2**20 values below 2**29 without rounding.
COARSE, FINE = 2.0**4, 2.0**34


class ExactSum:
    """A sum of tensors that does not depend on the order of its terms (Demmel & Nguyen, Fast reproducible summation, 2013).

    Each term is split at two fixed exponents and rounded to the finer one (6e-11), after which every addition is exact.

    Example:
        >>> a, b, c = torch.tensor([1e8, 0.1, -1e8], dtype=torch.float64)
        >>> left, right = ExactSum(), ExactSum()
        >>> for x, y in zip((a, b, c), (b, c, a)):
        ...     left.add(x)
        ...     right.add(y)
        >>> torch.equal(left.total, right.total), round(float(left.total), 9)
        (True, 0.1)
    """

    def __init__(self) -> None:
        self._coarse: Tensor | None = None
        self._fine: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Add a term.

        Args:
            term: finite, any shape, the same each time.
        """
        term = term.double()
        coarse = torch.round(term * COARSE) / COARSE
        fine = torch.round((term - coarse) * FINE) / FINE
        if self._coarse is None or self._fine is None:
            self._coarse, self._fine = coarse, fine
        else:
            self._coarse, self._fine = self._coarse + coarse, self._fine + fine

    @property
    def total(self) -> Tensor:
        """The sum, float64."""
        if self._coarse is None or self._fine is None:
            raise ValueError("nothing was added to this sum")
        return self._coarse + self._fine


class LatentStatistics:
    """Running moments of the posterior means over a dataset, and of the KL of each latent dimension.

    A dimension is an element of a vector latent, or a channel of a spatial one. The order of the images changes no digit.
    """

    def __init__(self) -> None:
        self._moments: dict[tuple[int, ...], tuple[ExactSum, ExactSum]] = {}
        self._counts: dict[tuple[int, ...], int] = {}
        self._kl: dict[str, Tensor] = {}

    def update(self, inference: Inference, count: int | None = None) -> None:
        """Take in one group.

        Args:
            inference: the group; posteriors that are not Gaussian, or levels of Gaussians, leave no trace.
            count: how many of its images, from the first on; all by default.
        """
        q = inference.posterior
        if not isinstance(q, DiagonalGaussian) and getattr(q, "num_levels", 1) == 1:
            return
        # Of several levels, that is each one's given the means above.
        means = q.mode()
        count = len(means) if count is None else count
        for mean in means[:count].double().cpu():
            shape = tuple(mean.shape)
            first, second = self._moments.setdefault(shape, (ExactSum(), ExactSum()))
            first.add(mean)
            second.add(mean.square())
            self._counts[shape] = self._counts.get(shape, 0) + 1
        if inference.kl_elements is not None:
            kl = inference.kl_elements[:count].double().unsqueeze(-1).flatten(2).sum(-1)
            self._kl.update(zip(inference.keys[:count], kl.cpu(), strict=True))

    def variance(self) -> Tensor:
        """Return Var_x(E_q[z]) of each dimension, ``[D]`` float64; empty where no posterior was Gaussian.

        For a spatial latent: the variance over images at each position, averaged over the positions; images of
        other sizes form groups of their own, which count by their number of images.
        """
        if not self._moments:
            return torch.zeros(0, dtype=torch.float64)
        total = sum(self._counts.values())
        shares = []
        for shape in sorted(self._moments):
            count, (first, second) = self._counts[shape], self._moments[shape]
            # Both sums are exact, so what cancels here is the rounding of one subtraction.
            variance = (second.total / count - (first.total / count).square()).clamp_min(0)
            shares.append(count / total * variance.reshape(len(variance), -1).mean(1))
        return torch.stack(shares).sum(0)

    def kl_per_dimension(self) -> list[float]:
        """Return each dimension's KL in nats, averaged over images; a channel is summed over its positions."""
        if not self._kl:
            return []
        return torch.stack([self._kl[key] for key in sorted(self._kl)]).mean(0).tolist()
