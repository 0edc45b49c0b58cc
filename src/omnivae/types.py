"""Central types: what flows between data, models, losses and metrics.

Shape legend: B batch, K posterior samples, C channels, *S spatial axes: ``()`` for a vector latent, ``(N,)`` for
tokens, ``(H, W)``, ``(D, H, W)`` or ``(T, H, W)``. Log-densities are nats, summed over the event, one number a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution


class Batch(TypedDict):
    """One batch of data.

    Keys:
        x: input, ``[B, C, *S]``, in the model's value range.
        cond: condition, ``[B, E]``.
        target: what the reconstruction is compared with, ``[B, C, *S]``; ``x`` where absent.
        label: class index ``[B]`` or factor values ``[B, F]``.
        mask: 1 where a pixel counts, ``[B, 1, *S]``.
        followup: of pairs, the second volume on the grid of ``x``, ``[B, C, *S]``.
        spacing_mm: voxel spacing, ``[B, dim]``.
        key: a stable name for each sample (a path or ``dataset/index``).
    """

    x: Tensor
    cond: NotRequired[Tensor]
    target: NotRequired[Tensor]
    label: NotRequired[Tensor]
    mask: NotRequired[Tensor]
    followup: NotRequired[Tensor]
    spacing_mm: NotRequired[Tensor]
    key: NotRequired[list[str]]


@runtime_checkable
class Network(Protocol):
    """Tensors in, tensors out: ``forward(x, cond=None)``, with channel counts and the total stride, of all axes or of each."""

    in_channels: int
    out_channels: int

    @property
    def stride(self) -> int | tuple[int, ...]: ...

    def __call__(self, x: Tensor, cond: Tensor | None = None) -> Tensor: ...


def strides(network: Network, dim: int) -> tuple[int, ...]:
    """Return the total stride of a network along each spatial axis.

    Args:
        network: has ``stride``, one number for all axes or one for each.
        dim: number of spatial axes.

    Returns:
        ``dim`` numbers.
    """
    return (network.stride,) * dim if isinstance(network.stride, int) else tuple(network.stride)


class Posterior(Protocol):
    """q(z|x) for one batch.

    ``input_size`` is the spatial size of the image that was encoded, before padding; decoding a posterior crops to it.
    ``cond`` is the condition that it was encoded under, ``[B, E]``; decoding a posterior uses it unless told another.
    """

    input_size: tuple[int, ...] | None
    cond: Tensor | None

    @property
    def shape(self) -> torch.Size: ...

    @property
    def penalties(self) -> dict[str, Tensor]: ...

    def mode(self) -> Tensor: ...

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Latent:
    """One random variable of a model: its posterior, its prior, K samples and their log-density.

    Attributes:
        posterior: q(z|x).
        prior: p(z), or ``None`` where there is no density (vector quantisation).
        z: samples, ``[K, B, C, *S]``.
        log_q: log q(z|x) in nats, ``[K, B]``; ``None`` where there is no density, or where z is the mode and no sample.
    """

    posterior: Posterior
    prior: Distribution | None
    z: Tensor
    log_q: Tensor | None


@dataclass(frozen=True)
class VAEOutput:
    """What a forward pass returns, the same in training and evaluation.

    Unpacks as ``(reconstruction, mean, logvar)``.

    Attributes:
        latents: one for each random variable; a plain VAE has one.
        likelihood: p(x|z), batch shape ``[K, B]``, event shape ``[C, *S]``.
    """

    latents: tuple[Latent, ...]
    likelihood: Distribution

    @cached_property
    def reconstruction(self) -> Tensor:
        """Mean of p(x|z) for the first posterior sample, ``[B, C, *S]``."""
        return self.likelihood.mean[0]

    @property
    def recon_x(self) -> Tensor:
        """Alias of :attr:`reconstruction`."""
        return self.reconstruction

    @property
    def mean(self) -> Tensor:
        """Mean of the first latent's posterior, ``[B, C, *S]``."""
        return self.latents[0].posterior.mean  # type: ignore[attr-defined]

    @property
    def logvar(self) -> Tensor:
        """Log-variance of the first latent's posterior, ``[B, C, *S]``."""
        return self.latents[0].posterior.logvar  # type: ignore[attr-defined]

    @property
    def z(self) -> Tensor:
        """First sample of the first latent, ``[B, C, *S]``."""
        return self.latents[0].z[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield self.reconstruction
        yield self.mean
        yield self.logvar


@dataclass(frozen=True)
class SemiSupervisedOutput(VAEOutput):
    """What a model with classes returns: the output under one class of each image, and under the others where it is not known.

    Attributes:
        log_class: log q(y|x) in nats, ``[B, K]``.
        known: whether each image's class was given, ``[B]``.
        choice: the class of the output, ``[B]``: given, drawn or the likeliest.
        others: of every pair of an image whose class is not known and another class than the chosen one, R pairs; or ``None``.
        others_image: the image of each pair, ``[R]``.
        others_class: its class, ``[R]``.
    """

    log_class: Tensor
    known: Tensor
    choice: Tensor
    others: VAEOutput | None
    others_image: Tensor
    others_class: Tensor
