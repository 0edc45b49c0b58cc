"""GAN loss with a patch discriminator, in 1-D to 3-D.

Isola et al., Image-to-Image Translation with Conditional Adversarial Networks (PatchGAN), 2017
(https://arxiv.org/abs/1611.07004); as an autoencoder's loss: Esser et al., Taming Transformers (VQGAN), 2021
(https://arxiv.org/abs/2012.09841).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from omnivae.losses.adaptive import AdaptiveLoss
from omnivae.losses.base import Weight
from omnivae.losses.frozen import compared_images
from omnivae.types import Batch, VAEOutput

Objective = Literal["hinge", "least_squares", "vanilla"]


class GAN(AdaptiveLoss):
    """Generator's loss against a discriminator that the trainer steps by itself (see ``omnivae.training.opponents``).

    With discriminator logits ``d``: hinge ``-mean d(fake)`` against ``mean [relu(1 - d(real)) + relu(1 + d(fake))] / 2``;
    least squares ``mean (d(fake) - 1)^2 / 2`` against ``mean [(d(real) - 1)^2 + d(fake)^2] / 2`` (Mao et al., 2017, eq. 9);
    vanilla ``mean softplus(-d(fake))`` against ``mean [softplus(-d(real)) + softplus(d(fake))] / 2`` (Goodfellow et al.,
    2014, the non-saturating form).

    Args:
        weight: factor in the total, multiplied by the balance where ``adaptive`` is set.
        start_step: optimiser step of the model from which on both sides play; the loss and its weight are 0 before.
        channels: width of the discriminator's first layer.
        num_layers: strided layers of the discriminator; 3 give logits that see 70 pixels.
        discriminator_learning_rate: peak learning rate of the discriminator; the model's where it is ``None``. It follows
            the model's warm-up and schedule.
        loss: "hinge", "least_squares" or "vanilla".
        adaptive: balance the gradients at the reconstruction with those of the reconstruction terms (VQGAN's lambda);
            ``False`` is a fixed weight.

    Raises:
        ValueError: for values out of range.
    """

    name = "gan"
    needs = frozenset({"pixels"})

    def __init__(
        self,
        weight: Weight = 0.05,
        start_step: int = 0,
        channels: int = 64,
        *,
        num_layers: int = 3,
        discriminator_learning_rate: float | None = None,
        loss: Objective = "hinge",
        adaptive: bool = True,
    ) -> None:
        super().__init__(weight, adaptive)
        if start_step < 0:
            raise ValueError(f"got start_step={start_step}; expected a step >= 0")
        if channels < 1 or num_layers < 1:
            raise ValueError(f"got channels={channels}, num_layers={num_layers}; expected at least 1 of each")
        if discriminator_learning_rate is not None and not 0 < discriminator_learning_rate < math.inf:
            raise ValueError(
                f"got discriminator_learning_rate={discriminator_learning_rate}; expected a positive number such as 1e-4"
            )
        if loss not in ("hinge", "least_squares", "vanilla"):
            raise ValueError(f"got loss={loss!r}; expected hinge, least_squares or vanilla")
        self.start_step, self.channels, self.num_layers = start_step, channels, num_layers
        self.opponent_learning_rate = discriminator_learning_rate
        self.objective: Objective = loss
        self.opponent: PatchDiscriminator | None = None
        self.least_size = 3 * 2**num_layers
        self.smaller = "lower losses.gan.num_layers"

    @property
    def active(self) -> bool:
        """Whether both sides play at the present step."""
        return self.step >= self.start_step

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Create the discriminator; its parameters are frozen except while the trainer steps it.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.

        Raises:
            ValueError: for images without one to three spatial axes.
        """
        if dim not in (1, 2, 3):
            raise ValueError(f"the loss 'gan' needs images of 1, 2 or 3 axes, this model's have {dim}: drop 'gan'")
        if self.opponent is None:
            net = PatchDiscriminator(in_channels, self.channels, self.num_layers, dim=dim)
            self.opponent = net.requires_grad_(False)

    def current_weight(self) -> float | Tensor:  # type: ignore[override]
        """Return the weight at the present step, the balance included; 0 before ``start_step``."""
        return super().current_weight() if self.active else 0.0

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        reconstruction, _ = compared_images(self.name, output, batch)
        if not self.active:
            return reconstruction.new_zeros(())
        return generator_loss(self._judge(reconstruction), self.objective)

    def opponent_loss(self, output: VAEOutput, batch: Batch) -> Tensor:
        """Return the discriminator's loss.

        Args:
            output: the model's output, without its graph.
            batch: the batch it was computed from.

        Returns:
            A scalar.
        """
        fake, real = compared_images(self.name, output, batch)
        return discriminator_loss(self._judge(real), self._judge(fake.detach()), self.objective)

    def _judge(self, images: Tensor) -> Tensor:
        if self.opponent is None:
            raise ValueError("gan has no discriminator yet: call build(...), as the trainer does by itself")
        return self.opponent(images).float()


class PatchDiscriminator(nn.Module):
    """Convolutions that judge overlapping patches: one logit each, not normalised.

    Args:
        in_channels: image channels.
        channels: width of the first layer; doubled at each further one, up to eight times.
        num_layers: layers of stride 2.
        dim: number of spatial axes, 1 to 3.

    Example:
        >>> import torch
        >>> PatchDiscriminator(3, 8)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(self, in_channels: int, channels: int = 64, num_layers: int = 3, *, dim: int = 2) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dim]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dim]
        self.least = 3 * 2**num_layers
        layers: list[nn.Module] = [conv(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, num_layers + 1):
            before, width = width, channels * min(2**index, 8)
            stride = 2 if index < num_layers else 1
            layers += [conv(before, width, 4, stride, 1, bias=False), norm(width), nn.LeakyReLU(0.2)]
        layers.append(conv(width, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, conv):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, norm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def features(self, x: Tensor, layer: int) -> Tensor:
        """Return what a convolution, its normalisation and its activation make of images.

        Args:
            x: images ``[B, C, *S]``.
            layer: which convolution, from 1 to ``num_layers + 1``.

        Returns:
            ``[B, F, *P]``.
        """
        return self.layers[: 3 * layer - 1](x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, 1, *P]`` for images ``[B, C, *S]``.

        Raises:
            ValueError: for images that are too small for its layers.
        """
        if min(x.shape[2:]) < self.least:
            raise ValueError(
                f"got images of {'x'.join(map(str, x.shape[2:]))}; the discriminator needs at least {self.least} along each "
                "axis: lower losses.gan.num_layers, or add --losses.gan.weight 0 to train without it"
            )
        return self.layers(x)


def generator_loss(fake: Tensor, objective: Objective) -> Tensor:
    """Return the generator's side.

    Args:
        fake: logits of reconstructions.
        objective: "hinge", "least_squares" or "vanilla".

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([1.0, -3.0]), "hinge")
        tensor(1.)
    """
    if objective == "hinge":
        return -fake.mean()
    if objective == "least_squares":
        return 0.5 * (fake - 1).square().mean()
    return F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, objective: Objective) -> Tensor:
    """Return the discriminator's side.

    Args:
        real: logits of images.
        fake: logits of reconstructions.
        objective: "hinge", "least_squares" or "vanilla".

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.tensor([0.5]), torch.tensor([-3.0]), "hinge")
        tensor(0.2500)
    """
    if objective == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if objective == "least_squares":
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
