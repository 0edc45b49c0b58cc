"""VAEs that are told something: a class, attributes or a vector (conditional), or a class for a few images only (M2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE, SemiSupervisedVAE
from omnivae.networks.conditioning import Conditioning
from omnivae.networks.conv import ConvNorm
from omnivae.networks.mlp import MLPDecoder, MLPEncoder
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import ConditionalGaussianPrior, StandardNormal
from omnivae.recipes.common import image_shape, likelihood_and_range
from omnivae.recipes.convolutional import conv_model
from omnivae.recipes.family import member


@member(
    paper="Sohn et al., Learning Structured Output Representation using Deep Conditional Generative Models (2015)",
    equation="-E_q[log p(x|z, c)] + KL(q(z|x, c) ‖ p(z)), or ‖ p(z|c)",
    purpose="images of a class, or with attributes, that you name; z holds what the condition does not say",
    data={"cond": "label"},
)
def c_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] | None = 28,
    latent_dim: int = 16,
    channels: Sequence[int] = (32, 64),
    cond_dim: int = 10,
    conditioning: Conditioning = "concat",
    learned_prior: bool = False,
    dim: int = 2,
    norm: ConvNorm = "batch",
    latent: Literal["vector", "spatial"] = "vector",
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE whose encoder, decoder and, if wanted, prior take a condition (Sohn et al. 2015, eq. 4).

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas that a vector latent describes.
        latent_dim: channels of z.
        channels: output channels of each encoder stage; the decoder mirrors them.
        cond_dim: size E of the condition; in a run what ``data.cond`` comes to.
        conditioning: "concat" (planes behind the image, numbers behind z), "batch_norm" (de Vries et al., Modulating Early
            Visual Processing by Language, 2017) or "film" (Perez et al., FiLM, 2018).
        learned_prior: p(z|c) is a Gaussian that follows the condition, instead of N(0, I).
        dim: number of spatial axes, 1 to 3.
        norm: "batch", "group" or "none"; conditioning "batch_norm" needs "batch".
        latent: "vector" or "spatial".
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model; every call takes ``cond [B, cond_dim]``.

    Raises:
        ValueError: for a size, conditioning or likelihood that does not exist, or do not go together.

    Example:
        >>> import torch
        >>> c_vae(latent_dim=2).sample(3, cond=torch.eye(10)[[7, 7, 7]]).shape
        torch.Size([3, 1, 28, 28])
    """
    return conv_model(
        GaussianPosterior,
        lambda: ConditionalGaussianPrior(cond_dim, latent_dim) if learned_prior else StandardNormal(),
        in_channels=in_channels,
        image_size=image_size,
        latent_dim=latent_dim,
        channels=channels,
        dim=dim,
        norm=norm,
        latent=latent,
        likelihood=likelihood,
        value_range=value_range,
        cond_dim=cond_dim,
        conditioning=conditioning,
    )


@member(
    paper="Kingma et al., Semi-supervised Learning with Deep Generative Models (2014), model M2",
    equation="L(x, y) of labelled images, Σ_y q(y|x) L(x, y) - H(q(y|x)) of the others, - α log q(y|x)",
    purpose="a classifier, and images by class, where few images have a label",
    losses={"m2": {"alpha": 10.0}},
    data={"cond": "label", "labels_per_class": 10, "labelled_share": 0.2},
)
def m2_vae(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 50,
    hidden: Sequence[int] = (500,),
    num_classes: int = 10,
    dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> SemiSupervisedVAE:
    """Return M2: a VAE with a class, told for a few images and inferred for the rest (Kingma et al. 2014, section 2).

    Fully connected as in the paper, one hidden layer of 500 and 50 latent dimensions; images of one small size.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        hidden: width of each layer of the classifier, the encoder and, in reverse, the decoder.
        num_classes: K; in a run the classes of the data.
        dim: number of spatial axes, 1 to 3.
        likelihood: name or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model; train it with the loss ``m2``.

    Example:
        >>> m2_vae(hidden=(16,)).num_classes
        10
    """
    head, value_range = likelihood_and_range(likelihood, value_range)
    size, widths = image_shape(image_size, dim), tuple(hidden)
    told: dict[str, Any] = {"activation": "softplus", "cond_dim": num_classes}
    return SemiSupervisedVAE(
        MLPEncoder(in_channels, size, widths, activation="softplus"),
        MLPEncoder(in_channels, size, widths, **told),
        GaussianPosterior(widths[-1], latent_dim, 0),
        MLPDecoder(latent_dim, head.num_parameters(in_channels), size, widths[::-1], **told),
        head,
        StandardNormal(),
        num_classes=num_classes,
        value_range=value_range,
        image_size=size,
    )
