"""Bounds on the log-likelihood, the KL divergence and the use of the latent dimensions."""

from __future__ import annotations

import math

from torch import Tensor

from omnivae.metrics.inference import Inference
from omnivae.metrics.latents import LatentStatistics
from omnivae.metrics.registry import metric

#: A dimension is active where its posterior mean varies more than this over the data (Burda et al. 2016, section 5.2).
ACTIVE_VARIANCE = 0.01


@metric(
    unit="nats",
    better="higher",
    meaning="Evidence lower bound: reconstruction log-likelihood minus KL, a lower bound of log p(x).",
    scope="inference",
    comparable="likelihood",
)
def elbo(inference: Inference) -> Tensor:
    """Return the evidence lower bound of each image, ``E_q[log p(x|z)] - KL(q || p)`` (Kingma & Welling 2013, eq. 3).

    The expectation is the average over ``num_samples_elbo`` posterior samples; the KL is exact where it has a
    closed form.

    Args:
        inference: the batch.

    Returns:
        ``[B]`` in nats an image.
    """
    log_likelihood, kl_nats = inference.elbo_terms
    return log_likelihood - kl_nats


@metric(
    unit="nats",
    better="lower",
    meaning="Negative log-likelihood by importance weighting (IWAE): an upper bound of -log p(x), tighter than -ELBO.",
    scope="inference",
    comparable="likelihood",
)
def nll(inference: Inference) -> Tensor:
    """Return the importance-weighted bound of each image (Burda et al., Importance Weighted Autoencoders, 2016, eq. 8).

    ``-log 1/K sum_k p(x, z_k) / q(z_k|x)`` with K = ``num_samples_nll``; it falls to -log p(x) as K grows.

    Args:
        inference: the batch.

    Returns:
        ``[B]`` in nats an image.
    """
    log_weights = inference.log_weights
    return math.log(len(log_weights)) - log_weights.logsumexp(0)


@metric(
    unit="nats",
    better="lower",
    meaning="KL divergence of the posterior from the prior.",
    scope="inference",
    masks=True,
)
def kl(inference: Inference) -> Tensor:
    """Return KL(q || p) of each image: exact where it has a closed form, else averaged over the ELBO's samples.

    Args:
        inference: the batch.

    Returns:
        ``[B]`` in nats an image.
    """
    elements = inference.kl_elements
    return inference.elbo_terms[1] if elements is None else elements.double().flatten(1).sum(1)


@metric(
    unit="bits",
    better="lower",
    meaning="-ELBO in bits a pixel value; can be negative where the likelihood is a density.",
    scope="inference",
    comparable="likelihood",
)
def bits_per_dim(inference: Inference) -> Tensor:
    """Return ``-ELBO / (D ln 2)`` of each image, D its number of pixel values.

    Args:
        inference: the batch.

    Returns:
        ``[B]`` in bits a pixel value.
    """
    return -elbo(inference) / (inference.x[0].numel() * math.log(2))


@metric(
    unit="dimensions",
    better="higher",
    meaning=f"Latent dimensions whose posterior mean varies over the images, Var_x(E[z]) > {ACTIVE_VARIANCE}.",
    scope="dataset",
    masks=True,
)
def active_units(statistics: LatentStatistics) -> float:
    """Return how many latent dimensions are in use (Burda et al. 2016, section 5.2).

    A dimension is an element of a vector latent or a channel of a spatial one, see :meth:`LatentStatistics.variance`.

    Args:
        statistics: moments over the dataset.

    Returns:
        The number of dimensions.

    Raises:
        ValueError: where no posterior is Gaussian.
    """
    variance = statistics.variance()
    if not len(variance):
        raise ValueError("active_units needs a Gaussian posterior, which this model does not have; leave it out")
    return float((variance > ACTIVE_VARIANCE).sum())


def kl_per_dimension(inference: Inference) -> Tensor | None:
    """Return the KL of each latent dimension, averaged over the batch.

    Args:
        inference: the batch.

    Returns:
        ``[D]`` in nats, channels of a spatial latent summed over positions; ``None`` where the KL does not factorise.
    """
    elements = inference.kl_elements
    if elements is None:
        return None
    return elements.double().unsqueeze(-1).flatten(2).sum(-1).mean(0)
