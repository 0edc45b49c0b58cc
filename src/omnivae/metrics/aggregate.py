"""The aggregate posterior q(z) = 1/N sum_n q(z|x_n): what it says of the images, and how far it is from the prior.

Hoffman & Johnson, ELBO surgery, 2016: the mean KL of a VAE is the mutual information of image and code plus the KL of the
aggregate posterior from the prior; Chen et al., Isolating Sources of Disentanglement in VAEs, 2018 (eq. 2): the latter is the
total correlation plus the KL of each dimension. All four are estimated from the same samples, so the sums hold to rounding.

Shapes: N images, S samples of each, D elements of the latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from omnivae.metrics.inference import generator_of
from omnivae.metrics.population import Estimate, Population, gaussian_codes
from omnivae.metrics.registry import metric

#: Samples of the aggregate posterior in all: each image has as many as it takes for so many.
SAMPLES = 4096
#: Share of the aggregate posterior's mass below whose density a point of the prior counts as a hole.
TAIL = 0.05
#: Densities held at once.
CHUNK = 2**22


@dataclass(frozen=True)
class Samples:
    """Samples of the aggregate posterior, and the densities there, float64 in nats.

    Attributes:
        z: ``[N, S, D]``.
        own: log q(z|x_n) of the image that a sample is of, ``[N, S]``.
        aggregate: log q(z), ``[N, S]``.
        rest: log-density of the other N - 1 images' aggregate posterior, ``[N, S]``.
        shape: of one latent, ``(C, *S)``.
    """

    z: Tensor
    own: Tensor
    aggregate: Tensor
    rest: Tensor
    shape: tuple[int, ...]


@metric(
    unit="nats",
    better="higher",
    meaning="Mutual information of image and code: how much a code says about which image it is of; at most log N.",
    scope="population",
    masks=True,
    collect=gaussian_codes,
)
def mutual_information(population: Population) -> Estimate:
    """Estimate I(n; z) = E[log q(z|x_n) - log q(z)], n one of the N images (Hoffman & Johnson, ELBO surgery, 2016, eq. 6).

    The expectation is over images and over samples of each (4,096 in all, or more), q(z) is the mixture of all N posteriors. No
    image contributes more than log N, so a number near log N says "at least": evaluate more images for a larger bound.

    Args:
        population: the images.

    Returns:
        Nats.
    """
    population.demand("mutual_information", 2)
    samples = population.once(aggregate_samples)
    bound = math.log(len(population.keys))
    rows = (samples.own - samples.aggregate).mean(1).numpy()
    full = f"; the bound is reached: read it as 'at least {bound:.4g}'" if rows.mean() > bound - 0.1 else ""
    return Estimate(rows, remark=population.noted(f"at most log {len(population.keys)} = {bound:.4g} nats{full}"))


@metric(
    unit="nats",
    better="lower",
    meaning="KL of the aggregate posterior from the prior: the gap that samples from the prior fall into.",
    scope="population",
    masks=True,
    collect=gaussian_codes,
)
def aggregate_kl(population: Population) -> Estimate:
    """Estimate KL(q(z) || p(z)) = E_q(z)[log q(z) - log p(z)], which is the mean KL minus the mutual information.

    Where :func:`mutual_information` is at its bound log N, this is an upper bound: q(z) of N images is rougher than that of all.

    Args:
        population: the images.

    Returns:
        Nats.

    Raises:
        ValueError: when the prior depends on a condition.
    """
    population.demand("aggregate_kl", 2)
    samples = population.once(aggregate_samples)
    rows = (samples.aggregate - population.once(prior_at_samples)).mean(1).numpy()
    return Estimate(rows, remark=population.noted(None))


@metric(
    unit="nats",
    better="lower",
    meaning="Total correlation of the aggregate posterior: 0 where the latent dimensions are independent.",
    scope="population",
    masks=True,
    collect=gaussian_codes,
)
def total_correlation(population: Population) -> Estimate:
    """Estimate KL(q(z) || prod_d q(z_d)) (Watanabe, 1960; Chen et al., 2018, eq. 2), of a vector latent.

    Args:
        population: the images.

    Returns:
        Nats.

    Raises:
        ValueError: for a spatial latent.
    """
    population.demand("total_correlation", 2)
    samples = population.once(aggregate_samples)
    rows = samples.aggregate - population.once(marginals_at_samples).sum(-1)
    return Estimate(rows.mean(1).numpy(), remark=population.noted(None))


@metric(
    unit="nats",
    better="lower",
    meaning="Sum over latent dimensions of the KL of the aggregate posterior's marginal from the prior's.",
    scope="population",
    masks=True,
    collect=gaussian_codes,
)
def dimension_wise_kl(population: Population) -> Estimate:
    """Estimate sum_d KL(q(z_d) || p(z_d)) (Chen et al., 2018, eq. 2), of a vector latent with a factorised Gaussian prior.

    With :func:`mutual_information` and :func:`total_correlation` it adds up to the mean KL, on the same samples.

    Args:
        population: the images.

    Returns:
        Nats.

    Raises:
        ValueError: for a spatial latent, or a prior whose dimensions are not independent.
    """
    population.demand("dimension_wise_kl", 2)
    samples = population.once(aggregate_samples)
    marginals = population.once(marginals_at_samples)
    prior = _prior(population, samples.shape, 1)
    if not (isinstance(prior, Independent) and isinstance(prior.base_dist, Normal)):
        raise ValueError(
            "dimension_wise_kl needs a prior whose dimensions are independent, and this model has "
            f"{type(population.model.prior).__name__}: measure aggregate_kl instead"
        )
    density = prior.base_dist.log_prob(samples.z.to(population.device)).cpu()
    return Estimate((marginals - density).sum(-1).mean(1).numpy(), remark=population.noted(None))


@metric(
    unit="",
    better="lower",
    meaning="Share of the prior's mass where the aggregate posterior has next to none: samples from there are of nothing seen.",
    scope="population",
    masks=True,
    collect=gaussian_codes,
)
def prior_holes(population: Population) -> Estimate:
    """Estimate the prior's mass in holes: places of prior density that the aggregate posterior does not reach.

    Holes are what Rosca et al. (Distribution Matching in Variational Inference, 2018) and Aneja et al. (A Contrastive Learning
    Approach for Training VAE Priors, 2021) describe; measured here as ``(P - a) / (1 - a)`` with a = 0.05 and
    ``P = Pr_p(z)[log q(z) < t]``, where t is the a-quantile of ``log q(z)`` under q itself. It is 0 where the aggregate
    posterior is the prior, 1 where no draw of the prior falls into the highest-density region of q that holds 95 % of its mass, and
    at worst -a / (1 - a). Densities leave out the image that a sample is of (draws of the prior: one image in turn), so that
    samples of q and draws of p are alike where q(z) = p(z), for any N and D.

    Args:
        population: the images.

    Returns:
        A share.

    Raises:
        ValueError: when the prior depends on a condition.
    """
    population.demand("prior_holes", 20)
    samples = population.once(aggregate_samples)
    n, s = samples.rest.shape
    prior = _prior(population, samples.shape, 1)
    with torch.random.fork_rng(devices=[population.device] if population.device.type == "cuda" else []):
        torch.manual_seed(population.seed)
        parts = [prior.sample(torch.Size((k,))).flatten(1).double().cpu() for k in _parts(n * s, samples.z.shape[-1])]
    mean, logvar = _gaussians(population)
    owner = torch.arange(n).repeat_interleave(s)
    _, rest = log_aggregate(torch.cat(parts), mean, logvar, owner)
    rows = torch.stack([samples.rest, rest.reshape(n, s)], -1).numpy()
    return Estimate(rows, hole_share, population.noted(None))


def hole_share(rows: np.ndarray) -> float:
    """Return ``(P - a) / (1 - a)`` of :func:`prior_holes`.

    Args:
        rows: log q at samples of q and at draws of p, ``[..., 2]``.
    """
    threshold = np.quantile(rows[..., 0], TAIL)
    return float(((rows[..., 1] < threshold).mean() - TAIL) / (1 - TAIL))


def share_in_holes(mean: Tensor, logvar: Tensor, draws: Tensor, *, generator: torch.Generator) -> float:
    """Return what :func:`prior_holes` does, of Gaussian posteriors that are at hand.

    Args:
        mean: of each image's posterior, ``[N, D]``, N >= 2.
        logvar: likewise.
        draws: from the prior, ``[M, D]``, M >= N; as many samples are drawn from the posteriors.
        generator: of those, on the CPU.

    Returns:
        A share.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(4000, 2, generator=generator)
        >>> far = share_in_holes(torch.full((500, 2), 9.0), torch.zeros(500, 2), draws, generator=generator)
        >>> same = share_in_holes(torch.zeros(500, 2), torch.zeros(500, 2), draws, generator=generator)
        >>> far > 0.99, abs(same) < 0.05
        (True, True)
    """
    mean, logvar, draws = mean.double(), logvar.double(), draws.double()
    owner = torch.arange(len(draws)) % len(mean)
    eps = torch.randn(draws.shape, generator=generator, dtype=torch.float64)
    z = mean[owner] + (0.5 * logvar[owner]).exp() * eps
    rest = [log_aggregate(points, mean, logvar, owner)[1] for points in (z, draws)]
    return hole_share(torch.stack(rest, -1).numpy())


def aggregate_samples(population: Population) -> Samples:
    """Draw from the aggregate posterior, each image's noise seeded by its key.

    Args:
        population: the images, with :func:`gaussian_codes`.

    Returns:
        Samples and densities.
    """
    mean, logvar = _gaussians(population)
    n, d = mean.shape
    s = math.ceil(SAMPLES / n)
    noise = [torch.randn(s, d, generator=generator_of(key, population.seed)) for key in population.keys]
    eps = torch.stack(noise).double()
    z = mean[:, None] + (0.5 * logvar).exp()[:, None] * eps
    own = -0.5 * (eps.square() + logvar[:, None] + math.log(2 * math.pi)).sum(-1)
    owner = torch.arange(n).repeat_interleave(s)
    aggregate, rest = log_aggregate(z.flatten(0, 1), mean, logvar, owner)
    # A component of its own mixture: what rounding of the expanded square takes away is put back.
    aggregate = torch.maximum(aggregate.reshape(n, s), own - math.log(n))
    shape = tuple(population.table(gaussian_codes, "mean").shape[1:])
    return Samples(z, own, aggregate, rest.reshape(n, s), shape)


def log_aggregate(z: Tensor, mean: Tensor, logvar: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Return log q(z) of the mixture of N Gaussians, and of the mixture without one of them.

    Args:
        z: ``[M, D]`` float64.
        mean: ``[N, D]`` float64.
        logvar: ``[N, D]`` float64.
        owner: which component the second result leaves out for each z, ``[M]``.

    Returns:
        Two tensors ``[M]``.
    """
    centre = mean.mean(0)
    # (z - m)^2 / v as matrix products, about a common centre so that little cancels.
    mean, z = mean - centre, z - centre
    precision = torch.exp(-logvar)
    scaled = mean * precision
    constant = (mean * scaled + logvar + math.log(2 * math.pi)).sum(1)
    n = len(mean)
    everything, without = [], []
    step = max(1, CHUNK // n)
    for part, skip in zip(z.split(step), owner.split(step), strict=True):
        density = -0.5 * (part.square() @ precision.T - 2 * part @ scaled.T + constant)
        everything.append(density.logsumexp(1) - math.log(n))
        density.scatter_(1, skip[:, None], -math.inf)
        without.append(density.logsumexp(1) - math.log(max(1, n - 1)))
    return torch.cat(everything), torch.cat(without)


def prior_at_samples(population: Population) -> Tensor:
    """Return log p(z) at the samples, ``[N, S]`` float64.

    Args:
        population: the images.
    """
    samples = population.once(aggregate_samples)
    n, s, d = samples.z.shape
    flat = samples.z.reshape(n * s, *samples.shape)
    parts = []
    for part in flat.split(max(1, CHUNK // (64 * d))):
        # One prior of a batch of one, at samples along its axis of draws.
        prior = _prior(population, samples.shape, 1)
        parts.append(prior.log_prob(part[:, None].float().to(population.device))[:, 0].double().cpu())
    return torch.cat(parts).reshape(n, s)


def marginals_at_samples(population: Population) -> Tensor:
    """Return log q(z_d) of each dimension at the samples, ``[N, S, D]`` float64.

    Args:
        population: the images.

    Raises:
        ValueError: for a spatial latent.
    """
    samples = population.once(aggregate_samples)
    if len(samples.shape) > 1:
        raise ValueError(
            "total_correlation and dimension_wise_kl are of the dimensions of a vector latent, and this model's latent is spatial: "
            "measure mutual_information and aggregate_kl instead"
        )
    mean, logvar = _gaussians(population)
    n, s, d = samples.z.shape
    z = samples.z.flatten(0, 1)
    result = torch.empty(n * s, d, dtype=torch.float64)
    half_precision, constant = 0.5 * torch.exp(-logvar), 0.5 * (logvar + math.log(2 * math.pi))
    step = max(1, CHUNK // n)
    for j in range(d):
        for start in range(0, n * s, step):
            part = z[start : start + step, j, None]
            density = -(part - mean[:, j]).square() * half_precision[:, j] - constant[:, j]
            result[start : start + step, j] = density.logsumexp(1)
    return (result - math.log(n)).reshape(n, s, d)


# -- inside


def _gaussians(population: Population) -> tuple[Tensor, Tensor]:
    return (
        population.table(gaussian_codes, "mean").double().flatten(1),
        population.table(gaussian_codes, "logvar").double().flatten(1),
    )


def _prior(population: Population, shape: tuple[int, ...], n: int) -> torch.distributions.Distribution:
    model = population.model
    try:
        return model.prior(torch.Size((n, *shape)), model.encode, None)
    except ValueError as error:
        raise ValueError(
            "the prior of this model depends on a condition, so there is no one prior to compare the aggregate posterior with: "
            "measure kl and mutual_information instead"
        ) from error


def _parts(total: int, elements: int) -> list[int]:
    step = max(1, CHUNK // elements)
    return [min(step, total - start) for start in range(0, total, step)]
