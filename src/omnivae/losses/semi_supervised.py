"""The objective of M2: a bound on log p(x, y) of labelled and on log p(x) of unlabelled images, and a classification term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omnivae.distributions import kl_divergence
from omnivae.losses.base import Loss, Weight, target_of
from omnivae.losses.elbo import log_likelihood
from omnivae.types import Batch, SemiSupervisedOutput, VAEOutput


class M2(Loss):
    """Negative bound of semi-supervised learning (Kingma et al., Semi-supervised Learning with Deep Generative Models, 2014).

    With ``-L(x, y) = E_q[log p(x|y, z)] + log p(y) - KL(q(z|x, y) ‖ p(z))`` (eq. 6) it is, averaged over the batch, ``L(x, y)`` of
    an image whose class is known and ``sum_y q(y|x) L(x, y) - H(q(y|x))`` of any other (eq. 7), plus ``alpha`` times the mean of
    ``-log q(y|x)`` over those whose class is known (eq. 9). The sum over classes is exact.

    Args:
        weight: factor in the total.
        per_element: divide by the number of pixel values.
        alpha: weight of the classification, >= 0. The paper's 0.1 N stands beside a sum over all N images, so beside this mean
            it is 0.1; in a short training, with labelled images in every batch, 10 did better than 1 or 50.

    Raises:
        ValueError: for a negative ``alpha``.
    """

    name = "m2"
    needs = frozenset({"classes"})
    replaces = frozenset({"nll", "kl", "iwae"})

    def __init__(self, weight: Weight = 1.0, per_element: bool = False, alpha: float = 10.0) -> None:
        super().__init__(weight, per_element)
        if not 0 <= alpha < math.inf:
            raise ValueError(f"got alpha={alpha}; expected a number >= 0")
        self.alpha = alpha

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        if not isinstance(output, SemiSupervisedOutput):
            raise ValueError(
                "the loss 'm2' needs a model with classes: use the recipe m2_vae, or the losses nll and kl"
            )
        x = target_of(batch, output)
        bounds = class_bounds(output, x, batch.get("mask"))
        q = output.log_class.exp()
        given = torch.nn.functional.one_hot(output.choice, q.shape[1]).to(q)
        known = output.known[:, None]
        of_each = (torch.where(known, given, q) * bounds).sum(1)
        entropy = -(q * output.log_class).sum(1)
        bound = of_each - torch.where(output.known, torch.zeros_like(entropy), entropy)
        surprise = -(given * output.log_class).sum(1)
        classification = (surprise * output.known).sum() / output.known.sum().clamp(min=1)
        return self.reduce(bound, x[0].numel()) + self.alpha * classification


def class_bounds(output: SemiSupervisedOutput, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return L(x, y), the negative bound on log p(x, y), of each image and class.

    Args:
        output: of a model with classes.
        x: the images, ``[B, C, *S]``.
        mask: 1 where a pixel counts, ``[B, 1, *S]``; all count by default.

    Returns:
        Nats ``[B, K]``; zero for the classes that an image of known class does not have.
    """
    num_classes = output.log_class.shape[1]
    bounds = torch.zeros_like(output.log_class)
    image = torch.arange(len(x), device=x.device)
    batch: Batch = {"x": x} if mask is None else {"x": x, "mask": mask}
    bounds = bounds.index_put((image, output.choice), _bound(output, batch, num_classes))
    if output.others is not None:
        rows = output.others_image
        part: Batch = {"x": x[rows]} if mask is None else {"x": x[rows], "mask": mask[rows]}
        bounds = bounds.index_put((rows, output.others_class), _bound(output.others, part, num_classes))
    return bounds


def _bound(output: VAEOutput, batch: Batch, num_classes: int) -> Tensor:
    latent = output.latents[0]
    assert latent.prior is not None, "a model with classes has a prior"
    z = None if latent.log_q is None else latent.z
    kl = kl_divergence(latent.posterior, latent.prior, z=z, log_q=latent.log_q)
    return -log_likelihood(output, batch).mean(0) + kl + math.log(num_classes)
