"""VAE-GAN: the discriminator of a GAN is also what reconstructions are compared by.

Larsen et al., Autoencoding beyond pixels using a learned similarity metric, 2016 (https://arxiv.org/abs/1512.09300).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from omnivae.distributions import at_least_float32
from omnivae.losses.adversarial import PatchDiscriminator, generator_loss
from omnivae.losses.base import Loss, Weight
from omnivae.losses.divergences import prior_samples
from omnivae.losses.frozen import compared_images
from omnivae.types import Batch, VAEOutput


class VAEGAN(Loss):
    """``1/2 |D_l(x) - D_l(x̂)|² + a (G(Dec(z)) + G(Dec(z_p)))``, z of q(z|x), z_p of the prior, G = ``mean softplus(-d)``.

    The first term is -log N(D_l(x) | D_l(x̂), I) but for a constant, D_l what the discriminator's l-th convolution gives (Larsen
    et al., 2016, eq. 7); it trains encoder and decoder. The second, the GAN's, trains the decoder alone (algorithm 1). Together
    with ``kl`` it is the paper's objective: ``a`` is 1/γ, which under Adam is the decoder's γ of eq. 9. G is the form that does
    not saturate. The discriminator is that of ``gan``, whose logits judge patches, and is trained on images, reconstructions and
    samples: ``mean softplus(-d(x)) + mean softplus(d(x̂)) + mean softplus(d(x_p))`` (eq. 8). Two more passes through the decoder,
    and one while the discriminator is trained.

    Args:
        weight: factor in the total.
        adversarial: a, of the GAN's term.
        layer: l, which convolution's features are compared; 3 in the paper.
        channels: width of the discriminator's first layer.
        num_layers: strided layers of the discriminator.
        discriminator_learning_rate: its peak learning rate; the model's where it is ``None``.

    Attributes:
        active: whether the opponent is trained at the present step.

    Raises:
        ValueError: for values out of range.
    """

    name = "vae_gan"
    needs = frozenset({"pixels", "prior", "one latent"})
    decodes = True
    active: bool = True

    def __init__(
        self,
        weight: Weight = 1.0,
        adversarial: float = 100.0,
        layer: int = 3,
        *,
        channels: int = 32,
        num_layers: int = 3,
        discriminator_learning_rate: float | None = None,
    ) -> None:
        super().__init__(weight)
        if not 0 <= adversarial < math.inf:
            raise ValueError(f"got losses.vae_gan.adversarial={adversarial}; expected a number >= 0")
        if channels < 1 or num_layers < 1:
            raise ValueError(
                f"got losses.vae_gan.channels={channels}, num_layers={num_layers}; expected at least 1 of each"
            )
        if not 1 <= layer <= num_layers + 1:
            raise ValueError(
                f"got losses.vae_gan.layer={layer}; expected one of the {num_layers + 1} convolutions before the logits"
            )
        if discriminator_learning_rate is not None and not 0 < discriminator_learning_rate < math.inf:
            raise ValueError(
                f"got losses.vae_gan.discriminator_learning_rate={discriminator_learning_rate}; expected a positive number such "
                "as 3e-4"
            )
        self.adversarial, self.layer, self.channels, self.num_layers = adversarial, layer, channels, num_layers
        self.opponent_learning_rate = discriminator_learning_rate
        self.opponent: PatchDiscriminator | None = None
        self.least_size = 3 * 2**num_layers
        self.smaller = "lower losses.vae_gan.num_layers and losses.vae_gan.layer"

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Create the discriminator; its parameters are frozen except while the trainer steps it.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.
        """
        if self.opponent is None:
            net = PatchDiscriminator(in_channels, self.channels, self.num_layers, dim=dim)
            self.opponent = net.requires_grad_(False)

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        reconstruction, x = compared_images(self.name, output, batch)
        net = self._discriminator()
        with torch.no_grad():
            wanted = at_least_float32(net.features(x, self.layer))
        found = at_least_float32(net.features(reconstruction, self.layer))
        similarity = self.reduce(0.5 * (found - wanted).square().flatten(1).sum(1), wanted[0].numel())
        # Decoded once more without a way back to the encoder.
        fakes = (self._decoded(output.z.detach(), x), self._samples(output, x))
        deceived = torch.stack([generator_loss(at_least_float32(net(fake)), "vanilla") for fake in fakes]).sum()
        return similarity + self.adversarial * deceived

    def opponent_loss(self, output: VAEOutput, batch: Batch) -> Tensor:
        """Return the discriminator's loss.

        Args:
            output: the model's output, without its graph.
            batch: the batch it was computed from.

        Returns:
            A scalar.
        """
        reconstruction, x = compared_images(self.name, output, batch)
        with torch.no_grad():
            sampled = self._samples(output, x)
        net = self._discriminator()
        real, *fakes = (at_least_float32(net(images)) for images in (x, reconstruction.detach(), sampled))
        return F.softplus(-real).mean() + sum(F.softplus(fake).mean() for fake in fakes)

    def _samples(self, output: VAEOutput, x: Tensor) -> Tensor:
        """Return an image of the prior for each of the batch."""
        return self._decoded(prior_samples(self.name, output.latents[0]).to(output.z.dtype), x)

    def _decoded(self, z: Tensor, x: Tensor) -> Tensor:
        if self.decode is None:
            raise ValueError(
                "vae_gan decodes latents of its own: set its decode to the model's likelihood, as the trainer does"
            )
        images = self.decode(z).mean
        # The model pads images to a multiple of its stride, and crops what it decodes to the image's size.
        for axis in range(2, x.ndim):
            images = images.narrow(axis, 0, x.shape[axis])
        return images

    def _discriminator(self) -> PatchDiscriminator:
        if self.opponent is None:
            raise ValueError("vae_gan has no discriminator yet: call build(...), as the trainer does by itself")
        return self.opponent
