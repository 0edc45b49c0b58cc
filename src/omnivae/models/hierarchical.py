"""VAEs with several latents, each of which depends on those above it: p(z_1) p(z_2|z_1) ... p(x|z_1..L).

Levels are counted from the top: level 0 is drawn first. Shapes: K samples, B images, C_l channels and size S_l of level l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints

from omnivae.distributions import DiagonalGaussian, SampledGaussian
from omnivae.models.vae import VAE, _cast
from omnivae.posteriors import LevelPosterior
from omnivae.types import Latent, VAEOutput

#: From a level's number, its prior's parameters and its posterior's (``None`` without an image) to its z.
Choose = Callable[[int, Tensor, Tensor | None], Tensor]


class BottomUp(Protocol):
    """A network from images to one feature tensor for each level, the top one first."""

    in_channels: int
    stride: int
    dim: int

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
        return torch.cat([_coarsen(z, s, ndim - 1) for z, s in zip(levels, scales, strict=True)], dim=-ndim)

    def unpack(self, z: Tensor) -> list[Tensor]:
        """Return the latents of each level: the inverse of :meth:`pack`.

        Args:
            z: ``[..., latent_dim, *S_0]``.

        Returns:
            L tensors ``[..., C_l, *S_l]``.
        """
        ndim = self._latent_ndim
        parts = z.split(self._packed_channels(), dim=-ndim)
        return [_refine(part, s, ndim - 1) for part, s in zip(parts, self.decoder.level_scales, strict=True)]

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


class Walk:
    """Chooses z at each level on the way down, and remembers from what.

    The noise of a level is drawn once: a decoder that is run again, in another precision, meets the same z.

    Args:
        model: whose ``posterior`` relates a level's parameters to its prior.
        batch: number of images B.
        num_samples: samples K, or ``None`` for the posterior's mode.
        keep: levels from the top that follow the posterior; all by default. The others follow the prior.
        temperature: multiplies the standard deviation of the prior.
        generator: source of the prior's noise.
    """

    def __init__(
        self,
        model: HierarchicalVAE,
        batch: int,
        num_samples: int | None,
        *,
        keep: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.head: LevelPosterior = model.posterior  # type: ignore[assignment]
        self.batch, self.num_samples = batch, num_samples
        self.keep = model.num_levels if keep is None else keep
        self.temperature, self.generator = temperature, generator
        self.levels: dict[int, tuple[DiagonalGaussian | None, Independent, Tensor, Tensor | None]] = {}
        self._noise: dict[int, Tensor] = {}

    def __call__(self, level: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
        """Return z of a level, ``[K * B, C, *S]``.

        Args:
            level: its number.
            prior: parameters of its prior, ``[K * B, 2C, *S]``.
            posterior: parameters of its posterior, where an image is known.
        """
        mean, logvar = self.head.split(prior)
        k = self.num_samples or 1
        if posterior is None or level >= self.keep:
            z = mean + self.temperature * torch.exp(0.5 * logvar) * self._eps(level, mean)
            self.levels[level] = (None, gaussian(mean, logvar), z.unflatten(0, (k, -1)), None)
            return z
        q_mean, q_logvar = self._rows(level, *self.head(posterior, mean, logvar))
        several = k > 1 and level > 0
        q = (SampledGaussian if several else DiagonalGaussian)(q_mean, q_logvar)
        p = gaussian(*self._rows(level, mean, logvar), batch_ndim=2 if several else 1)
        if self.num_samples is None:
            self.levels[level] = (q, p, q.mean.unsqueeze(0), None)
            return q.mean
        eps = self._eps(level, mean).unflatten(0, (k, -1))
        z = q.mean + q.stddev * eps
        log_q = Normal(0.0, 1.0).log_prob(eps) - 0.5 * q.logvar
        self.levels[level] = (q, p, z, log_q.flatten(2).sum(2))
        return z.flatten(0, 1)

    def latents(self) -> tuple[Latent, ...]:
        """Return the levels that were walked, the top one first."""
        found = []
        for level in sorted(self.levels):
            q, p, z, log_q = self.levels[level]
            assert q is not None, "only a walk along the posterior has latents"
            found.append(Latent(q, p, z, log_q))
        return tuple(found)

    def z(self) -> list[Tensor]:
        """Return z of each level, ``[K, B, C_l, *S_l]``."""
        return [self.levels[level][2] for level in sorted(self.levels)]

    def _rows(self, level: int, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """Give parameters an axis of samples where they depend on the samples above."""
        if (self.num_samples or 1) == 1:
            return mean, logvar
        if level == 0:
            return mean[: self.batch], logvar[: self.batch]
        return mean.unflatten(0, (-1, self.batch)), logvar.unflatten(0, (-1, self.batch))

    def _eps(self, level: int, like: Tensor) -> Tensor:
        if level not in self._noise:
            if self.generator is None:
                self._noise[level] = torch.randn_like(like)
            else:
                drawn = torch.randn(like.shape, generator=self.generator, dtype=like.dtype)
                self._noise[level] = drawn.to(like.device)
        return self._noise[level]


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


def gaussian(mean: Tensor, logvar: Tensor, batch_ndim: int = 1) -> Independent:
    """Return N(mean, exp(logvar)).

    Args:
        mean: ``[B, C, *S]``, or ``[K, B, C, *S]`` with ``batch_ndim=2``.
        logvar: the same shape.
        batch_ndim: number of leading axes that are not part of the event.
    """
    density = Normal(mean, torch.exp(0.5 * logvar), validate_args=False)
    return Independent(density, mean.ndim - batch_ndim, validate_args=False)


def _coarsen(z: Tensor, scale: int, axes: int) -> Tensor:
    """Move each block of positions into channels, ``[..., C, *(S * scale)]`` to ``[..., C * scale**axes, *S]``."""
    if scale == 1:
        return z
    lead, (channels, *size) = z.shape[: z.ndim - axes - 1], z.shape[z.ndim - axes - 1 :]
    split = z.reshape(-1, channels, *[n for s in size for n in (s // scale, scale)])
    order = [0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)]
    return split.permute(order).reshape(*lead, channels * scale**axes, *[s // scale for s in size])


def _refine(z: Tensor, scale: int, axes: int) -> Tensor:
    """Undo :func:`_coarsen`."""
    if scale == 1:
        return z
    lead, (packed, *size) = z.shape[: z.ndim - axes - 1], z.shape[z.ndim - axes - 1 :]
    channels = packed // scale**axes
    split = z.reshape(-1, channels, *[scale] * axes, *size)
    order = [0, 1, *(axis for i in range(axes) for axis in (2 + axes + i, 2 + i))]
    return split.permute(order).reshape(*lead, channels, *[s * scale for s in size])
