"""Losses on the aggregate posterior q(z) = 1/N sum_n q(z|x_n): the decomposition of β-TCVAE, and DIP-VAE.

Chen et al., Isolating Sources of Disentanglement in VAEs, 2018 (https://arxiv.org/abs/1802.04942); Kumar et al.,
Variational Inference of Disentangled Latent Concepts from Unlabeled Observations (DIP-VAE), 2018
(https://arxiv.org/abs/1711.00848).

Shapes: K samples, B images in the batch, D latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Independent

from omnivae.distributions import DiagonalGaussian
from omnivae.losses.base import Loss, Refusal, Weight
from omnivae.types import Batch, Latent, VAEOutput

Estimator = Literal["stratified", "weighted"]


@dataclass(frozen=True)
class Decomposition:
    """The KL of a VAE in three parts, in nats (Chen et al., 2018, eq. 2); they add up to its Monte Carlo estimate.

    Attributes:
        mutual_information: of index and code, ``KL(q(z, n) || q(z) p(n))``.
        total_correlation: ``KL(q(z) || prod_d q(z_d))``.
        dimension_wise_kl: ``sum_d KL(q(z_d) || p(z_d))``.
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class TC(Loss):
    """``alpha MI + beta TC + gamma KL of the dimensions``: β-TCVAE's regulariser, in the place of the KL (eq. 4).

    With all three at 1 it is the KL. It needs the whole data set's size N, because q(z) is estimated from a batch, that of all
    processes, with the weights that make up for the rest: see :func:`decompose`.

    Args:
        weight: factor in the total.
        alpha: of the mutual information.
        beta: of the total correlation; 6 in the paper's dSprites.
        gamma: of the dimension-wise KL.
        dataset_size: N, the number of training images; the trainer fills it in where it is ``None``.
        estimator: "stratified" is unbiased for q(z); "weighted", which the paper trained with, can be too low by a factor N,
            and the total correlation of codes that overlap then too high by up to ``(D - 1) log N`` nats.

    Raises:
        ValueError: for values out of range.
    """

    name = "tc"
    of_batch = True
    needs = frozenset({"density", "diagonal", "independent prior", "vector latent"})
    instead = MappingProxyType({"together": "set losses.tc.alpha and losses.tc.gamma to 0, so that it adds to the kl"})

    def __init__(
        self,
        weight: Weight = 1.0,
        alpha: float = 1.0,
        beta: float = 6.0,
        *,
        gamma: float = 1.0,
        dataset_size: int | None = None,
        estimator: Estimator = "stratified",
    ) -> None:
        super().__init__(weight)
        for key, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not 0 <= value < math.inf:
                raise ValueError(f"got losses.tc.{key}={value}; expected a number >= 0")
        if dataset_size is not None and dataset_size < 1:
            raise ValueError(f"got losses.tc.dataset_size={dataset_size}; expected the number of training images")
        if estimator not in ("stratified", "weighted"):
            raise ValueError(f"got losses.tc.estimator={estimator!r}; expected 'stratified' or 'weighted'")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.dataset_size = dataset_size
        self.estimator: Estimator = estimator
        # All three parts are the KL; the total correlation alone is a term beside it.
        self.replaces = frozenset({"kl"}) if alpha and gamma else frozenset()

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Refuse a spatial latent.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.

        Raises:
            ValueError: for a latent that is no vector.
        """
        demand_vector(self.name, latent_axes)

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        if self.dataset_size is None:
            raise ValueError("tc needs the number of training images: give dataset_size, as the trainer does by itself")
        total = torch.zeros((), device=output.latents[0].z.device)
        for latent in output.latents:
            parts = decompose(latent, self.dataset_size, self.estimator, whole=self.whole)
            total = total + self.alpha * parts.mutual_information + self.beta * parts.total_correlation
            total = total + self.gamma * parts.dimension_wise_kl
        return total


def decompose(
    latent: Latent,
    dataset_size: int,
    estimator: Estimator = "stratified",
    *,
    whole: Callable[[Tensor], Tensor] | None = None,
) -> Decomposition:
    """Estimate mutual information, total correlation and dimension-wise KL from a batch.

    ``q(z) ~ sum_j c_ij q(z|x_j)`` for a sample z of image i, and the same for each dimension alone. "weighted" has
    ``c_ij = 1 / (N B)`` (minibatch-weighted sampling). "stratified" has ``c_ii = 1 / N`` and
    ``c_ij = (N - 1) / (N (B - 1))``: the paper's minibatch-stratified sampling averaged over which image of the batch takes
    the last weight, so it is as unbiased, has less variance, and is exact where the batch is the whole data set. The
    normalisers are kept: without them the total correlation would be ``(D - 1) log N B`` nats off.

    Args:
        latent: samples of a diagonal Gaussian posterior, z ``[K, B, D]``.
        dataset_size: N, at least B.
        estimator: "stratified" or "weighted".
        whole: makes a batch ``[B, ...]`` that of all processes; q(z) is then estimated from that. The means of log q(z|x) and
            log p(z) stay those of this batch: averaged over the processes they are right.

    Returns:
        Three scalars, means over samples and batch.

    Raises:
        ValueError: for a latent that is no vector or no sample, a prior that does not factorise, or a batch that is larger than
            the data set or too small for the estimator.
    """
    q, z, log_q = latent.posterior, latent.z, latent.log_q
    if not isinstance(q, DiagonalGaussian) or not isinstance(latent.prior, Independent):
        raise ValueError(
            f"tc needs a posterior and a prior whose dimensions are independent, got {type(q).__name__} and "
            f"{type(latent.prior).__name__}: use kl, or a gaussian posterior with the standard normal prior"
        )
    demand_vector("tc", z.ndim - 3)
    if log_q is None:
        raise ValueError("z is the posterior's mode and no sample of it: call the model with sample=True")
    mine = z
    if whole is not None:
        z = whole(z.transpose(0, 1)).transpose(0, 1)
        q = DiagonalGaussian(whole(q.mean), whole(q.logvar))
    size = z.shape[1]
    if size > dataset_size:
        raise ValueError(
            f"got a batch of {size} images and dataset_size={dataset_size}; expected the whole data's size"
        )
    weights = _log_weights(size, dataset_size, estimator, z)
    # [K, B, B, D]: sample of image i under the posterior of image j.
    each = q.distribution().base_dist.log_prob(z[:, :, None])
    log_qz = (weights + each.sum(-1)).logsumexp(2).mean()
    log_product = (weights[..., None] + each).logsumexp(2).sum(-1).mean()
    return Decomposition(log_q.mean() - log_qz, log_qz - log_product, log_product - latent.prior.log_prob(mine).mean())


def _log_weights(size: int, dataset_size: int, estimator: Estimator, like: Tensor) -> Tensor:
    if estimator == "weighted":
        return like.new_full((size, size), -math.log(dataset_size * size))
    if size < 2 and dataset_size > 1:
        raise ValueError(
            "the stratified estimator needs at least two images in a batch: set training.batch_size higher"
        )
    others = 0.0 if size < 2 else math.log((dataset_size - 1) / (dataset_size * (size - 1)))
    return like.new_full((size, size), others).fill_diagonal_(-math.log(dataset_size))


class DIP(Loss):
    """Pulls the covariance of the codes towards the identity: ``od sum_{i != j} C_ij^2 + d sum_i (C_ii - 1)^2``.

    "i" takes the covariance of the posterior means (Kumar et al., 2018, eq. 6), "ii" that of z, which adds the mean of the
    posterior variances (eq. 7). The covariance is that of the batch of all processes, divided by its size. It is added to
    ``nll`` and ``kl``.

    Args:
        weight: factor in the total.
        kind: "i" or "ii".
        off_diagonal: od.
        diagonal: d; by default ten times od for "i" and od for "ii", the paper's ratios.

    Raises:
        ValueError: for values out of range.
    """

    name = "dip"
    of_batch = True
    needs = frozenset({"density", "diagonal", "vector latent"})

    def __init__(
        self,
        weight: Weight = 1.0,
        kind: Literal["i", "ii"] = "i",
        off_diagonal: float = 10.0,
        *,
        diagonal: float | None = None,
    ) -> None:
        super().__init__(weight)
        if kind not in ("i", "ii"):
            raise ValueError(f"got losses.dip.kind={kind!r}; expected 'i' or 'ii'")
        diagonal = off_diagonal * (10 if kind == "i" else 1) if diagonal is None else diagonal
        for key, value in (("off_diagonal", off_diagonal), ("diagonal", diagonal)):
            if not 0 <= value < math.inf:
                raise ValueError(f"got losses.dip.{key}={value}; expected a number >= 0")
        self.kind, self.off_diagonal, self.diagonal = kind, off_diagonal, diagonal

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Refuse a spatial latent.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.

        Raises:
            ValueError: for a latent that is no vector.
        """
        demand_vector(self.name, latent_axes)

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        total = torch.zeros((), device=output.latents[0].z.device)
        for latent in output.latents:
            q = latent.posterior
            assert isinstance(q, DiagonalGaussian)
            demand_vector(self.name, q.mean.ndim - 2)
            mean, logvar = self.whole(q.mean), self.whole(q.logvar)
            if len(mean) < 2:
                raise ValueError("dip needs at least two images in a batch: set training.batch_size higher")
            with torch.autocast(q.mean.device.type, enabled=False):
                centred = mean - mean.mean(0)
                covariance = centred.T @ centred / len(centred)
                if self.kind == "ii":
                    covariance = covariance + logvar.exp().mean(0).diag()
                diagonal = covariance.diagonal()
                apart = covariance.square().sum() - diagonal.square().sum()
                total = total + self.off_diagonal * apart + self.diagonal * (diagonal - 1).square().sum()
        return total


def demand_vector(name: str, latent_axes: int) -> None:
    """Raise ``ValueError`` unless the latent is a vector.

    Args:
        name: the loss.
        latent_axes: number of spatial axes of z.
    """
    if latent_axes:
        raise Refusal(
            f"the loss {name!r} is about the dimensions of a vector latent, and this model's has {latent_axes} spatial axes",
            ("use kl or mmd in its place", "use a model with a vector latent, such as conv_vae"),
        )
