"""Dimension lifting: a VAE of images becomes one of clips that computes the same for a single frame.

Carreira & Zisserman, Quo Vadis, Action Recognition? (2017) inflate kernels; see :mod:`omnivae.networks.video`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from omnivae.component import from_config, to_config
from omnivae.models import VAE, StackedVAE
from omnivae.networks.video import Inflation, LiftedNetwork, inflated
from omnivae.posteriors import GaussianPosterior


def inflate(
    vae: VAE,
    *,
    inflation: Inflation = "central",
    time_kernel: int = 3,
    time_stride: int = 1,
    stack_size: int | None = None,
    overlap: int = 0,
) -> StackedVAE:
    """Lift a trained VAE of images to clips; for one frame it computes what the VAE of images computes.

    A kernel w becomes (0, w, 0) or (w, w, w) / 3 over three frames, and the first and last frame are repeated beyond the ends
    of a clip, so a still image gives w * x in both cases. Normalisation and attention stay within a frame. That is checked
    here on random images before the model is returned.

    Args:
        vae: a VAE of images with a spatial, diagonal Gaussian latent; it stays as it is.
        inflation: "central" (until it is trained, every frame of every clip is treated as an image) or "average" (neighbouring
            frames are averaged from the start).
        time_kernel: odd number of frames that a convolution sees.
        time_stride: frames that become one frame of the latent: 1, or a power of two for convolutional and KL networks.
        stack_size: frames seen at a time; ``None`` for the whole clip.
        overlap: frames that neighbouring windows share.

    Returns:
        The model of clips, in evaluation mode.

    Raises:
        ValueError: for a model that cannot be lifted.

    Example:
        >>> from omnivae import kl_autoencoder
        >>> images = kl_autoencoder(channels=(8, 8), num_res_blocks=1, num_groups=4, mid_attention=False).eval()
        >>> clips = inflate(images)
        >>> clips.encode(torch.zeros(1, 3, 6, 16, 16)).shape
        torch.Size([1, 4, 6, 8, 8])
    """
    if vae.dim != 2 or vae.image_size is not None or type(vae.posterior) is not GaussianPosterior:
        raise ValueError(
            f"got a {type(vae).__name__} with a {type(vae.posterior).__name__} of {vae.dim} axes; expected a VAE of images "
            "with a spatial latent and a GaussianPosterior, such as kl_autoencoder"
        )
    lifting: dict[str, Any] = {"time_kernel": time_kernel, "time_stride": time_stride, "inflation": inflation}
    model = StackedVAE(
        LiftedNetwork(vae.encoder, **lifting),  # type: ignore[arg-type]
        _lifted_head(vae.posterior),
        LiftedNetwork(vae.decoder, **lifting),  # type: ignore[arg-type]
        copy.deepcopy(vae.likelihood_head),
        copy.deepcopy(vae.prior),
        stack_size=stack_size,
        overlap=overlap,
        value_range=vae.value_range,
    )
    model.statistics = {k: v for k, v in vae.statistics.items() if k not in ("latent", "image_size")}
    _check_still(vae, model.eval())
    return model


def _lifted_head(posterior: GaussianPosterior) -> GaussianPosterior:
    """Return the head for clips: beyond their ends it sees zeros, so its kernel sits at the middle frame."""
    head: GaussianPosterior = from_config(to_config(posterior) | {"dim": 3})
    weights = posterior.state_dict()
    kernel = weights["projection.weight"]
    weights["projection.weight"] = inflated(kernel, kernel.shape[-1], "central")
    head.to(kernel.dtype).load_state_dict(weights)
    return head


@torch.no_grad()
def _check_still(vae: VAE, model: StackedVAE) -> None:
    """Raise ``ValueError`` unless a clip of one frame gives what the image gives."""
    low, high = vae.value_range
    side = 2 * max(model.encoder.stride[1:])  # type: ignore[index]
    weight = next(vae.parameters())
    noise = torch.rand(1, vae.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    image = (low + (high - low) * noise).to(weight)
    training = vae.training
    vae.eval()
    q, lifted = vae.encode(image), model.encode(image.unsqueeze(2))
    pairs = [(q.mean, lifted.mean[:, :, 0]), (vae.decode(q), model.decode(lifted)[:, :, 0])]
    vae.train(training)
    for ours, theirs in pairs:
        error = (ours - theirs).abs().max().item()
        if not error <= 1e-3 * max(1.0, ours.abs().max().item()):
            raise ValueError(
                f"a {type(vae.encoder).__name__} does not keep its function when lifted: for one frame it differs by {error:g}; "
                "lift a kl_autoencoder, a conv_vae with a spatial latent or a cnn_vae"
            )
