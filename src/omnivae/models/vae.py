"""The VAE: encoder network, posterior head, prior, decoder network and likelihood, wired together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from omnivae.component import Component
from omnivae.distributions import DiagonalGaussian, unwhiten, whiten
from omnivae.models.conditions import agreed_cond_dim, agreed_support
from omnivae.models.drawing import draw
from omnivae.models.storage import load_model, save_model
from omnivae.types import Latent, Network, VAEOutput, strides


class VAE(nn.Module, Component):
    """Variational autoencoder over images, signals or volumes (Kingma & Welling, Auto-Encoding Variational Bayes, 2013).

    Any spatial size >= 1 goes through: sizes that the encoder's stride does not divide are padded by repeating the last
    row and column, the original size is kept on the posterior, and decoding crops back to it.

    Args:
        encoder: network from images to features.
        posterior: head from features to q(z|x).
        decoder: network from z to likelihood parameters.
        likelihood: module from parameters to p(x|z).
        prior: module that returns p(z); ``None`` where the posterior has no density to compare with one.
        value_range: lowest and highest pixel value that the model is trained on; (-1, 1) or (0, 1) by convention.
        image_size: the one canvas that the model accepts (vector latents), or ``None`` when any size will do. Smaller
            images are padded to it.

    Example:
        >>> import omnivae
        >>> model = omnivae.conv_vae(in_channels=1, image_size=28, latent_dim=8).eval()
        >>> reconstruction, mean, logvar = model(torch.zeros(2, 1, 28, 28))
        >>> reconstruction.shape, mean.shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 8]))
        >>> model.decode(model.encode(torch.zeros(2, 1, 28, 28))).shape
        torch.Size([2, 1, 28, 28])
    """

    pixels: bool = True  #: losses and metrics of pixels apply

    def __init__(
        self,
        encoder: Network,
        posterior: nn.Module,
        decoder: Network,
        likelihood: nn.Module,
        prior: nn.Module | None,
        *,
        value_range: Sequence[float] = (-1.0, 1.0),
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.value_range = checked_range(likelihood, value_range)
        self.encoder = encoder
        self.posterior = posterior
        self.decoder = decoder
        self.likelihood_head = likelihood
        self.prior = prior
        agreed_support(posterior, prior)
        #: Size E of the condition that every call takes, or ``None`` for a model without one.
        self.cond_dim = agreed_cond_dim(encoder, decoder, prior)
        self.image_size = None if image_size is None else tuple(int(n) for n in image_size)
        #: Free-form facts saved as ``statistics.json`` (how images were prepared, latent statistics).
        self.statistics: dict[str, Any] = {}

    # -- shapes

    @property
    def in_channels(self) -> int:
        """Image channels."""
        return self.encoder.in_channels

    @property
    def latent_dim(self) -> int:
        """Channels of z."""
        return self.posterior.latent_dim  # type: ignore[return-value]

    @property
    def dim(self) -> int:
        """Number of spatial axes of the input."""
        return self.encoder.dim  # type: ignore[attr-defined]

    def padded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size that an image of ``size`` is padded to.

        Args:
            size: spatial size.

        Returns:
            Each axis rounded up to a multiple of the stride, or as the encoder says; or the model's one canvas.

        Raises:
            ValueError: when the image is larger than the one canvas of the model.
        """
        stride = strides(self.encoder, len(size))
        if self.image_size is None:
            own = getattr(self.encoder, "padded_size", None)  # causal video: one frame more than a multiple
            if own is not None:
                return own(size)
            return tuple(math.ceil(n / s) * s for n, s in zip(size, stride, strict=True))
        if any(n > m for n, m in zip(size, self.image_size, strict=True)):
            raise ValueError(
                f"got an image of size {_times(size)}; this model has a vector latent and takes at most "
                f"{_times(self.image_size)}: resize the image, or train a model with a spatial latent"
            )
        return tuple(math.ceil(n / s) * s for n, s in zip(self.image_size, stride, strict=True))

    def latent_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of z for images of ``size``; ``()`` for a vector latent."""
        if self.image_size is not None:
            return ()
        padded = self.padded_size(size)
        return tuple(math.ceil(n / s) for n, s in zip(padded, strides(self.encoder, len(padded)), strict=True))

    @property
    def float32_modules(self) -> tuple[str, ...]:
        """Parts that stay in float32 in low-precision inference, because the low precision cannot hold what they compute."""
        parts = (getattr(network, "float32_modules", ()) for network in (self.encoder, self.decoder))
        return tuple(name for names in parts for name in names)

    # -- the model

    def encode(self, x: Tensor, cond: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z|x); deterministic, no sampling.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            cond: condition, ``[B, E]``.

        Returns:
            The posterior; ``decode`` takes it as it is, and under the same condition unless told another.

        Raises:
            ValueError: for a wrong number of axes or channels, a size of zero, or NaN.
        """
        self._check(x)
        if cond is not None and _readable(cond) and not bool(torch.isfinite(cond).all()):
            raise ValueError("got NaN or infinite values in the condition; leave out or mend the images that have them")
        size = tuple(x.shape[2:])
        posterior = self.posterior(self.encoder(_cast(self._pad(x), self.encoder), cond))
        posterior.input_size, posterior.cond = size, cond
        return posterior

    def decode(
        self, z: Tensor | DiagonalGaussian, cond: Tensor | None = None, *, size: Sequence[int] | None = None
    ) -> Tensor:
        """Return the mean of p(x|z).

        Args:
            z: latents ``[B, C, *S]``, or a posterior, whose mode is decoded and whose image size is restored.
            cond: condition, ``[B, E]``; for a posterior the one that it was encoded under by default.
            size: spatial size to crop to; for a posterior the size of its image by default.

        Returns:
            Images ``[B, C, *S]``.
        """
        return self.likelihood(z, cond, size=size).mean

    def likelihood(
        self, z: Tensor | DiagonalGaussian, cond: Tensor | None = None, *, size: Sequence[int] | None = None
    ) -> Distribution:
        """Return p(x|z).

        Args:
            z: latents ``[B, C, *S]`` or K samples ``[K, B, C, *S]``, or a posterior (its mode).
            cond: condition, ``[B, E]``; for a posterior the one that it was encoded under by default.
            size: spatial size to crop to; for a posterior the size of its image by default.

        Returns:
            Distribution of batch shape ``[B]`` (``[K, B]``) and event shape ``[C, *S]``.
        """
        if not isinstance(z, Tensor):
            size = z.input_size if size is None else size
            cond = getattr(z, "cond", None) if cond is None else cond
            z = z.mode()
        latent_ndim = self._latent_ndim
        batch = z.shape[: z.ndim - latent_ndim]
        if len(batch) not in (1, 2):
            raise ValueError(
                f"got z of shape {tuple(z.shape)}; expected [B, {self.latent_dim}{', *S' * (latent_ndim > 1)}] or the same "
                "with a leading axis of samples"
            )
        if z.shape[len(batch)] != self.latent_dim:
            raise ValueError(f"got z with {z.shape[len(batch)]} channels; this model's latent has {self.latent_dim}")
        if len(batch) == 2 and cond is not None:
            cond = cond.repeat(batch[0], *[1] * (cond.ndim - 1))
        flat = z.flatten(0, 1) if len(batch) == 2 else z
        params = self._pixel_parameters(flat, cond)
        if size is None and self.image_size is not None:
            size = self.image_size
        if size is not None:
            params = params[(..., *(slice(0, n) for n in size))]  # type: ignore[index]
        if len(batch) == 2:
            params = params.unflatten(0, batch)
        return self.likelihood_head(params, batch_ndim=len(batch))

    def forward(
        self, x: Tensor, cond: Tensor | None = None, *, num_samples: int = 1, sample: bool | None = None
    ) -> VAEOutput:
        """Encode, sample and decode.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            cond: condition, ``[B, E]``.
            num_samples: posterior samples K for each image.
            sample: draw z from the posterior (``True``) or take its mode (``False``, K = 1). By default the model samples
                in training mode or when K > 1, so that ``model.eval()(x)`` is deterministic.

        Returns:
            Posterior, prior, samples and p(x|z); unpacks as ``(reconstruction, mean, logvar)``.
        """
        posterior = self.encode(x, cond)
        if sample is None:
            sample = self.training or num_samples > 1
        log_q: Tensor | None
        if sample:
            z, log_q = posterior.rsample(num_samples)
        else:
            if num_samples > 1:
                raise ValueError(f"got sample=False and num_samples={num_samples}; a posterior has one mode")
            z, log_q = posterior.mode().unsqueeze(0), None
        prior = None if self.prior is None else self.prior(posterior.shape, self.encode, cond)
        likelihood = self.likelihood(z, cond, size=posterior.input_size)
        return VAEOutput(latents=(Latent(posterior, prior, z, log_q),), likelihood=likelihood)

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
        """Draw images: z from the prior, then the mean of p(x|z).

        Args:
            n: number of images.
            size: their spatial size; needed where the latent is spatial and the model does not know its training size.
            cond: condition, ``[n, E]``.
            temperature: multiplies the prior's standard deviation; of a mixture that of every component, of a flow that of
                its base; divides the logits of a prior over codes.
            top_k: draw from the likeliest so many codes at each step; for priors over codes.
            generator: source of randomness on the CPU, for samples that do not depend on the global seed.

        Returns:
            Images ``[n, C, *S]`` in the value range.

        Raises:
            ValueError: when the size is needed and unknown, or the model has no prior.
        """
        if self.prior is None:
            raise ValueError(
                f"this model has no prior to sample from: its {type(self.posterior).__name__} has no density. "
                + self._without_prior
            )
        size = size or self.image_size or self.statistics.get("image_size")
        if size is None:
            raise ValueError(
                "the latent of this model is spatial: say which size to sample, as in sample(4, size=(256, 256))"
            )
        if n < 1 or min(size) < 1:
            raise ValueError(f"got n={n} and size={tuple(size)}; expected at least one image of at least one pixel")
        shape = torch.Size((n, self.latent_dim, *self.latent_size(size)))
        prior = self.prior(shape, self.encode, cond)
        z = draw(self, prior, temperature, top_k=top_k, generator=generator)
        return self.decode(z, cond, size=size).clamp(*self.value_range)

    # -- three names for the stages of a latent: pixels, raw latents (what encode and decode speak), whitened latents

    def whiten(self, z: Tensor, *, kind: Literal["channel", "scale"] = "channel") -> Tensor:
        """Return whitened latents, which a model of latents learns from: (z - mean) / std, or z * scale_factor.

        Args:
            z: raw latents ``[B, C, *S]``, one of them ``[C, *S]``, or K samples ``[K, B, C, *S]``.
            kind: "channel" for each channel's mean and standard deviation over the data, "scale" for one factor.

        Returns:
            The same shape, float32 (float64 stays float64).

        Raises:
            ValueError: when the model has no latent statistics, or ``z`` has other channels.
        """
        return whiten(z, self._latent_statistics(), axis=self._channel_axis(z), kind=kind)

    def unwhiten(self, z: Tensor, *, kind: Literal["channel", "scale"] = "channel") -> Tensor:
        """Return raw latents, ready to decode, from whitened ones: the inverse of :meth:`whiten`.

        Args:
            z: whitened latents, shaped as for :meth:`whiten`.
            kind: as for :meth:`whiten`.

        Returns:
            The same shape.
        """
        return unwhiten(z, self._latent_statistics(), axis=self._channel_axis(z), kind=kind)

    # -- convenience

    def enable_gradient_checkpointing(self, enabled: bool = True) -> Self:
        """Recompute activations in the backward pass instead of keeping them: same gradients, less memory.

        Args:
            enabled: switch it off with ``False``.

        Returns:
            The model.

        Raises:
            ValueError: when neither network supports it.
        """
        found = False
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = enabled  # type: ignore[assignment]
                found = True
        if not found:
            raise ValueError(f"no network of this {type(self).__name__} supports gradient checkpointing")
        return self

    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a model directory: ``config.json``, ``model.safetensors``, ``statistics.json``, ``README.md``.

        Args:
            directory: created where missing.
        """
        save_model(self, Path(directory))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load a model directory written by :meth:`save_pretrained`, in evaluation mode.

        Args:
            directory: the model directory, or a run that holds one in ``model/``.

        Returns:
            The model; its outputs equal the saved model's bit for bit.

        Raises:
            FileNotFoundError: when there is no such directory.
            ValueError: when the directory holds another architecture or does not fit its own weights.
        """
        model = load_model(directory)
        if not isinstance(model, cls):
            raise ValueError(
                f"{directory} holds a {type(model).__name__}, not a {cls.__name__}; load it with VAE.from_pretrained"
            )
        return model

    # -- inside

    def _pixel_parameters(self, z: Tensor, cond: Tensor | None) -> Tensor:
        """Return the likelihood's parameters for latents ``[B, C, *S]``."""
        return self.decoder(_cast(z, self.decoder), cond)

    @property
    def _without_prior(self) -> str:
        if "indices" in self.posterior.provides:  # type: ignore[operator]
            return "Train a prior over its codes with `omnivae prior RUN`, or reconstruct images with it"
        return "Reconstruct images with it, or train a model with a gaussian posterior"

    @property
    def _latent_ndim(self) -> int:
        return 1 if self.image_size is not None else 1 + self.dim

    def _channel_axis(self, z: Tensor) -> int:
        axis = z.ndim - self._latent_ndim
        if axis not in (0, 1, 2):
            raise ValueError(
                f"got z of shape {tuple(z.shape)}; expected a latent of {self._latent_ndim} axes, or a batch"
            )
        return axis

    def _latent_statistics(self) -> dict[str, Any]:
        statistics = self.statistics.get("latent")
        if statistics is None:
            raise ValueError(
                "this model has no latent statistics to whiten with: measure them with `omnivae calibrate MODEL`"
            )
        return statistics

    def _pad(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        target = self.padded_size(size)
        if tuple(size) == target:
            return x
        # Index the last row and column again: replicates for any amount, also where the image is one pixel wide
        # (torch's replicate padding refuses some dtypes and layouts).
        for axis, (have, want) in enumerate(zip(size, target, strict=True), start=2):
            if have != want:
                index = torch.arange(want, device=x.device).clamp_(max=have - 1)
                x = x.index_select(axis, index)
        return x

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 + self.dim:
            raise ValueError(
                f"got a tensor of shape {tuple(x.shape)}; expected [B, {self.in_channels}, {'HWD'[: self.dim]}]"
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"got {x.shape[1]} channels; this model takes {self.in_channels}: convert the images, or build the model with "
                f"in_channels={x.shape[1]}"
            )
        if min(x.shape[2:]) < 1:
            raise ValueError(f"got an empty image, shape {tuple(x.shape)}")
        if x.numel() and _readable(x) and not bool(torch.isfinite(x.sum())):
            bad = int((~torch.isfinite(x)).sum())
            if bad:
                raise ValueError(
                    f"got {bad} NaN or infinite values in the input; find and mend the images that hold them"
                )


def checked_range(likelihood: nn.Module, value_range: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and highest pixel value of a model with this likelihood.

    Args:
        likelihood: module from parameters to p(x|z).
        value_range: lowest and highest pixel value.

    Returns:
        Both as numbers.

    Raises:
        ValueError: for an empty range, or one that is not the likelihood's.
    """
    low, high = float(value_range[0]), float(value_range[1])
    if not low < high:
        raise ValueError(f"got value_range=({low}, {high}); expected lowest < highest, such as (-1, 1)")
    if getattr(likelihood, "unit_range", False) and (low, high) != (0.0, 1.0):
        raise ValueError(
            f"{type(likelihood).__name__} is defined on [0, 1], got value_range=({low}, {high}); "
            "set value_range to [0, 1] or choose the gaussian or laplace likelihood"
        )
    levels = getattr(likelihood, "value_range", (low, high))
    if tuple(levels) != (low, high):
        raise ValueError(
            f"the likelihood's levels span {tuple(levels)} and the model's value_range is {(low, high)}; make them equal"
        )
    return low, high


def _cast(x: Tensor, network: Any) -> Tensor:
    # A model cast to bfloat16 as a whole still samples in float32; under autocast the layers cast for themselves.
    parameter = next(network.parameters(), None)
    if hasattr(network, "float32_modules"):
        return x  # set up for low-precision inference: it casts its own inputs
    if parameter is None or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(parameter.dtype)


def _readable(x: Tensor) -> bool:
    # On an accelerator a look at values would wait for the device; there the training loop checks before the copy.
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
