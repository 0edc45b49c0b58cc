"""The convolutional VAE with normalising flows: as posterior (RealNVP, Glow, NSF, MAF, planar, IAF) and as prior."""

from __future__ import annotations

from collections.abc import Sequence

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.flows import FlowName
from omnivae.posteriors import FlowPosterior, GaussianPosterior
from omnivae.priors import FlowPrior, StandardNormal
from omnivae.recipes.convolutional import conv_model
from omnivae.recipes.family import member


@member(
    paper="Rezende & Mohamed, Variational Inference with Normalizing Flows (2015)",
    equation="-E_q[log p(x|f(ε)) + log p(f(ε))] + E_q[log q(ε|x) - log |det df/dε|]",
    purpose="tighter bound: a posterior of any shape, made from a Gaussian by invertible layers",
)
def flow_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 32,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    flow: FlowName = "realnvp",
    num_flows: int = 4,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE with a normalising-flow posterior (Rezende & Mohamed, Variational Inference with Normalizing Flows, 2015).

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        flow: "realnvp" (Dinh et al., 2017), "glow" (Kingma & Dhariwal, 2018), "nsf" (Durkan et al., 2019), "maf" (Papamakarios et
            al., 2017; ``latent_dim`` passes for each sample), "iaf" (Kingma et al., 2016) or "planar" (the paper's).
        num_flows: layers of the flow; planar ones bend in one direction each, and the paper takes up to 80.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> flow_vae(latent_dim=4, flow="planar").posterior.flow.features
        4
    """
    return conv_model(
        lambda features, latent_dim, axes: FlowPosterior(features, latent_dim, axes, flow=flow, num_flows=num_flows),
        StandardNormal,
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


@member(
    paper="Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow (2016)",
    equation="flow_vae's, with f_d = s ε_d + (1 - s) m, s and m functions of ε_<d and of what the encoder says",
    purpose="tighter bound in high-dimensional latents, at one pass a sample",
)
def iaf_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 32,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    num_flows: int = 4,
    hidden: Sequence[int] = (320, 320),
    context_dim: int = 64,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE with an inverse autoregressive flow posterior (Kingma et al., Improved Variational Inference with IAF, 2016).

    The paper's flow for MNIST, a context from the encoder and masked networks of width 320, behind the convolutions of
    :func:`conv_vae` in place of its residual network.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        num_flows: layers of the flow; the paper compares 2, 4 and 8.
        hidden: widths of the masked networks.
        context_dim: size of the encoder's context for the flow.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> iaf_vae(latent_dim=4, context_dim=8).posterior.flow.context
        8
    """
    return conv_model(
        lambda features, latent_dim, axes: FlowPosterior(
            features, latent_dim, axes, flow="iaf", num_flows=num_flows, context_dim=context_dim, hidden=hidden
        ),
        StandardNormal,
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


@member(
    paper="Chen et al., Variational Lossy Autoencoder (2017), section 3.2",
    equation="-E_q[log p(x|z)] + E_q[log q(z|x) - log N(f⁻¹(z); 0, I) - log |det df⁻¹/dz|]",
    purpose="better samples: the prior learns the shape of the codes",
)
def flow_prior_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 32,
    channels: Sequence[int] = (32, 64),
    dim: int = 2,
    flow: FlowName = "maf",
    num_flows: int = 4,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE whose prior is a normalising flow (Chen et al., Variational Lossy Autoencoder, 2017, section 3.2).

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage.
        dim: number of spatial axes, 1 to 3.
        flow: of the prior, as for :func:`flow_vae`; the autoregressive one needs one pass in training and ``latent_dim`` to sample.
        num_flows: layers of the flow.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.

    Example:
        >>> flow_prior_vae(latent_dim=4).sample(2).shape
        torch.Size([2, 1, 28, 28])
    """
    return conv_model(
        GaussianPosterior,
        lambda: FlowPrior(latent_dim, flow, num_flows),
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
