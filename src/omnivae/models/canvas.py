"""VAEs of one canvas whose decoder may return another size than the encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.distributions import DiagonalGaussian
from omnivae.models.vae import VAE
from omnivae.types import Network


class CanvasVAE(VAE):
    """VAE with a vector latent of one canvas, and reconstructions of the decoder's own size.

    Where the two sizes are equal, smaller inputs are padded to the canvas and cropped back as in every VAE. Where they are
    not, no voxel of the reconstruction belongs to one of the input: reconstructions come whole, and losses refuse to
    compare them.

    Args:
        encoder: network from the canvas to features.
        posterior: head from features to q(z|x).
        decoder: network from z to likelihood parameters.
        likelihood: module from parameters to p(x|z).
        prior: module that returns p(z).
        value_range: lowest and highest value.
        image_size: the canvas.
        output_size: spatial size of what the decoder returns.
    """

    abstract = True

    def __init__(
        self,
        encoder: Network,
        posterior: nn.Module,
        decoder: Network,
        likelihood: nn.Module,
        prior: nn.Module,
        *,
        value_range: Sequence[float],
        image_size: Sequence[int],
        output_size: Sequence[int],
    ) -> None:
        super().__init__(encoder, posterior, decoder, likelihood, prior, value_range=value_range, image_size=image_size)
        #: Spatial size of reconstructions.
        self.output_size = tuple(int(n) for n in output_size)

    def likelihood(
        self, z: Tensor | DiagonalGaussian, cond: Tensor | None = None, *, size: Sequence[int] | None = None
    ) -> Distribution:
        """Return p(x|z).

        Args:
            z: latents ``[B, C]`` or K samples ``[K, B, C]``, or a posterior (its mode).
            cond: not supported by these networks; must be ``None``.
            size: spatial size to crop to, where the decoder returns the canvas.

        Returns:
            Distribution of batch shape ``[B]`` (``[K, B]``) and event shape ``[C, *S]``.

        Raises:
            ValueError: for a size, where the decoder does not return the canvas.
        """
        if self.output_size == self.image_size:
            return super().likelihood(z, cond, size=size)
        if size is not None and not self._has_size(z, size):
            raise ValueError(
                f"got size={tuple(size)}; this model takes {self.image_size} and returns {self.output_size}, which cannot be "
                "cropped to the input: build it with match_input=True"
            )
        return super().likelihood(z, cond, size=self.output_size)

    def _has_size(self, z: Any, size: Sequence[int]) -> bool:
        return tuple(size) in (self.image_size, self.output_size, getattr(z, "input_size", None))
