"""Likelihood regret: how much better a posterior of an image's own would explain it than the encoder's does.

Xiao et al., Likelihood Regret: An Out-of-Distribution Detection Score for Variational Auto-encoder, 2020
(https://arxiv.org/abs/2003.02977).
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.distributions import DiagonalGaussian, closed_form_kl
from omnivae.metrics.inference import Inference, generator_of
from omnivae.metrics.registry import metric

#: Steps of Adam and its learning rate; samples of each step, and of the two ELBOs that are compared.
STEPS, RATE = 100, 0.05
SAMPLES, FINAL_SAMPLES = 4, 64


@metric(
    unit="nats",
    better="lower",
    meaning="Likelihood regret: what the ELBO gains when the posterior is fitted to this image alone; large for unlikely images.",
    scope="inference",
    comparable="likelihood",
)
def likelihood_regret(inference: Inference) -> Tensor:
    """Return the ELBO of each image under its best Gaussian posterior minus that under the encoder's (Xiao et al., 2020, eq. 5).

    The best posterior starts at the encoder's and its mean and log-variance follow the gradient of the ELBO for 100 steps of
    Adam (learning rate 0.05, 4 samples a step), the decoder held fixed; the paper also calls this optimising q alone. Both
    ELBOs are then taken over the same 64 samples. The image's noise is seeded by its key.

    Args:
        inference: the group.

    Returns:
        ``[B]`` in nats; 0 or more up to the noise of the samples.

    Raises:
        ValueError: for a posterior that is not a diagonal Gaussian.
    """
    q = inference.posterior
    if not isinstance(q, DiagonalGaussian):
        raise ValueError(
            f"likelihood_regret fits a diagonal Gaussian posterior to each image, and this model has {type(q).__name__}; use elbo "
            "or nll where it has a density, else mse"
        )
    generators = [generator_of(f"regret/{key}", inference.seed) for key in inference.keys]

    def noise(samples: int) -> Tensor:
        draws = [torch.randn((samples, *q.shape[1:]), dtype=q.mean.dtype, generator=g) for g in generators]
        return torch.stack(draws, 1).to(q.mean.device)

    final = noise(FINAL_SAMPLES)
    start = _elbo(inference, q.mean, q.logvar, final)
    with torch.enable_grad():
        mean, logvar = (t.detach().clone().requires_grad_(True) for t in (q.mean, q.logvar))
        optimizer = torch.optim.Adam([mean, logvar], lr=RATE)
        for _ in range(STEPS):
            # A sum over images: no image's gradient depends on another's.
            loss = -_elbo(inference, mean, logvar, noise(SAMPLES)).sum()
            # Only with respect to q: the model's weights get no gradient.
            mean.grad, logvar.grad = torch.autograd.grad(loss, [mean, logvar])
            optimizer.step()
    return _elbo(inference, mean.detach(), logvar.detach(), final) - start


def _elbo(inference: Inference, mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """Return the ELBO of each image under a Gaussian, at samples of given noise ``[K, B, C, *S]``."""
    q = DiagonalGaussian(mean, logvar, input_size=inference.posterior.input_size)
    model = inference.model
    kl = closed_form_kl(q, inference.prior)
    z = q.mean + q.stddev * eps
    if kl is None:
        kl = (q.log_prob(z) - inference.prior.log_prob(z)).mean(0)
    likelihoods = [
        model.likelihood(part, inference.cond, size=q.input_size).log_prob(inference.target).sum(0)
        for part in z.split(SAMPLES)
    ]
    return torch.stack(likelihoods).sum(0) / len(z) - kl
