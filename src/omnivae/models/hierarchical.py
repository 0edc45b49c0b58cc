"""VAEs with several latents, each of which depends on those above it: p(z_1) p(z_2|z_1) ... p(x|z_1..L).

Levels are counted from the top: level 0 is drawn first. Shapes: K samples, B images, C_l channels and size S_l of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from omnivae.models.vae import VAE, _cast
from omnivae.models.walk import Choose, Walk, coarsen, gaussian, refine
from omnivae.posteriors import LevelPosterior
from omnivae.types import VAEOutput


class BottomUp(Protocol):
    """A network from images to one feature tensor for each level, the top one first."""

    in_channels: int
    dim: int

    @property
    def stride(self) -> int | tuple[int, ...]: ...

    def __call__(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]: ...


class TopDown(Protocol):
    """A network that walks down the levels and asks for z at each of them.

    Attributes:
        level_channels: channels of z at each level.
        level_scales: size of each level's grid, as a multiple of the top one's.
    """

    level_channels: tuple[int, ...]
    level_scales: tuple[int, ...]

    def __call__(
        self, batch: int, grid: tuple[int, ...], features: tuple[Tensor, ...] | None, choose: Choose
    ) -> Tensor: ...


class HierarchicalVAE(VAE):
    """A VAE with L latents: it generates by ``p(z_0) prod_l p(z_l|z_<l) p(x|z)`` and infers by ``prod_l q(z_l|x, z_<l)``.

    ``forward`` returns the same output as a VAE's, with L latents, so the losses add up over them; the KL of each level is in
    closed form given the samples above. What a VAE has one tensor for (``encode``, ``decode``, ``sample``, whitening,
    interpolation) speaks all levels packed into one: channels side by side on the top level's grid, those of a finer level
    moved from space into channels. ``decode(encode(x))`` is the deterministic reconstruction.

    Args:
        encoder: from images to a feature tensor for each level.
        posterior: how a level's posterior is made from its parameters and its prior.
        decoder: walks down the levels; it holds what computes the priors.
        likelihood: module from parameters to p(x|z).
        value_range: lowest and highest pixel value that the model is trained on.
        image_size: the one canvas that the model accepts (vector latents), or ``None`` when any size will do.

    Raises:
        ValueError: when the parts do not fit.

    Example:
        >>> import omnivae
        >>> model = omnivae.hierarchical_vae(in_channels=1, image_size=28).eval()
        >>> [tuple(latent.z.shape) for latent in model(torch.zeros(2, 1, 28, 28)).latents]
        [(1, 2, 8), (1, 2, 32)]
        >>> model.encode(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 40])
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        encoder: BottomUp,
        posterior: LevelPosterior,
        decoder: TopDown,
        likelihood: nn.Module,
        *,
        value_range: Sequence[float] = (-1.0, 1.0),
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            encoder,  # type: ignore[arg-type]
            posterior,
            decoder,  # type: ignore[arg-type]
            likelihood,
            None,
            value_range=value_range,
            image_size=image_size,
        )
        del self.prior  # a method here: the levels below the top have theirs in the decoder
        if posterior.latent_dim != sum(self._packed_channels()):
            raise ValueError(
                f"got a posterior of latent_dim={posterior.latent_dim}; the levels of this decoder have "
                f"{sum(self._packed_channels())} channels on the top level's grid"
            )

    @property
    def num_levels(self) -> int:
        """Number of latents L."""
        return len(self.decoder.level_channels)

    # -- the model

    def encode(self, x: Tensor, cond: Tensor | None = None) -> HierarchicalPosterior:  # type: ignore[override]
        """Return q(z|x) of all levels together; deterministic.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            cond: must be ``None``.

        Returns:
            The posterior; ``decode`` takes it as it is.

        Raises:
            ValueError: for a condition, a wrong number of axes or channels, a size of zero, or NaN.
        """
        features, grid = self._features(x, cond)
        return HierarchicalPosterior(self, features, len(x), grid, tuple(x.shape[2:]))

    def forward(
        self, x: Tensor, cond: Tensor | None = None, *, num_samples: int = 1, sample: bool | None = None
    ) -> VAEOutput:
        """Encode, then walk down the levels, drawing each z given those above.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            cond: must be ``None``.
            num_samples: samples K of all latents together for each image.
            sample: draw (``True``) or take the mode of each level given those above (``False``, K = 1); by default it draws
                in training mode or when K > 1.

        Returns:
            L latents, the top one first, and p(x|z).
        """
        if sample is None:
            sample = self.training or num_samples > 1
        if num_samples < 1 or (num_samples > 1 and not sample):
            raise ValueError(
                f"got num_samples={num_samples} and sample={sample}; expected at least one sample, and one without drawing"
            )
        features, grid = self._features(x, cond)
        walk = Walk(self, len(x), num_samples if sample else None)
        params = self._walk(walk, len(x) * num_samples, grid, features)
        params = params[(..., *(slice(0, n) for n in x.shape[2:]))]  # type: ignore[index]
        likelihood = self.likelihood_head(params.unflatten(0, (num_samples, len(x))), batch_ndim=2)
        return VAEOutput(latents=walk.latents(), likelihood=likelihood)

    def prior(  # type: ignore[override]
        self, latent_shape: torch.Size, encode: Any = None, cond: Tensor | None = None
    ) -> AncestralPrior:
        """Return p(z_0) prod_l p(z_l|z_<l) over packed latents.

        Args:
            latent_shape: ``[B, latent_dim, *S]``.
            encode: not used: the levels know their priors.
            cond: must be ``None``.

        Returns:
            A distribution of batch shape ``[B]`` and event shape ``[latent_dim, *S]``.

        Raises:
            ValueError: for a condition.
        """
        self._refuse(cond)
        return AncestralPrior(self, torch.Size(latent_shape))

    @torch.no_grad()
    def resample(
        self, x: Tensor, keep: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Keep the upper levels of images and draw the lower ones from the prior: what the upper levels know of an image.

        Args:
            x: images in the model's value range, ``[B, C, *S]``.
            keep: levels, counted from the top, that take their posterior's mode, 0 to L. L gives the reconstruction.
            temperature: multiplies the priors' standard deviation; 0 takes their mean.
            generator: source of randomness on the CPU, for samples that do not depend on the global seed.

        Returns:
            Images ``[B, C, *S]`` in the value range.

        Raises:
            ValueError: for a number of levels that the model does not have.
        """
        if not 0 <= keep <= self.num_levels:
            raise ValueError(
                f"got keep={keep}; this model has {self.num_levels} levels: expected 0 to {self.num_levels}"
            )
        features, grid = self._features(x, None)
        walk = Walk(self, len(x), None, keep=keep, temperature=temperature, generator=generator)
        params = self._walk(walk, len(x), grid, features)
        params = params[(..., *(slice(0, n) for n in x.shape[2:]))]  # type: ignore[index]
        return self.likelihood_head(params).mean.clamp(*self.value_range)

    def agreement(self, output: VAEOutput, x: Tensor) -> dict[str, Tensor]:
        """Return how near the decoded modes of all levels are to the images: ``psnr`` in dB, the mean over images.

        Args:
            output: for these images.
            x: ``[B, C, *S]``.

        Returns:
            Name to scalar.
        """
        low, high = self.value_range
        mode = self.decode(self.encode(x))  # type: ignore[arg-type]
        error = (mode.float().clamp(low, high) - x.float()).square().flatten(1).mean(1)
        return {"psnr": (10 * torch.log10((high - low) ** 2 / error.clamp(min=1e-12))).mean()}

    # -- all levels in one tensor

    def pack(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the latents of all levels in one tensor on the top level's grid.

        Args:
            levels: ``[..., C_l, *S_l]`` each, with one or two leading axes.

        Returns:
            ``[..., latent_dim, *S_0]``.
        """
        ndim = self._latent_ndim
        scales = self.decoder.level_scales
        return torch.cat([coarsen(z, s, ndim - 1) for z, s in zip(levels, scales, strict=True)], dim=-ndim)

    def unpack(self, z: Tensor) -> list[Tensor]:
        """Return the latents of each level: the inverse of :meth:`pack`.

        Args:
            z: ``[..., latent_dim, *S_0]``.

        Returns:
            L tensors ``[..., C_l, *S_l]``.
        """
        ndim = self._latent_ndim
        parts = z.split(self._packed_channels(), dim=-ndim)
        return [refine(part, s, ndim - 1) for part, s in zip(parts, self.decoder.level_scales, strict=True)]

    # -- inside

    def _packed_channels(self) -> list[int]:
        axes = self._latent_ndim - 1
        return [c * s**axes for c, s in zip(self.decoder.level_channels, self.decoder.level_scales, strict=True)]

    def _features(self, x: Tensor, cond: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        self._refuse(cond)
        self._check(x)
        return self.encoder(_cast(self._pad(x), self.encoder)), self.latent_size(x.shape[2:])

    def _refuse(self, cond: Tensor | None) -> None:
        if cond is not None:
            raise ValueError(
                f"got a condition of shape {tuple(cond.shape)}; a {type(self).__name__} is built without one: leave cond out, or "
                "choose a model that takes conditions, such as c_vae"
            )

    def _walk(self, walk: Choose, rows: int, grid: tuple[int, ...], features: tuple[Tensor, ...] | None) -> Tensor:
        if features is not None and rows != len(features[0]):
            features = tuple(f.repeat(rows // len(f), *[1] * (f.ndim - 1)) for f in features)
        return self.decoder(rows, grid, features, walk)

    def _pixel_parameters(self, z: Tensor, cond: Tensor | None) -> Tensor:
        self._refuse(cond)
        levels = self.unpack(z)
        return self._walk(lambda level, *_: levels[level], len(z), tuple(z.shape[2:]), None)


class HierarchicalPosterior:
    """q(z|x) = prod_l q(z_l|x, z_<l) of all levels, packed (see :meth:`HierarchicalVAE.pack`).

    Args:
        model: the model.
        features: of the encoder, one tensor for each level.
        batch: number of images B.
        grid: size of the top level's grid.
        input_size: spatial size of the images before padding; ``decode`` crops to it.

    Attributes:
        levels: q(z_l|x, z_<l) of each level along the mode: given the modes of those above.
    """

    def __init__(
        self,
        model: HierarchicalVAE,
        features: tuple[Tensor, ...],
        batch: int,
        grid: tuple[int, ...],
        input_size: tuple[int, ...],
    ) -> None:
        self.input_size: tuple[int, ...] | None = input_size
        self._model, self._features, self._batch, self._grid = model, features, batch, grid
        walk = self._walked(None)
        self.levels = tuple(latent.posterior for latent in walk.latents())
        self._mode = model.pack(walk.z())[0]

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.levels)

    @property
    def shape(self) -> torch.Size:
        """Shape of one packed sample a batch element, ``[B, latent_dim, *S]``."""
        return self._mode.shape

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Extra terms of the posterior; none for Gaussians."""
        return {}

    def mode(self) -> Tensor:
        """Return the mode of each level given the modes above, packed, ``[B, latent_dim, *S]``."""
        return self._mode

    def rsample(self, k: int = 1) -> tuple[Tensor, Tensor]:
        """Draw k samples of all levels.

        Args:
            k: number of samples, >= 1.

        Returns:
            Packed z ``[K, B, latent_dim, *S]`` and the joint log q(z|x) in nats ``[K, B]``.

        Raises:
            ValueError: when k < 1.
        """
        if k < 1:
            raise ValueError(f"got k={k}; expected at least one posterior sample")
        walk = self._walked(k)
        log_q = torch.stack([latent.log_q for latent in walk.latents()]).sum(0)  # type: ignore[misc]
        return self._model.pack(walk.z()), log_q

    def sample(self) -> Tensor:
        """Draw one sample without gradient, ``[B, latent_dim, *S]``."""
        with torch.no_grad():
            return self.rsample()[0][0]

    def _walked(self, num_samples: int | None) -> Walk:
        walk = Walk(self._model, self._batch, num_samples)
        self._model._walk(walk, self._batch * (num_samples or 1), self._grid, self._features)
        return walk

    def __repr__(self) -> str:
        return f"HierarchicalPosterior(shape={tuple(self.shape)}, levels={self.num_levels})"


class AncestralPrior(Distribution):
    """p(z) = prod_l p(z_l|z_<l) over packed latents.

    Args:
        model: the model.
        latent_shape: ``[B, latent_dim, *S]``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real

    def __init__(self, model: HierarchicalVAE, latent_shape: torch.Size) -> None:
        self._model = model
        super().__init__(latent_shape[:1], latent_shape[1:], validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats.

        Args:
            z: packed, ``[B, latent_dim, *S]`` or ``[K, B, latent_dim, *S]``.

        Returns:
            ``[B]`` or ``[K, B]``.
        """
        batch = z.shape[: z.ndim - len(self.event_shape)]
        flat = z.reshape(-1, *self.event_shape)
        levels, terms = self._model.unpack(flat), {}

        def choose(level: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
            terms[level] = gaussian(*self._model.posterior.split(prior)).log_prob(levels[level])  # type: ignore[operator]
            return levels[level]

        self._model._walk(choose, len(flat), tuple(self.event_shape[1:]), None)
        return torch.stack([terms[level] for level in sorted(terms)]).sum(0).reshape(batch)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw packed latents, ``[*sample_shape, B, latent_dim, *S]``."""
        return self._drawn(torch.Size(sample_shape), 1.0)

    def sample_at(self, temperature: float) -> Tensor:
        """Draw packed latents ``[B, latent_dim, *S]`` with every level's standard deviation multiplied.

        Args:
            temperature: the factor; 0 takes the mean of each level given those above.
        """
        return self._drawn(torch.Size(), temperature)

    @torch.no_grad()
    def _drawn(self, sample_shape: torch.Size, temperature: float) -> Tensor:
        shape = sample_shape + self.batch_shape
        walk = Walk(self._model, shape.numel(), 1, temperature=temperature)
        self._model._walk(walk, shape.numel(), tuple(self.event_shape[1:]), None)
        return self._model.pack(walk.z())[0].reshape(*shape, *self.event_shape)
