"""Metrics of a codebook's use over a whole data set: a batch has fewer vectors than codes, and says little.

No interval goes with them: images drawn again have fewer codes among them than the images themselves.
"""

from __future__ import annotations

import numpy as np
import torch

from omnivae.metrics.evaluation import MetricResult
from omnivae.metrics.inference import Inference
from omnivae.metrics.population import Estimate, Population
from omnivae.metrics.registry import metric

#: A population keeps float32, which holds whole numbers up to 2**24: larger ones are kept in digits.
BASE = 2**20


class Whole(Estimate):
    """A number of all images, without an interval."""

    def result(self, unit: str, resamples: int, seed: int) -> MetricResult:
        """Return the number."""
        return MetricResult(self.value, None, None, unit)


def code_digits(inference: Inference) -> dict[str, torch.Tensor]:
    """Collect the codes of each image, ``digits [B, positions, Q, digits]`` in base 2**20.

    Args:
        inference: the group.

    Raises:
        ValueError: for a posterior without codes.
    """
    q = inference.posterior
    if getattr(q, "indices", None) is None or not getattr(q, "num_codes", None):
        raise ValueError(
            f"perplexity and code_usage are of codes, and this model's {type(q).__name__} has none: leave them out, or evaluate a "
            "quantised model such as vq_vae"
        )
    books = q.indices.reshape(*q.indices.shape[: len(q.shape) - 1], -1)
    numbers = books.reshape(len(books), -1, books.shape[-1])
    digits, rest = [], numbers
    for _ in range(1 + max(0, int(q.num_codes - 1).bit_length() - 1) // 20):
        digits.append(rest % BASE)
        rest = rest // BASE
    return {"digits": torch.stack(digits, -1)}


@metric(
    unit="codes",
    better="higher",
    meaning="exp(entropy) of the codes over all images: how many are in use as if equally often; mean over codebooks.",
    scope="population",
    masks=True,
    collect=code_digits,
)
def perplexity(population: Population) -> Estimate:
    """Return exp(-sum_k p_k log p_k), p_k the share of code k (van den Oord et al., Neural Discrete Representation Learning, 2017).

    Args:
        population: the images.

    Returns:
        1 to the size of the codebook.
    """
    values = []
    for counts in population.once(_counts):
        share = counts / counts.sum()
        values.append(float(np.exp(-(share * np.log(share)).sum())))
    return Whole(np.array(values), remark=population.remark)


@metric(
    unit="",
    better="higher",
    meaning="Share of the codes that occur in any of the images; mean over codebooks.",
    scope="population",
    masks=True,
    collect=code_digits,
)
def code_usage(population: Population) -> Estimate:
    """Return the number of codes that occur over that of all codes.

    Args:
        population: the images.

    Returns:
        Between 0 and 1.
    """
    num_codes = population.model.posterior.num_codes
    return Whole(np.array([len(counts) / num_codes for counts in population.once(_counts)]), remark=population.remark)


def _counts(population: Population) -> list[np.ndarray]:
    """Return how often each code occurs that does, for each codebook."""
    digits = population.table(code_digits, "digits").long()
    numbers = sum(digits[..., i] * BASE**i for i in range(digits.shape[-1]))
    assert isinstance(numbers, torch.Tensor)
    books = numbers.reshape(-1, numbers.shape[-1]).unbind(1)
    return [book.unique(return_counts=True)[1].double().numpy() for book in books]
