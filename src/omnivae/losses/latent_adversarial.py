"""Losses with an opponent that sees latents: FactorVAE's density ratio and the adversarial autoencoder.

Kim & Mnih, Disentangling by Factorising (FactorVAE), 2018 (https://arxiv.org/abs/1802.05983); Makhzani et al., Adversarial
Autoencoders, 2015 (https://arxiv.org/abs/1511.05644); Tolstikhin et al., Wasserstein Auto-Encoders (WAE-GAN), 2018
(https://arxiv.org/abs/1711.01558). The trainer steps the opponents, see ``omnivae.training.opponents``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omnivae.distributions import at_least_float32
from omnivae.losses.adversarial import discriminator_loss, generator_loss
from omnivae.losses.base import Loss, Weight
from omnivae.losses.disentanglement import demand_vector
from omnivae.losses.divergences import prior_samples
from omnivae.types import Batch, VAEOutput


class LatentOpponent(Loss):
    """Base of the losses with a discriminator of vector latents.

    Args:
        weight: factor in the total.
        width: units of each hidden layer.
        depth: hidden layers.
        discriminator_learning_rate: peak learning rate of the discriminator; the model's where it is ``None``.

    Attributes:
        active: whether the opponent is trained at the present step.
    """

    abstract = True
    needs = frozenset({"vector latent", "one latent"})
    active: bool = True

    def __init__(self, weight: Weight, width: int, depth: int, discriminator_learning_rate: float | None) -> None:
        super().__init__(weight)
        if width < 1 or depth < 1:
            raise ValueError(f"got losses.{self.name}.width={width} and depth={depth}; expected at least 1 of each")
        if discriminator_learning_rate is not None and not 0 < discriminator_learning_rate < math.inf:
            raise ValueError(
                f"got losses.{self.name}.discriminator_learning_rate={discriminator_learning_rate}; expected a positive number "
                "such as 1e-4"
            )
        self.width, self.depth = width, depth
        self.opponent_learning_rate = discriminator_learning_rate
        self.opponent: nn.Sequential | None = None

    def build(self, *, in_channels: int, latent_dim: int, dim: int, latent_axes: int) -> None:
        """Create the discriminator; its parameters are frozen except while the trainer steps it.

        Args:
            in_channels: image channels.
            latent_dim: channels of z.
            dim: number of spatial axes of an image.
            latent_axes: number of spatial axes of z.

        Raises:
            ValueError: for a latent that is no vector.
        """
        demand_vector(self.name, latent_axes)
        if self.opponent is None:
            self.opponent = latent_discriminator(latent_dim, self.width, self.depth).requires_grad_(False)

    def opponent_loss(self, output: VAEOutput, batch: Batch) -> Tensor:
        """Return the discriminator's loss.

        Args:
            output: the model's output, without its graph.
            batch: the batch it was computed from.

        Returns:
            A scalar.
        """
        z = self._codes(output).detach()
        real, fake = self._sides(z, output)
        return discriminator_loss(self._judge(real), self._judge(fake), "vanilla")

    def _sides(self, z: Tensor, output: VAEOutput) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__name__} does not say what its discriminator tells apart")

    def _codes(self, output: VAEOutput) -> Tensor:
        if len(output.latents) != 1:
            raise ValueError(f"the loss {self.name!r} judges one latent, this model has {len(output.latents)}: use kl")
        demand_vector(self.name, output.z.ndim - 2)
        return output.z

    def _judge(self, z: Tensor) -> Tensor:
        if self.opponent is None:
            raise ValueError(f"{self.name} has no discriminator yet: call build(...), as the trainer does by itself")
        return at_least_float32(self.opponent(z))


class Factor(LatentOpponent):
    """FactorVAE's total correlation of z, from a discriminator between q(z) and the product of its marginals.

    ``TC ~ mean log [D(z) / (1 - D(z))]`` in nats (Kim & Mnih, 2018, eq. 3): the mean logit of a discriminator that tells z
    from codes permuted across the batch, each dimension by itself (algorithms 1 and 2; the permuted codes come from the
    same batch). It is added to ``nll`` and ``kl``.

    Args:
        weight: γ; 35 in the paper's dSprites.
        width: units of each hidden layer of the discriminator.
        depth: its hidden layers.
        discriminator_learning_rate: its peak learning rate; the model's where it is ``None``.

    Raises:
        ValueError: for values out of range.
    """

    name = "factor"

    def __init__(
        self,
        weight: Weight = 35.0,
        width: int = 1000,
        depth: int = 6,
        *,
        discriminator_learning_rate: float | None = 1e-4,
    ) -> None:
        super().__init__(weight, width, depth, discriminator_learning_rate)

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        return self._judge(self._codes(output)).mean()

    def _sides(self, z: Tensor, output: VAEOutput) -> tuple[Tensor, Tensor]:
        return z, permute_dimensions(z)


class AAE(LatentOpponent):
    """The adversarial autoencoder's: codes that a discriminator cannot tell from samples of the prior.

    The encoder's side is ``mean softplus(-d(z))``, the discriminator's ``mean [softplus(-d(prior)) + softplus(d(z))] / 2``
    (Makhzani et al., 2015, section 2). With ``mse`` it is an adversarial autoencoder, and WAE-GAN with weight λ (Tolstikhin
    et al., 2018, algorithm 1).

    Args:
        weight: factor in the total.
        width: units of each hidden layer of the discriminator.
        depth: its hidden layers.
        discriminator_learning_rate: its peak learning rate; the model's where it is ``None``.

    Raises:
        ValueError: for values out of range.
    """

    name = "aae"
    needs = frozenset({"vector latent", "one latent", "prior"})

    def __init__(
        self,
        weight: Weight = 1.0,
        width: int = 1000,
        depth: int = 2,
        *,
        discriminator_learning_rate: float | None = None,
    ) -> None:
        super().__init__(weight, width, depth, discriminator_learning_rate)

    def forward(self, output: VAEOutput, batch: Batch) -> Tensor:
        return generator_loss(self._judge(self._codes(output)), "vanilla")

    def _sides(self, z: Tensor, output: VAEOutput) -> tuple[Tensor, Tensor]:
        return prior_samples(self.name, output.latents[0]).to(z.dtype), z


def latent_discriminator(latent_dim: int, width: int, depth: int) -> nn.Sequential:
    """Return a perceptron from codes to one logit, leaky ReLUs of slope 0.2 (FactorVAE's, appendix A).

    Args:
        latent_dim: dimensions of z.
        width: units of each hidden layer.
        depth: hidden layers.

    Returns:
        A network from ``[B, D]`` to ``[B, 1]``.
    """
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else latent_dim, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def permute_dimensions(z: Tensor) -> Tensor:
    """Return codes whose dimensions are shuffled over the batch, each by itself (Kim & Mnih, 2018, algorithm 1).

    Args:
        z: ``[B, D]``.

    Returns:
        ``[B, D]``: every column has the same values, in an order of its own.

    Example:
        >>> z = torch.arange(6.0).reshape(3, 2)
        >>> bool((permute_dimensions(z).sort(0).values == z).all())
        True
    """
    return z.gather(0, torch.rand(z.shape, device=z.device).argsort(0))
