"""What goes into a tiled model and what comes out: checks of models and shapes, reading and writing of regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omnivae.models.hierarchical import HierarchicalVAE
from omnivae.models.stacked import StackedVAE
from omnivae.models.tiled.graph import Region
from omnivae.models.vae import VAE

#: An image or volume: a tensor, or an array that may be mapped from a file.
Array = Tensor | np.ndarray
_LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_model(vae: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what cannot be computed in tiles.

    Args:
        vae: a model.
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"got a {type(vae).__name__}; Tiled takes a VAE")
    name = type(vae).__name__
    if vae.training:
        raise ValueError(f"got a {name} in training mode; tiles are for inference: call eval() first")
    if vae.image_size is not None:
        raise ValueError(
            f"this {name} has a vector latent: one code of the whole image of {'x'.join(map(str, vae.image_size))}, which is not "
            "made of tiles; encode images of that size, or train a model with a spatial latent such as kl_autoencoder"
        )
    if isinstance(vae, HierarchicalVAE):
        raise ValueError(
            f"got a {name}, whose latents at several resolutions are made one after another; Tiled takes models with one latent, "
            "such as kl_autoencoder"
        )
    kind = StackedVAE if isinstance(vae, StackedVAE) else VAE
    if type(vae).encode is not kind.encode or type(vae)._pixel_parameters is not kind._pixel_parameters:
        raise ValueError(f"got a {name}, which encodes and decodes in its own way; Tiled takes models that follow VAE")


def check_input(vae: VAE, shape: Sequence[int]) -> None:
    """Raise ``ValueError`` unless ``shape`` is that of a batch of images of the model; clips become grey as the model says."""
    channels = (1, 3) if isinstance(vae, StackedVAE) and vae.in_channels == 1 else (vae.in_channels,)
    if len(shape) != 2 + vae.dim or shape[1] not in channels or min(shape, default=0) < 1:
        raise ValueError(f"got an image of shape {tuple(shape)}; expected [B, {vae.in_channels}, {'DHW'[-vae.dim :]}]")


def check_latent(vae: VAE, z: Tensor) -> None:
    """Raise ``ValueError`` unless ``z`` is a batch of latents of the model."""
    if z.ndim != 2 + vae.dim or z.shape[1] != vae.latent_dim or min(z.shape) < 1:
        raise ValueError(
            f"got z of shape {tuple(z.shape)}; expected [B, {vae.latent_dim}, {'DHW'[-vae.dim :]}], one sample of each latent"
        )


def place_of(network: Any) -> tuple[torch.device, torch.dtype]:
    """Return device and precision of a network."""
    parameter = next(network.parameters(), torch.empty(0))
    return parameter.device, parameter.dtype


def reader(x: Array, row: int, size: Sequence[int]) -> Callable[[Region], Tensor]:
    """Return a function that reads regions of one image, padded beyond its end by repeating the last positions.

    Args:
        x: ``[B, C, *S]``.
        row: which image.
        size: S.

    Returns:
        A function from regions to new tensors ``[1, C, *region]``, channels last.
    """

    def read(region: Region) -> Tensor:
        inside = tuple((min(start, n - 1), min(stop, n)) for (start, stop), n in zip(region, size, strict=True))
        part = x[(slice(row, row + 1), slice(None), *(slice(*bounds) for bounds in inside))]
        tile = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        for axis, ((start, stop), (low, high)) in enumerate(zip(region, inside, strict=True), start=2):
            if (start, stop) != (low, high):
                tile = tile.index_select(axis, torch.arange(start, stop).clamp_(max=high - 1).sub_(low).to(tile.device))
        if not bool(torch.isfinite(tile.sum(dtype=torch.float64))):
            raise ValueError("got NaN or infinite values in the input; find and mend the images that hold them")
        return own(tile, isinstance(part, Tensor))

    return read


def own(tile: Tensor, copy: bool = True) -> Tensor:
    """Return a tile in the layout that convolutions like, as a tensor of its own."""
    layout = _LAYOUT.get(tile.ndim, torch.contiguous_format)
    return tile.clone(memory_format=layout) if copy else tile.contiguous(memory_format=layout)


def writer(vae: VAE, out: Array, row: int, size: Sequence[int]) -> Callable[[Region, Tensor], None]:
    """Return a function that turns regions of the decoder's result into pixels and writes what lies inside of the image.

    Args:
        vae: its likelihood has the mean.
        out: ``[B, C, *S]``.
        row: which image.
        size: S.

    Returns:
        A function of a region and the decoder's result there.
    """

    def write(region: Region, params: Tensor) -> None:
        kept = tuple((start, min(stop, n)) for (start, stop), n in zip(region, size, strict=True))
        if any(start >= stop for start, stop in kept):
            return
        inside: Any = (..., *(slice(0, stop - start) for start, stop in kept))
        params = params[inside]
        mean = vae.likelihood_head(params, batch_ndim=1).mean
        where = (slice(row, row + 1), slice(None), *(slice(*bounds) for bounds in kept))
        if isinstance(out, Tensor):
            out[where] = mean.to(out.device, out.dtype)
        else:
            out[where] = mean.cpu().numpy()

    return write


def make_out(vae: VAE, shape: Sequence[int], dtype: torch.dtype, out: Array | None) -> Array:
    """Return what pixels are written into, checked.

    Args:
        vae: the model.
        shape: of the images.
        dtype: of a new tensor.
        out: given by the caller, or ``None``.

    Returns:
        ``out`` or a new tensor.
    """
    if out is None:
        return torch.empty(tuple(shape), dtype=dtype)
    floating = out.is_floating_point() if isinstance(out, Tensor) else np.issubdtype(out.dtype, np.floating)
    if tuple(out.shape) != tuple(shape) or not floating:
        raise ValueError(
            f"got out of shape {tuple(out.shape)} and {out.dtype}; these images have the shape {tuple(shape)} and are floats"
        )
    return out


def image_channels(vae: VAE) -> int:
    """Return the channels of a decoded image."""
    device, _ = place_of(vae.decoder)
    params = torch.zeros((1, vae.decoder.out_channels, *[1] * vae.dim), device=device)
    return int(vae.likelihood_head(params, batch_ndim=1).mean.shape[1])


def latent_scale(vae: VAE) -> float:
    """Return what the model multiplies its latents by."""
    return vae.scaling_factor if isinstance(vae, StackedVAE) else 1.0


def posterior_of(vae: VAE, features: Tensor, size: Sequence[int], cond: Tensor | None, stacks: int = 1) -> Any:
    """Return the posterior of features, as the model's ``encode`` does.

    Args:
        vae: the model.
        features: of images, or of the stacks of clips, those of a clip behind one another.
        size: of the images.
        cond: their condition.
        stacks: of each clip.

    Returns:
        The posterior of the images.
    """
    posterior = vae.posterior(features)
    if isinstance(vae, StackedVAE):
        posterior = vae.join_posterior(posterior, stacks, tuple(size))
    posterior.input_size, posterior.cond = tuple(size), cond
    return posterior


def meta_bytes(network: nn.Module, shape: Sequence[int], cond: Tensor | None = None) -> int:
    """Return the most memory that a run of a network without tiles takes, its input included: a run on the meta device.

    Args:
        network: in evaluation mode.
        shape: of its input.
        cond: condition.

    Returns:
        Bytes of the tensors that are alive at once.
    """
    from omnivae.models.tiled.memory import AllocationTracker

    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    given = [] if cond is None else [torch.empty_like(cond, device="meta")]
    _, dtype = place_of(network)
    layout = _LAYOUT.get(len(shape), torch.contiguous_format)
    with AllocationTracker() as tracker, torch.no_grad():
        x = torch.empty(tuple(shape), dtype=dtype, device="meta", memory_format=layout)
        torch.func.functional_call(network, state, (x, *given))
    return tracker.peak
