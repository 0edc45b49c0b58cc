"""M2, a VAE with a class that is known of a few images only (Kingma et al., Semi-supervised Learning with Deep Generative Models,
2014).

``p(y) p(z) p(x|y, z)`` with ``q(y|x) q(z|x, y)``. The class is the model's condition; where it is not known it is a latent like
z, and the classifier q(y|x) is its posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from omnivae.distributions import DiagonalGaussian, at_least_float32
from omnivae.models.vae import VAE
from omnivae.types import Latent, Network, SemiSupervisedOutput


class ClassPosterior:
    """q(y|x) for one batch; of an image whose class is known, all on that class.

    Args:
        log_prob: log q(y|x) in nats, ``[B, K]``.
        choice: the class that the batch went through the model with, ``[B]``.
    """

    input_size: tuple[int, ...] | None = None
    cond: Tensor | None = None

    def __init__(self, log_prob: Tensor, choice: Tensor) -> None:
        self.log_prob_of, self.choice = log_prob, choice

    @property
    def shape(self) -> torch.Size:
        """``[B, K]``."""
        return self.log_prob_of.shape

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none."""
        return {}

    def mode(self) -> Tensor:
        """Return the likeliest class, one-hot, ``[B, K]``."""
        return F.one_hot(self.log_prob_of.argmax(1), self.shape[1]).to(self.log_prob_of)

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Return the class that was drawn, k times: z ``[K, B, classes]`` one-hot and its log-probability ``[K, B]``."""
        z = F.one_hot(self.choice, self.shape[1]).to(self.log_prob_of).expand(k, *self.shape)
        return z, self.distribution().log_prob(z)

    def distribution(self) -> OneHotCategorical:
        """Return q(y|x) as a torch distribution, batch shape ``[B]``, event shape ``[K]``."""
        return OneHotCategorical(logits=self.log_prob_of, validate_args=False)


class SemiSupervisedVAE(VAE):
    """A conditional VAE whose condition is a class that it infers where it is not told (M2, Kingma et al. 2014, section 2).

    The condition ``[B, K]`` is one-hot; a row of zeros, or no condition at all, means that the class is not known. Then
    ``encode`` takes the likeliest one, training draws one, and ``output.others`` holds what the loss ``m2`` needs to sum over all.

    Args:
        classifier: network from images to flat features, from which q(y|x) is a linear map.
        encoder: network from images and a class to features.
        posterior: head from features to q(z|x, y).
        decoder: network from z and a class to likelihood parameters.
        likelihood: module from parameters to p(x|y, z).
        prior: module that returns p(z).
        num_classes: K, at least 2; p(y) is uniform.
        value_range: lowest and highest pixel value.
        image_size: the one canvas that the model accepts.

    Raises:
        ValueError: for fewer than two classes, or networks that take another condition.

    Example:
        >>> import omnivae
        >>> model = omnivae.m2_vae(image_size=8, hidden=(16,), latent_dim=2, num_classes=3).eval()
        >>> [round(float(total), 3) for total in model.classify(torch.zeros(2, 1, 8, 8)).exp().sum(1)]
        [1.0, 1.0]
    """

    def __init__(
        self,
        classifier: Network,
        encoder: Network,
        posterior: nn.Module,
        decoder: Network,
        likelihood: nn.Module,
        prior: nn.Module,
        *,
        num_classes: int,
        value_range: Sequence[float] = (0.0, 1.0),
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder, posterior, decoder, likelihood, prior, value_range=value_range, image_size=image_size)
        if num_classes < 2 or self.cond_dim != num_classes:
            raise ValueError(
                f"got num_classes={num_classes} and networks with cond_dim={self.cond_dim}; expected the same number, at least 2"
            )
        self.num_classes = num_classes
        self.classifier = classifier
        self.class_head = nn.Linear(classifier.out_channels, num_classes)

    #: An image whose class is not given is classified.
    infers_cond = True

    def classify(self, x: Tensor) -> Tensor:
        """Return log q(y|x) in nats.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.

        Returns:
            ``[B, K]`` float32.
        """
        self._check(x)
        features = self.classifier(self._pad(x).to(self.class_head.weight.dtype))
        with torch.autocast(device_type=x.device.type, enabled=False):
            return F.log_softmax(at_least_float32(self.class_head(features.to(self.class_head.weight.dtype))), dim=1)

    def encode(self, x: Tensor, cond: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z|x, y) for the class given, or the likeliest where none is.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            cond: classes ``[B, K]``, one-hot or zeros.

        Returns:
            The posterior; ``decode`` takes it, under the same class.
        """
        if cond is None or not bool(self._known(cond).all()):
            _, choice = self._choice(self.classify(x), cond, sample=False)
            cond = self._one_hot(choice, x)
        return super().encode(x, cond)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, *, num_samples: int = 1, sample: bool | None = None
    ) -> SemiSupervisedOutput:
        """Classify, encode, sample and decode.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            cond: classes ``[B, K]``, one-hot or zeros.
            num_samples: posterior samples for each image.
            sample: draw y and z (``True``) or take their modes (``False``); in training mode they are drawn by default.

        Returns:
            The output under the class that is known or chosen, with two latents, z and y; and under every other class of those
            images whose class is not known.
        """
        drawn = (self.training or num_samples > 1) if sample is None else sample
        log_class = self.classify(x)
        known, choice = self._choice(log_class, cond, sample=drawn)
        chosen = super().forward(x, self._one_hot(choice, x), num_samples=num_samples, sample=drawn)
        # Every class but the chosen one, of the images whose class is not known: pairs of an image and a class.
        classes = torch.arange(self.num_classes, device=x.device)
        image, label = ((classes != choice[:, None]) & ~known[:, None]).nonzero(as_tuple=True)
        others = None
        if len(image):
            others = super().forward(x[image], self._one_hot(label, x), num_samples=num_samples, sample=drawn)
        told = (self._one_hot(choice, log_class) + 1e-30).log()
        posterior = ClassPosterior(torch.where(known[:, None], told, log_class), choice)
        z, log_q = posterior.rsample(num_samples)
        prior = OneHotCategorical(logits=torch.zeros_like(log_class), validate_args=False)
        return SemiSupervisedOutput(
            latents=(*chosen.latents, Latent(posterior, prior, z, log_q if drawn else None)),
            likelihood=chosen.likelihood,
            log_class=log_class,
            known=known,
            choice=choice,
            others=others,
            others_image=image,
            others_class=label,
        )

    def likelihood(
        self, z: Tensor | DiagonalGaussian, cond: Tensor | None = None, *, size: Sequence[int] | None = None
    ) -> Distribution:
        """Return p(x|y, z).

        Args:
            z: latents ``[B, C]`` or K samples ``[K, B, C]``, or a posterior (its mode).
            cond: classes ``[B, K]``, one-hot; for a posterior also zeros, or none: the class that it was encoded under.
            size: spatial size to crop to.

        Returns:
            Distribution of batch shape ``[B]`` (``[K, B]``) and event shape ``[C, *S]``.

        Raises:
            ValueError: for latents without a class: z does not say which it is.
        """
        told = None if isinstance(z, Tensor) else z.cond
        if cond is None:
            cond = told
        elif told is not None:
            cond = torch.where(self._known(cond)[:, None], cond, told.to(cond))
        if cond is None or (told is None and not bool(self._known(cond).all())):
            raise ValueError(
                "got latents of images whose class is not known, and z does not say which it is: give a one-hot class for each "
                "(of an image, classify(x) infers it)"
            )
        return super().likelihood(z, cond, size=size)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        size: Sequence[int] | None = None,
        cond: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw images: y from p(y) where no class is given, z from p(z), then the mean of p(x|y, z).

        Args:
            n: number of images.
            size: their spatial size; the canvas by default.
            cond: classes, one-hot ``[n, K]``.
            temperature: multiplies the prior's standard deviation.
            top_k: not for this prior.
            generator: source of randomness on the CPU.

        Returns:
            Images ``[n, C, *S]`` in the value range.
        """
        if cond is None:
            choice = torch.randint(self.num_classes, (n,), generator=generator)
            cond = self._one_hot(choice, self.class_head.weight)
        given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "generator": generator}
        return super().sample(n, size=size, cond=cond, **given)

    # -- inside

    def _known(self, cond: Tensor) -> Tensor:
        if cond.ndim != 2 or cond.shape[1] != self.num_classes:
            raise ValueError(f"got a condition of shape {tuple(cond.shape)}; expected [B, {self.num_classes}]")
        if cond.device.type == "cpu" and not bool(torch.isfinite(cond).all()):
            raise ValueError("got NaN or infinite values in the condition; a class that is not known is a row of zeros")
        return cond.any(dim=1)

    def _choice(self, log_class: Tensor, cond: Tensor | None, *, sample: bool) -> tuple[Tensor, Tensor]:
        """Return whether each image's class is known, and its class: the given, a drawn, or the likeliest one."""
        choice = torch.multinomial(log_class.detach().exp(), 1)[:, 0] if sample else log_class.argmax(1)
        if cond is None:
            return torch.zeros_like(choice, dtype=torch.bool), choice
        if len(cond) != len(log_class):
            raise ValueError(f"got {len(cond)} conditions for {len(log_class)} images; expected one for each")
        known = self._known(cond)
        return known, torch.where(known, cond.argmax(1), choice)

    def _one_hot(self, label: Tensor, like: Tensor) -> Tensor:
        dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        return F.one_hot(label, self.num_classes).to(like.device, dtype)
