"""The convolutional VAE with latents that are no real vectors: categories (Gumbel-softmax) and directions (von Mises-Fisher)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.posteriors import CategoricalPosterior, VonMisesFisherPosterior
from omnivae.priors import UniformCategories, UniformSphere
from omnivae.recipes.convolutional import conv_model
from omnivae.recipes.family import member


@member(
    paper="Jang et al., Categorical Reparameterization with Gumbel-Softmax (2017)",
    equation="-E[log p(x|softmax((log π + g) / τ))] + Σ π log(C π), g Gumbel noise, τ = max(0.5, exp(-1e-5 t))",
    purpose="discrete latents with a density, trained by gradients: classes, and tokens without a codebook",
)
def gumbel_softmax_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] | None = 28,
    num_groups: int = 20,
    num_categories: int = 10,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    latent: Literal["vector", "spatial"] = "vector",
    temperature: float = 1.0,
    final_temperature: float = 0.5,
    rate: float = 1e-5,
    straight_through: bool = False,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE of categorical latents (Jang et al., Categorical Reparameterization with Gumbel-Softmax, 2017).

    The paper's 20 variables of 10 categories and its temperature's schedule. z is ``[B, num_groups * num_categories, *S]``.

    Args:
        in_channels: image channels.
        image_size: edge length or size, as for ``conv_vae``.
        num_groups: categorical variables, at each position where the latent is spatial.
        num_categories: categories of each.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        latent: "vector" or "spatial".
        temperature: at the first training step.
        final_temperature: the lowest.
        rate: of the temperature's decay by training step.
        straight_through: one-hot samples in training too.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> gumbel_softmax_vae(num_groups=3).latent_dim
        30
    """
    return conv_model(
        lambda features, latent_dim, axes: CategoricalPosterior(
            features,
            latent_dim,
            axes,
            num_categories=num_categories,
            temperature=temperature,
            final_temperature=final_temperature,
            rate=rate,
            straight_through=straight_through,
        ),
        lambda: UniformCategories(num_categories),
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=num_groups * num_categories,
        channels=channels,
        dim=dim,
        norm="batch",
        latent=latent,
        likelihood=likelihood,
        value_range=value_range,
    )


@member(
    paper="Davidson et al., Hyperspherical Variational Auto-Encoders (2018)",
    equation="-E_q[log p(x|z)] + KL(vMF(μ, κ) ‖ uniform on the sphere)",
    purpose="data that lies on a ring or a sphere; codes compared by angle; few latent dimensions",
)
def hyperspherical_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 11,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE whose latent is a point of a sphere (Davidson et al., Hyperspherical Variational Auto-Encoders, 2018).

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: numbers of the unit vector z; the sphere has one dimension less, and the paper is at its best with about ten.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> hyperspherical_vae(latent_dim=3).posterior.projection.out_features
        4
    """
    return conv_model(
        VonMisesFisherPosterior,
        UniformSphere,
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        norm="batch",
        latent="vector",
        likelihood=likelihood,
        value_range=value_range,
    )
