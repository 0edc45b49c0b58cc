"""Losses whose weight follows the gradients (Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021).

The weight is ``lambda = |grad of the reconstruction terms| / (|grad of this loss| + eps)`` (eq. 7). The paper takes the
gradients at the decoder's last layer; here they are taken at what that layer produces, a tensor of the model's output, so
that no layer has to be found by name.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent

from omnivae.losses.base import Loss, Weight
from omnivae.types import VAEOutput


class AdaptiveLoss(Loss):
    """Base of the losses that are balanced against the reconstruction terms.

    Args:
        weight: factor in the total, multiplied by the balance where ``adaptive`` is set.
        adaptive: balance it; ``False`` leaves the weight as it is.

    Attributes:
        through_decoder: whether the balance needs the gradient of the decoder with respect to z.
        eps: keeps the denominator positive.
        largest: upper limit of the balance.
        balance: the last lambda, a scalar tensor; 1 before the first training step.
        joint: whether every process of a distributed run is balancing its share of the same batch, so that the gradients
            are those of the whole batch.
    """

    abstract = True

    through_decoder: bool = False
    eps: float = 1e-4
    largest: float = 1e4
    joint: bool = False

    def __init__(self, weight: Weight = 1.0, adaptive: bool = True) -> None:
        super().__init__(weight)
        self.adaptive = adaptive
        self.balance: Tensor | float = 1.0

    @property
    def inside(self) -> str | None:
        """``"adaptive=true"`` where the balance needs the gradient of the decoder."""
        return "adaptive=true" if self.adaptive and self.through_decoder else None

    def current_weight(self) -> float | Tensor:  # type: ignore[override]
        """Return the weight at the present step, the balance included."""
        return super().current_weight() * self.balance

    def rebalance(self, value: Tensor, output: VAEOutput, gradient: Tensor) -> None:
        """Set the balance from gradient norms at the likelihood's parameters.

        Args:
            value: this loss, with its graph.
            output: the model's output.
            gradient: of the reconstruction terms with respect to :func:`pixel_parameters`.
        """
        if value.requires_grad:
            pixels = pixel_parameters(self.name, output)
            (own,) = torch.autograd.grad(value, pixels, retain_graph=True)
            self._set_balance(gradient, own)

    def _set_balance(self, reference: Tensor, own: Tensor) -> None:
        # Kept on the device: reading the number would make every step wait.
        norms = torch.stack([reference.detach().float().norm(), own.detach().float().norm()])
        if self.joint:
            # The whole batch's loss is the mean over N shares: so is its gradient, one share beside the other.
            norms = norms.square()
            torch.distributed.all_reduce(norms)
            norms = norms.sqrt() / torch.distributed.get_world_size()
        ratio = norms[0] / (norms[1] + self.eps)
        self.balance = ratio.clamp(0.0, self.largest)


def pixel_parameters(name: str, output: VAEOutput) -> Tensor:
    """Return the tensor that every reconstruction term depends on: location or logits of p(x|z).

    Args:
        name: the loss that asks, for the message.
        output: the model's output.

    Returns:
        ``[K, B, C, *S]``, or with levels last for categorical pixels.

    Raises:
        ValueError: when the likelihood has neither.
    """
    likelihood = output.likelihood
    base = likelihood.base_dist if isinstance(likelihood, Independent) else likelihood
    for attribute in ("loc", "logits"):
        value = getattr(base, attribute, None)
        if isinstance(value, Tensor):
            return value
    raise ValueError(
        f"the adaptive weight of {name!r} needs a likelihood with a location or logits, got {type(base).__name__}: "
        f"set losses.{name}.adaptive to false, or use a gaussian or laplace likelihood"
    )


def reconstruction_gradient(name: str, total: Tensor, output: VAEOutput) -> Tensor:
    """Return the gradient of the reconstruction terms with respect to :func:`pixel_parameters`.

    Terms on the latent alone, such as the KL, do not depend on the pixels and drop out.

    Args:
        name: the loss that asks, for the message.
        total: weighted sum of the other losses, with its graph.
        output: the model's output.

    Returns:
        Shape of the pixel parameters.

    Raises:
        ValueError: when no other loss depends on the pixels.
    """
    pixels = pixel_parameters(name, output)
    gradient = None
    if total.requires_grad and pixels.requires_grad:
        (gradient,) = torch.autograd.grad(total, pixels, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"the adaptive weight of {name!r} is relative to losses on the reconstruction, and there is none: add l1 or nll, "
            f"or set losses.{name}.adaptive to false"
        )
    return gradient
