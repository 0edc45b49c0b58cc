"""The two networks that the papers on objectives share, and recipes that differ in numbers and objective alone.

Twelve papers change the objective and leave the network: each is a :func:`variant` of one function, with the signature of
that function and defaults of its own, so that the arguments are written and explained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, ParamSpec, cast

from omnivae.likelihoods import Likelihood
from omnivae.models import VAE
from omnivae.networks.conv import ConvDecoder, ConvEncoder, ConvNorm
from omnivae.networks.dense import DenseAfter, DenseBefore
from omnivae.networks.mlp import Activation, MLPDecoder, MLPEncoder
from omnivae.posteriors import GaussianPosterior, PointMassPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.common import image_shape, likelihood_and_range
from omnivae.recipes.family import ELBO, Arguments, member

P = ParamSpec("P")


def convolutional(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 64,
    latent_dim: int = 10,
    channels: Sequence[int] = (32, 32, 64, 64),
    hidden: Sequence[int] = (256,),
    norm: ConvNorm = "none",
    dim: int = 2,
    deterministic: bool = False,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE of 4-wide, stride-2 convolutions and fully connected layers around a vector latent.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the canvas.
        latent_dim: size of the vector z.
        channels: output channels of each encoder stage; the decoder mirrors them.
        hidden: width of each fully connected layer between convolutions and latent; the decoder mirrors them.
        norm: "batch", "group" or "none", after each convolution.
        dim: number of spatial axes of the images, 1 to 3.
        deterministic: encode to a point; for objectives without a KL divergence.
        likelihood: name (see ``recipes.common.LIKELIHOODS``) or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.
    """
    size = image_shape(image_size, dim)
    head, value_range = likelihood_and_range(likelihood, value_range)
    encoder: Any = ConvEncoder(in_channels, channels, dim, norm=norm, image_size=size)
    first = hidden[0] if hidden else latent_dim
    decoder: Any = ConvDecoder(
        first, head.num_parameters(in_channels), tuple(channels)[::-1], dim=dim, norm=norm, image_size=size
    )
    if hidden:
        encoder = DenseAfter(encoder, hidden)
        decoder = DenseBefore(latent_dim, tuple(hidden)[::-1], decoder)
    posterior = (PointMassPosterior if deterministic else GaussianPosterior)(encoder.out_channels, latent_dim, 0)
    return VAE(encoder, posterior, decoder, head, StandardNormal(), value_range=value_range, image_size=size)


def fully_connected(
    *,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: Activation = "tanh",
    dim: int = 2,
    deterministic: bool = False,
    likelihood: str | Likelihood = "bernoulli",
    value_range: Sequence[float] | None = None,
) -> VAE:
    """Return a VAE of fully connected layers.

    Args:
        in_channels: image channels.
        image_size: edge length or size of the images.
        latent_dim: size of the vector z.
        hidden: width of each encoder layer; the decoder mirrors them.
        activation: "tanh", "relu", "elu" or "softplus".
        dim: number of spatial axes of the images, 1 to 3.
        deterministic: encode to a point; for objectives without a KL divergence.
        likelihood: name (see ``recipes.common.LIKELIHOODS``) or object.
        value_range: lowest and highest pixel value; follows the likelihood by default.

    Returns:
        The model.
    """
    size = image_shape(image_size, dim)
    head, value_range = likelihood_and_range(likelihood, value_range)
    encoder = MLPEncoder(in_channels, size, hidden, activation=activation)
    parameters = head.num_parameters(in_channels)
    decoder = MLPDecoder(latent_dim, parameters, size, tuple(hidden)[::-1], activation=activation)
    posterior = (PointMassPosterior if deterministic else GaussianPosterior)(encoder.out_channels, latent_dim, 0)
    return VAE(encoder, posterior, decoder, head, StandardNormal(), value_range=value_range, image_size=size)


def variant(
    network: Callable[P, VAE],
    name: str,
    summary: str,
    *,
    paper: str,
    equation: str,
    purpose: str,
    losses: Mapping[str, Arguments] = ELBO,
    defaults: Mapping[str, Any] | None = None,
    data: Arguments | None = None,
    training: Arguments | None = None,
) -> Callable[P, VAE]:
    """Register a recipe that builds an existing network with other defaults, for another objective.

    The result is a function of its own: name, signature and documentation are its own, the body is the network's.

    Args:
        network: a function with keyword arguments only.
        name: of the recipe.
        summary: first sentence of its documentation; the arguments' follow from the network's.
        paper: see :func:`member`, like everything below.
        equation: what is minimised.
        purpose: when to choose it.
        losses: loss name to its arguments.
        defaults: what the network's arguments are unless given.
        data: what it asks of the data section.
        training: what it asks of the training section.

    Returns:
        The recipe.

    Raises:
        ValueError: for a default of an argument that the network does not have.
    """
    base = cast(FunctionType, network)
    own = dict(base.__kwdefaults__ or {})
    unknown = set(defaults or {}) - set(own)
    if unknown:
        raise ValueError(f"{base.__name__} has no argument {', '.join(sorted(unknown))}; it has {', '.join(own)}")
    recipe = FunctionType(base.__code__, base.__globals__, name, base.__defaults__, base.__closure__)
    recipe.__kwdefaults__ = own | dict(defaults or {})
    recipe.__annotations__ = dict(base.__annotations__)
    recipe.__qualname__ = name
    arguments = (base.__doc__ or "").partition("\n\n    Args:")[2].partition("\n\n    Example:")[0]
    recipe.__doc__ = f"{summary}\n\n    Args:{arguments}\n    "
    registered = member(paper=paper, equation=equation, purpose=purpose, losses=losses, data=data, training=training)(
        recipe
    )
    return cast(Callable[P, VAE], registered)
