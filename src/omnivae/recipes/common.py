"""What several recipes share: likelihoods by name, the value range that goes with them, image sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omnivae.component import suggestion
from omnivae.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
)

ValueRange = Sequence[float]

#: Likelihoods by name. A plain density has one learned scale; "_fixed" has scale 1: half the squared, or the absolute,
#: error.
LIKELIHOODS: dict[str, Callable[[ValueRange], Likelihood]] = {
    "bernoulli": lambda _: BernoulliLikelihood(),
    "gaussian": lambda _: GaussianLikelihood("learned"),
    "gaussian_fixed": lambda _: GaussianLikelihood(1.0),
    "gaussian_per_pixel": lambda _: GaussianLikelihood("per_pixel"),
    "laplace": lambda _: LaplaceLikelihood("learned"),
    "laplace_fixed": lambda _: LaplaceLikelihood(1.0),
    "laplace_per_pixel": lambda _: LaplaceLikelihood("per_pixel"),
    "categorical": lambda value_range: CategoricalLikelihood(value_range=value_range),
    "discretized_logistic": lambda value_range: DiscretizedLogisticLikelihood(value_range=value_range),
}


def make_likelihood(likelihood: str | Likelihood, value_range: ValueRange | None = None) -> Likelihood:
    """Return a likelihood by name; an object is returned as it is.

    Args:
        likelihood: a key of ``LIKELIHOODS`` or a likelihood.
        value_range: lowest and highest pixel value, for those with levels; by default (-1, 1).

    Returns:
        The likelihood.

    Raises:
        ValueError: for an unknown name; lists the known ones.

    Example:
        >>> make_likelihood("gaussian").scale
        'learned'
    """
    if not isinstance(likelihood, str):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"unknown likelihood {likelihood!r}{suggestion(likelihood, LIKELIHOODS)}; known: {', '.join(LIKELIHOODS)}"
        )
    return LIKELIHOODS[likelihood](value_range or (-1.0, 1.0))


def likelihood_and_range(
    likelihood: str | Likelihood, value_range: ValueRange | None = None
) -> tuple[Likelihood, tuple[float, float]]:
    """Return a likelihood and the value range that a model with it is trained on.

    Args:
        likelihood: a key of ``LIKELIHOODS`` or a likelihood.
        value_range: lowest and highest pixel value; by default what the likelihood is defined on: (0, 1) for Bernoulli,
            the levels' range where it has levels, else (-1, 1).

    Returns:
        The likelihood and ``(lowest, highest)``.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> likelihood_and_range("bernoulli")[1]
        (0.0, 1.0)
    """
    made = make_likelihood(likelihood, value_range)
    if value_range is None:
        default = (0.0, 1.0) if made.unit_range else (-1.0, 1.0)
        value_range = getattr(made, "value_range", default)
    return made, (float(value_range[0]), float(value_range[1]))


def image_shape(image_size: int | Sequence[int], dim: int) -> tuple[int, ...]:
    """Return a size as ``dim`` numbers; one number means a square or cube.

    Args:
        image_size: edge length or size.
        dim: number of spatial axes.

    Returns:
        The size.

    Raises:
        ValueError: for another number of axes.

    Example:
        >>> image_shape(64, 2)
        (64, 64)
    """
    size = (image_size,) * dim if isinstance(image_size, int) else tuple(int(n) for n in image_size)
    if len(size) != dim:
        raise ValueError(f"got image_size={size}; expected one number or {dim} (dim={dim})")
    return size
