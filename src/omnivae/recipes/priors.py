"""The convolutional VAE under other priors: VampPrior, a learned mixture of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import MixturePrior, VampPrior
from omnivae.recipes.common import image_shape, likelihood_and_range
from omnivae.recipes.convolutional import conv_model
from omnivae.recipes.family import member


@member(
    paper="Tomczak & Welling, VAE with a VampPrior (2018)",
    equation="-E_q[log p(x|z)] + KL(q(z|x) ‖ 1/K Σ_k q(z|u_k))",
    purpose="better likelihood and samples: the prior is the mixture of what the encoder says about K learned images",
)
def vamp_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 40,
    channels: Sequence[int] = (32, 64),
    num_components: int = 500,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE whose prior is the mixture of its own posteriors (Tomczak & Welling, VAE with a VampPrior, 2018).

    The paper's 40 latent dimensions and 500 pseudo-inputs for 28x28 images; convolutions without normalisation in place of
    its gated dense layers, so that pseudo-inputs touch no batch statistics.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas, and of the pseudo-inputs.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage.
        num_components: number of pseudo-inputs.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> vamp_vae(num_components=10).prior.pseudo_inputs.shape
        torch.Size([10, 1, 28, 28])
    """
    head, value_range = likelihood_and_range(likelihood, value_range)
    # Pseudo-inputs are encoded like images: of the canvas, which the model pads to the encoder's stride.
    size = image_shape(image_size, 2)
    return conv_model(
        GaussianPosterior,
        lambda: VampPrior(in_channels, size, num_components, value_range=value_range),
        in_channels=in_channels,
        image_size=size,
        latent_dim=latent_dim,
        channels=channels,
        dim=2,
        norm="none",
        latent="vector",
        likelihood=head,
        value_range=value_range,
    )


@member(
    paper="Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture VAEs (2016)",
    equation="-E_q[log p(x|z)] + KL(q(z|x) ‖ Σ_k π_k N(μ_k, σ_k²))",
    purpose="data that falls into groups",
)
def mixture_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 10,
    channels: Sequence[int] = (32, 64),
    num_components: int = 10,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE whose prior is a learned mixture of Gaussians (Dilokthanakul et al., Gaussian Mixture VAEs, 2016).

    The mixture is summed over in closed form; the paper infers its component with a network of its own.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage.
        num_components: components of the mixture.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> mixture_vae(num_components=4).prior.means.shape
        torch.Size([4, 10])
    """
    return conv_model(
        GaussianPosterior,
        lambda: MixturePrior(latent_dim, num_components),
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=2,
        norm="batch",
        latent="vector",
        likelihood=likelihood,
        value_range=value_range,
    )
