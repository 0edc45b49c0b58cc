"""How evenly codes fill their space: coefficient of variation, normalised entropy and Gini of their density.

Yao et al., Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models (VA-VAE), 2025, section 4:
codes are embedded in the plane by t-SNE, their density there is estimated by a Gaussian kernel, and the three figures are of the
density at the codes themselves. Even codes are easier for a diffusion model to learn.

The points are codes of images for a vector latent, and vectors ``[C]`` at single positions for a spatial one; 2,000 of them at
most, drawn by the seed. t-SNE is scikit-learn's with its defaults (perplexity 30, started from principal components), the
kernel's width Scott's rule (scipy's ``gaussian_kde``). Figures of other numbers of points are no match.
"""

from __future__ import annotations

import math

import numpy as np

from omnivae.metrics.population import Estimate, Population, codes
from omnivae.metrics.registry import metric

MAX_POINTS = 2000
PERPLEXITY = 30.0


@metric(
    unit="",
    better="lower",
    meaning="Coefficient of variation of the codes' density after t-SNE: 0 where they lie evenly.",
    scope="population",
    masks=True,
    collect=codes,
)
def density_cv(population: Population) -> Estimate:
    """Return the standard deviation of the density at the codes over its mean.

    Args:
        population: the images.

    Returns:
        A ratio, 0 or more.
    """
    return _estimate(population, coefficient_of_variation)


@metric(
    unit="",
    better="higher",
    meaning="Entropy of the codes' normalised density after t-SNE over log N: 1 where they lie evenly.",
    scope="population",
    masks=True,
    collect=codes,
)
def density_entropy(population: Population) -> Estimate:
    """Return ``-sum_i p_i log2 p_i / log2 N``, p the density at the N codes divided by its sum.

    Args:
        population: the images.

    Returns:
        Between 0 and 1.
    """
    return _estimate(population, normalised_entropy)


@metric(
    unit="",
    better="lower",
    meaning="Gini coefficient of the codes' density after t-SNE: 0 where they lie evenly.",
    scope="population",
    masks=True,
    collect=codes,
)
def density_gini(population: Population) -> Estimate:
    """Return the Gini coefficient of the density at the codes (Gini, Variabilità e mutabilità, 1912).

    Args:
        population: the images.

    Returns:
        Between 0 and 1.
    """
    return _estimate(population, gini)


def coefficient_of_variation(density: np.ndarray) -> float:
    """Return std / mean.

    Args:
        density: positive, ``[N]``.

    Example:
        >>> coefficient_of_variation(np.array([1.0, 3.0]))
        0.5
    """
    return float(density.std() / density.mean())


def normalised_entropy(density: np.ndarray) -> float:
    """Return the entropy of ``density / sum`` over its largest possible value, log N.

    Args:
        density: positive, ``[N]``.

    Example:
        >>> normalised_entropy(np.ones(8))
        1.0
    """
    p = density / density.sum()
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum() / math.log2(len(density)))


def gini(density: np.ndarray) -> float:
    """Return the mean absolute difference of two values over twice the mean.

    Args:
        density: positive, ``[N]``.

    Example:
        >>> gini(np.array([0.0, 0.0, 0.0, 1.0]))
        0.75
    """
    ordered = np.sort(density)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def density_at_codes(population: Population) -> np.ndarray:
    """Return the kernel density at each code's place in the plane, ``[N]``.

    Args:
        population: the images.

    Raises:
        ValueError: for too few codes, or codes that are all the same.
    """
    from scipy.stats import gaussian_kde
    from sklearn.manifold import TSNE

    z = population.table(codes, "z")
    points = z.movedim(1, -1).reshape(-1, z.shape[1]).double().numpy()
    if len(points) <= PERPLEXITY:
        raise ValueError(
            f"density_cv, density_entropy and density_gini need more than {PERPLEXITY:.0f} codes for t-SNE, got {len(points)}; "
            "evaluate more images, or leave them out"
        )
    if len(points) > MAX_POINTS:
        chosen = np.random.default_rng(population.seed).choice(len(points), MAX_POINTS, replace=False)
        points = points[np.sort(chosen)]
    if not points.std(0).any():
        raise ValueError(
            "density_cv, density_entropy and density_gini are undefined: every image has the same code (posterior collapse)"
        )
    # The principal components of a one-dimensional code are fewer than the plane's.
    init = "pca" if points.shape[1] > 1 else "random"
    plane = TSNE(2, perplexity=PERPLEXITY, init=init, random_state=population.seed).fit_transform(points)
    return gaussian_kde(plane.T.astype(np.float64))(plane.T)


def _estimate(population: Population, statistic: object) -> Estimate:
    density = population.once(density_at_codes)
    spatial = population.table(codes, "z").ndim > 2
    note = f"{len(density):,} {'positions of latents' if spatial else 'codes'}; the interval holds their density fixed"
    return Estimate(density, statistic, population.noted(note))  # type: ignore[arg-type]
