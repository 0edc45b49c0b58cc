"""EQ-VAE: what is done to the latent is done to the image.

Kouzelis et al., EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image Modeling, 2025
(https://arxiv.org/abs/2502.09509).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from omnivae.distributions import at_least_float32
from omnivae.losses.base import Loss, Refusal, Weight, event_size
from omnivae.types import Batch, VAEOutput

#: Interpolation by number of spatial axes.
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Equivariance(Loss):
    """``-log p(τ x | τ z)``: the likelihood of a scaled and rotated image, given its latent scaled and rotated (eq. 6).

    Each step draws one scale of ``scales`` and, in two and three dimensions, a rotation by a multiple of 90 degrees in one
    plane, for the whole batch. Latent and image are resized linearly (antialiased in two dimensions). The paper replaces the
    reconstruction by this in half of the steps; ``nll`` and this with weight 0.5 each have the same expectation, less noise,
    and cost a second pass through the decoder.

    Args:
        weight: factor in the total.
        per_element: divide by the number of pixel values of the transformed image.
        scales: lowest and highest factor, in (0, 1]; 0.25 to 1 in the paper.

    Raises:
        ValueError: for scales out of range.
    """

    name = "eq"
    needs = frozenset({"pixels", "one latent", "any size"})
    decodes = True

    def __init__(
        self, weight: Weight = 0.5, per_element: bool = False, *, scales: Sequence[float] = (0.25, 1.0)
    ) -> None:
        super().__init__(weight, per_element)
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= 1:
            raise ValueError(f"got losses.eq.scales={list(scales)}; expected lowest and highest in (0, 1]")
        self.scales = (float(scales[0]), float(scales[1]))

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Refuse a vector latent, which has no space to transform.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.

        Raises:
            ValueError: for a latent without the image's axes.
        """
        if latent_axes != dim:
            raise Refusal(
                f"the loss 'eq' transforms the latent like the image, and this model's latent has {latent_axes} spatial axes for "
                f"images of {dim}",
                ("drop 'eq'", "use a model with a spatial latent, such as kl_autoencoder"),
            )

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        if "mask" in batch or "target" in batch:
            raise ValueError("eq transforms whole images: train without a mask and without a target, or drop 'eq'")
        if self.decode is None:
            raise ValueError(
                "eq decodes latents of its own: set its decode to the model's likelihood, as the trainer does"
            )
        z, x = output.z, batch["x"]
        scale = self.scales[0] + (self.scales[1] - self.scales[0]) * float(torch.rand(()))
        turns = int(torch.randint(4, ())) if x.ndim > 3 else 0
        plane = (torch.randperm(x.ndim - 2)[:2] + 2).tolist()
        size = [max(1, round(n * scale)) for n in z.shape[2:]]
        likelihood = self.decode(turned(resized(z, size), turns, plane))
        # What comes out says how many pixels a position of the latent has; the model pads images to a multiple of that.
        pixels = likelihood.event_shape[1] // (size if turns % 2 == 0 else turned_size(size, plane))[0]
        whole = padded(x, [n * pixels for n in z.shape[2:]])
        target = turned(resized(whole, [n * pixels for n in size]), turns, plane)
        return self.reduce(-likelihood.log_prob(target), event_size(target))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a grid resized linearly, in float32 at least.

    Args:
        x: ``[B, C, *S]``.
        size: the new S.

    Returns:
        ``[B, C, *size]``.
    """
    if list(x.shape[2:]) == list(size):
        return x
    smooth = {"antialias": True} if x.ndim == 4 else {}
    return F.interpolate(at_least_float32(x), list(size), mode=LINEAR[x.ndim - 2], align_corners=False, **smooth)


def turned(x: Tensor, turns: int, plane: Sequence[int]) -> Tensor:
    """Return a grid rotated by ``turns`` times 90 degrees in the plane of two axes.

    Args:
        x: ``[B, C, *S]``.
        turns: number of quarter turns; 0 leaves x as it is.
        plane: the two axes.

    Returns:
        The rotated grid.
    """
    return torch.rot90(x, turns, list(plane)) if turns else x


def turned_size(size: Sequence[int], plane: Sequence[int]) -> list[int]:
    """Return a spatial size with the two axes of a quarter turn exchanged."""
    result = list(size)
    first, second = (axis - 2 for axis in plane)
    result[first], result[second] = result[second], result[first]
    return result


def padded(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return images made larger by repeating the last row and column, as the model does before it encodes.

    Args:
        x: ``[B, C, *S]``.
        size: the new S, at least the old one along each axis.

    Returns:
        ``[B, C, *size]``.
    """
    for axis, (have, want) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        if have != want:
            x = x.index_select(axis, torch.arange(want, device=x.device).clamp_(max=have - 1))
    return x
