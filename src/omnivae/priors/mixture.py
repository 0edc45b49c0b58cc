"""Mixtures of Gaussians as prior: with learned components, and with encoded pseudo-inputs (VampPrior)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.distributions import DiagonalGaussian
from omnivae.priors.base import Prior
from omnivae.priors.densities import EachPosition, MixtureOfGaussians


class MixturePrior(Prior):
    """p(z) = sum_m w_m N(mean_m, diag(exp(logvar_m))) with learned weights, means and variances.

    The mixture that Tomczak & Welling (VAE with a VampPrior, 2018) compare theirs with. In a
    spatial latent of any size every position is
    drawn independently from the one mixture over channels. :meth:`VAE.sample`'s temperature multiplies the standard
    deviation of every component and leaves their weights and centres.

    Args:
        latent_dim: channels of z.
        num_components: M >= 1.
        spread: standard deviation of the initial means, > 0; equal components would stay equal for ever.

    Raises:
        ValueError: for arguments outside their range, or a condition.

    Example:
        >>> MixturePrior(3, 5)(torch.Size((2, 3, 4, 4))).log_prob(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2])
    """

    takes_cond = False

    def __init__(self, latent_dim: int, num_components: int = 10, spread: float = 1.0) -> None:
        super().__init__()
        if latent_dim < 1 or num_components < 1 or not spread > 0:
            raise ValueError(
                f"got latent_dim={latent_dim}, num_components={num_components}, spread={spread}; expected positive numbers"
            )
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(spread * torch.randn(num_components, latent_dim))
        self.logvars = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        refuse_cond(self, cond)
        batch, channels, *size = latent_shape
        if channels != self.means.shape[1]:
            raise ValueError(f"got a latent of {channels} channels; this prior was built for {self.means.shape[1]}")
        mixture = MixtureOfGaussians(self.logits, self.means, self.logvars, torch.Size((batch, *size)))
        return EachPosition(mixture) if size else mixture


class VampPrior(Prior):
    """p(z) = 1/M sum_m q(z|u_m): the posteriors of M learned pseudo-inputs (Tomczak & Welling, VAE with a VampPrior, 2018, eq. 9).

    The pseudo-inputs are images; a logistic function keeps them within the value range (the paper clips, which stops the
    gradient of every pixel that has reached a bound). In a spatial latent a component spans all positions, so latents must
    be of the pseudo-inputs' size. :meth:`VAE.sample`'s temperature multiplies the standard deviation of every component.

    The encoder sees the pseudo-inputs as a batch of their own: batch normalisation would mix them into its statistics, so
    build the encoder with group normalisation or none.

    Args:
        in_channels: image channels.
        image_size: size of a pseudo-input.
        num_components: M >= 1; the paper uses 500.
        value_range: lowest and highest pixel value of the model.

    Raises:
        ValueError: for arguments outside their range, a missing encoder, a condition, a posterior that is no diagonal Gaussian, or
            a latent of another size.

    Example:
        >>> import omnivae
        >>> model = omnivae.vamp_vae(image_size=8, latent_dim=2, channels=(4,), num_components=3)
        >>> model.prior(torch.Size((5, 2)), model.encode).component_mean.shape
        torch.Size([3, 2])
    """

    takes_cond = False

    def __init__(
        self,
        in_channels: int,
        image_size: Sequence[int],
        num_components: int = 500,
        *,
        value_range: Sequence[float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        low, high = value_range
        if in_channels < 1 or num_components < 1 or not image_size or min(image_size) < 1 or not low < high:
            raise ValueError(
                f"got in_channels={in_channels}, image_size={tuple(image_size)}, num_components={num_components}, "
                f"value_range={(low, high)}; expected positive sizes and lowest < highest"
            )
        self.value_range = (float(low), float(high))
        self.logits = nn.Parameter(torch.randn(num_components, in_channels, *image_size))

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs in the value range, ``[M, C, *S]``."""
        low, high = self.value_range
        return low + (high - low) * torch.sigmoid(self.logits)

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> Distribution:
        refuse_cond(self, cond)
        if encode is None:
            raise ValueError("a VampPrior encodes its pseudo-inputs: pass the model's encode")
        q = encode(self.pseudo_inputs)
        if not isinstance(q, DiagonalGaussian):
            raise ValueError(
                f"a VampPrior needs a diagonal Gaussian posterior, got {type(q).__name__}; use GaussianPosterior, or another prior"
            )
        if q.mean.shape[1:] != latent_shape[1:]:
            raise ValueError(
                f"got latents of shape {tuple(latent_shape[1:])}; the pseudo-inputs' are {tuple(q.mean.shape[1:])}: resize the "
                "images to the size that this VampPrior was built for"
            )
        uniform = torch.zeros(len(q.mean), device=q.mean.device)
        return MixtureOfGaussians(uniform, q.mean, q.logvar, latent_shape[:1])


def refuse_cond(prior: Prior, cond: Tensor | None) -> None:
    """Raise ``ValueError`` where a prior that cannot use a condition is given one."""
    if cond is not None:
        raise ValueError(
            f"{type(prior).__name__} cannot use a condition; use ConditionalGaussianPrior, or StandardNormal to ignore it"
        )
