"""VAEs of clips and volumes that see a few frames at a time: independent stacks, or windows that overlap and are blended.

A stack of s frames goes through the networks on its own (as one sample of the batch), and its latents take their place in
time again; frames never mix with channels. The last frame is repeated where the clip does not fill the last stack, and
decoding crops that off, so every number of frames comes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnivae.distributions import DiagonalGaussian
from omnivae.models.vae import VAE
from omnivae.types import Network, strides


class StackedVAE(VAE):
    """A VAE of clips ``[B, C, T, H, W]`` whose networks see ``stack_size`` frames at a time.

    Latents are scaled: z = ``scaling_factor`` * (what the posterior head says), and decoding divides by it.

    Args:
        encoder: network from clips to features.
        posterior: head from features to a diagonal Gaussian.
        decoder: network from z to likelihood parameters.
        likelihood: module from parameters to p(x|z).
        prior: module that returns p(z), or ``None``.
        stack_size: frames of a stack, a multiple of the encoder's stride in time; ``None`` for the whole clip at once.
        overlap: frames that neighbouring windows share, blended linearly; 0 for independent stacks.
        scaling_factor: factor of the latents, > 0; see :meth:`measure_scaling_factor`.
        value_range: lowest and highest pixel value.

    Raises:
        ValueError: for stacks that the stride does not divide, an overlap as long as a stack, or a posterior of another
            kind.

    Example:
        >>> import omnivae
        >>> whole = omnivae.kl_autoencoder(in_channels=1, channels=(8, 8, 8), num_res_blocks=1, num_groups=4, dim=3).eval()
        >>> model = stacked(whole, stack_size=4)
        >>> q = model.encode(torch.zeros(1, 1, 10, 16, 16))
        >>> q.shape, model.decode(q).shape
        (torch.Size([1, 4, 3, 4, 4]), torch.Size([1, 1, 10, 16, 16]))
    """

    def __init__(
        self,
        encoder: Network,
        posterior: nn.Module,
        decoder: Network,
        likelihood: nn.Module,
        prior: nn.Module | None,
        *,
        stack_size: int | None = None,
        overlap: int = 0,
        scaling_factor: float = 1.0,
        value_range: Sequence[float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(encoder, posterior, decoder, likelihood, prior, value_range=value_range)
        if self.dim != 3:
            raise ValueError(f"got networks of {self.dim} axes; expected clips or volumes: build them with dim=3")
        if "diagonal" not in posterior.provides:  # type: ignore[operator]
            raise ValueError(
                f"got a {type(posterior).__name__}; the stacks of a clip are put together from means and log-variances: "
                "choose a GaussianPosterior"
            )
        self._check_stacks(stack_size, overlap)
        self.stack_size, self.overlap = stack_size, overlap
        self.scaling_factor = scaling_factor

    @property
    def scaling_factor(self) -> float:
        """Factor of the latents: z = scaling_factor * (what the posterior head says)."""
        return self._scaling_factor

    @scaling_factor.setter
    def scaling_factor(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"got scaling_factor={value}; expected a number > 0, such as 1.0")
        self._scaling_factor = float(value)

    @property
    def time_stride(self) -> int:
        """Frames that become one frame of the latent."""
        return strides(self.encoder, 3)[0]

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments, with the stacks and the scaling factor as they are now."""
        return super().config_arguments() | {
            self._stack_argument: self.stack_size,
            "overlap": self.overlap,
            "scaling_factor": self.scaling_factor,
        }

    #: What the constructor calls ``stack_size``.
    _stack_argument = "stack_size"

    # -- stacks

    def padded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size that a clip is padded to: multiples of the stride, and as many frames as the stacks hold.

        Args:
            size: frames, height and width.

        Returns:
            Three numbers.
        """
        frames, *plane = super().padded_size(size)
        if self.stack_size is not None and frames > self.stack_size:
            hop = self.stack_size - self.overlap
            frames = self.stack_size + math.ceil((frames - self.stack_size) / hop) * hop
        return (frames, *plane)

    @contextmanager
    def stacking(self, stack_size: int | None, overlap: int = 0) -> Iterator[None]:
        """See other stacks for a while.

        Args:
            stack_size: frames of a stack, ``None`` for the whole clip.
            overlap: frames that neighbouring windows share.

        Yields:
            Nothing; afterwards the stacks are what they were.

        Raises:
            ValueError: for stacks that cannot be.
        """
        self._check_stacks(stack_size, overlap)
        before = self.stack_size, self.overlap
        self.stack_size, self.overlap = stack_size, overlap
        try:
            yield
        finally:
            self.stack_size, self.overlap = before

    def boundaries(self, frames: int) -> list[int]:
        """Return the frames at which a clip passes from one stack (or the middle of an overlap) to the next.

        Args:
            frames: of the clip.

        Returns:
            Numbers of frames, ascending; empty where the whole clip is seen at once.
        """
        if self.stack_size is None:
            return []
        starts = self.stack_starts(self.padded_size((frames, 1, 1))[0])[1:]
        return [start + self.overlap // 2 for start in starts if start + self.overlap // 2 < frames]

    def stack_starts(self, frames: int) -> list[int]:
        """Return at which frames the stacks of a clip start.

        Args:
            frames: of the padded clip, see :meth:`padded_size`; or of a latent, times :attr:`time_stride`.

        Returns:
            Ascending, from 0; one where the clip is seen at once.

        Raises:
            ValueError: for a number that the stacks do not fill.
        """
        if self.stack_size is None or frames <= self.stack_size:
            return [0]
        length, hop = self.stack_size, self.stack_size - self.overlap
        if (frames - length) % hop:
            fits = (length + math.ceil((frames - length) / hop) * hop) // self.time_stride
            raise ValueError(
                f"got a latent of {frames // self.time_stride} frames; with stacks of {length} frames and an overlap of "
                f"{self.overlap} the latent of a clip has {fits - hop // self.time_stride} or {fits} frames"
            )
        return list(range(0, frames - length + 1, hop))

    # -- the model

    def encode(self, x: Tensor, cond: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z|x) of clips; colour becomes grey by its mean where the model has one channel.

        Args:
            x: clips in the model's value range, ``[B, C, T, H, W]``.
            cond: condition of each clip, ``[B, E]``.

        Returns:
            The posterior, its means and standard deviations times the scaling factor.
        """
        x = self.grey(x)
        self._check(x)
        size = tuple(x.shape[2:])
        padded = self._pad(x)
        starts = self.stack_starts(padded.shape[2])
        if len(starts) > 1:
            padded = _windows(padded, starts, self.stack_size or 0)
        posterior = super().encode(padded, _for_each(cond, len(starts)))
        result = self.join_posterior(posterior, len(starts), size)
        result.cond = cond
        return result

    def join_posterior(self, posterior: DiagonalGaussian, number: int, size: tuple[int, ...]) -> DiagonalGaussian:
        """Return the posterior of clips from those of their stacks, times the scaling factor.

        Args:
            posterior: of the stacks, those of a clip behind one another, ``[B * number, C, L, *S]``.
            number: stacks of each clip.
            size: frames, height and width of the clips.

        Returns:
            The posterior ``[B, C, T, *S]``; means and log-variances are blended where stacks overlap.
        """
        mean, logvar = posterior.mean, posterior.logvar
        if number > 1:
            shared = self.overlap // self.time_stride
            mean, logvar = (_merge(part, number, shared) for part in (mean, logvar))
        scale = self.scaling_factor
        return DiagonalGaussian(mean * scale, logvar + 2 * math.log(scale), input_size=size)

    def grey(self, x: Tensor) -> Tensor:
        """Return the mean of red, green and blue for a model of one channel; anything else as it is.

        Args:
            x: clips ``[B, C, T, H, W]``.

        Returns:
            ``[B, 1, T, H, W]`` where C is 3 and the model has one channel.
        """
        if self.in_channels == 1 and x.ndim == 5 and x.shape[1] == 3:
            return x.mean(1, keepdim=True)
        return x

    def _pixel_parameters(self, z: Tensor, cond: Tensor | None) -> Tensor:
        z = z / self.scaling_factor
        starts = self.stack_starts(z.shape[2] * self.time_stride)
        if len(starts) == 1:
            return super()._pixel_parameters(z, cond)
        stride = self.time_stride
        windows = _windows(z, [start // stride for start in starts], (self.stack_size or 0) // stride)
        params = super()._pixel_parameters(windows, _for_each(cond, len(starts)))
        return _merge(params, len(starts), self.overlap)

    @torch.no_grad()
    def measure_scaling_factor(self, clips: Iterable[Tensor]) -> float:
        """Set the scaling factor to 1 / (standard deviation of the unscaled latents), and return it.

        By the law of total variance: Var z = E[variance] + Var[mean], over all clips, channels and positions.

        Args:
            clips: batches ``[B, C, T, H, W]`` of training clips.

        Returns:
            The factor; it is saved with the model. Latents that were encoded with another factor do not fit any more.

        Raises:
            ValueError: without clips, or for latents that do not vary.
        """
        count, total, squares = 0, 0.0, 0.0
        for batch in clips:
            posterior = self.encode(batch)
            mean = posterior.mean.double() / self.scaling_factor
            spread = posterior.logvar.double().exp() / self.scaling_factor**2
            count += mean.numel()
            total += mean.sum().item()
            squares += (mean.square() + spread).sum().item()
        if not count:
            raise ValueError("got no clips to measure the scaling factor on; give at least one batch")
        variance = squares / count - (total / count) ** 2
        if not variance > 0:
            raise ValueError(f"the latents have a variance of {variance}: a scaling factor cannot be measured on them")
        self.scaling_factor = 1 / math.sqrt(variance)
        return self.scaling_factor

    def _check_stacks(self, stack_size: int | None, overlap: int) -> None:
        stride = self.time_stride
        if stack_size is None:
            if overlap:
                raise ValueError(f"got overlap={overlap} without a stack_size; give both, or neither")
            return
        if stack_size < stride or stack_size % stride:
            raise ValueError(
                f"got a stack of {stack_size} frames; {stride} frames become one, so expected a multiple of {stride}, such as "
                f"{max(1, round(stack_size / stride)) * stride}"
            )
        if not 0 <= overlap < stack_size or overlap % stride:
            raise ValueError(
                f"got overlap={overlap} of stacks of {stack_size} frames; expected a multiple of {stride} below {stack_size}"
            )


def stacked(vae: VAE, *, stack_size: int | None, overlap: int = 0, scaling_factor: float = 1.0) -> StackedVAE:
    """Return a VAE of volumes as one that sees a few frames at a time; both share their networks.

    Args:
        vae: a VAE of three axes with a spatial, diagonal Gaussian latent.
        stack_size: frames of a stack, a multiple of the model's stride in time; ``None`` for the whole clip at once.
        overlap: frames that neighbouring windows share, blended linearly; 0 for independent stacks.
        scaling_factor: factor of the latents.

    Returns:
        The model, in the mode (training or evaluation) of ``vae``.

    Raises:
        ValueError: for a model of images, a vector latent, or stacks that cannot be.
    """
    if vae.image_size is not None:
        raise ValueError("got a VAE with a vector latent; stacks need a latent with an axis of time: latent='spatial'")
    model = StackedVAE(
        vae.encoder,
        vae.posterior,
        vae.decoder,
        vae.likelihood_head,
        vae.prior,
        stack_size=stack_size,
        overlap=overlap,
        scaling_factor=scaling_factor,
        value_range=vae.value_range,
    )
    model.statistics = dict(vae.statistics)
    return model.train(vae.training)


@dataclass(frozen=True)
class StackBoundary:
    """How much reconstructing in stacks differs from reconstructing the whole clip, in units of the value range's width.

    Attributes:
        rmse: root mean square difference over all frames.
        rmse_at_boundaries: over the frames on both sides of each boundary.
        max_error: largest difference.
        jump_ratio: mean change from frame to frame across boundaries, of the stacked reconstruction, over that of the whole
            clip's at the same places; 1 where the boundaries do not show.
        boundaries: number of boundaries of all clips.
    """

    rmse: float
    rmse_at_boundaries: float
    max_error: float
    jump_ratio: float
    boundaries: int


@torch.no_grad()
def stack_boundary(vae: StackedVAE, clips: Tensor) -> StackBoundary:
    """Compare the reconstruction in stacks with that of the whole clip at once.

    Args:
        vae: a model that sees stacks; it should be in evaluation mode.
        clips: ``[B, C, T, H, W]``, more frames than a stack.

    Returns:
        The differences.

    Raises:
        ValueError: for a model that sees whole clips, or clips that fit into one stack.
    """
    frames = clips.shape[2]
    boundaries = vae.boundaries(frames)
    if not boundaries:
        size = "the whole clip" if vae.stack_size is None else f"{vae.stack_size} frames"
        raise ValueError(f"this model sees {size} at a time and the clips have {frames} frames: there is no boundary")
    parts = vae.decode(vae.encode(clips))
    with vae.stacking(None):
        whole = vae.decode(vae.encode(clips))
    low, high = vae.value_range
    difference = (parts - whole).double().abs() / (high - low)
    beside = sorted({frame for b in boundaries for frame in (b - 1, b)})

    def jumps(clip: Tensor) -> float:
        return sum((clip[:, :, b] - clip[:, :, b - 1]).double().abs().mean().item() for b in boundaries)

    return StackBoundary(
        rmse=difference.square().mean().sqrt().item(),
        rmse_at_boundaries=difference[:, :, beside].square().mean().sqrt().item(),
        max_error=difference.max().item(),
        jump_ratio=jumps(parts) / max(jumps(whole), torch.finfo(torch.float64).tiny),
        boundaries=len(boundaries) * len(clips),
    )


def blend_weights(length: int, overlap: int) -> Tensor:
    """Return the weight of each frame of a window: it rises and falls linearly where neighbours overlap.

    Args:
        length: frames of a window.
        overlap: frames that neighbours share.

    Returns:
        ``[length]``, to be divided by the sum over the windows that a frame is in.

    Example:
        >>> blend_weights(6, 2).tolist()
        [1, 2, 3, 3, 2, 1]
    """
    place = torch.arange(length)
    return torch.minimum(place + 1, length - place).clamp(max=overlap + 1)


def _for_each(cond: Tensor | None, number: int) -> Tensor | None:
    """Return the condition of each stack from those of the clips."""
    return cond if cond is None or number == 1 else cond.repeat_interleave(number, 0)


def _windows(x: Tensor, starts: list[int], length: int) -> Tensor:
    """Return the windows of a clip ``[B, C, T, *S]`` as samples of the batch, ``[B * N, C, length, *S]``."""
    return torch.stack([x[:, :, start : start + length] for start in starts], 1).flatten(0, 1)


def _merge(windows: Tensor, number: int, overlap: int) -> Tensor:
    """Undo :func:`_windows`: time in order again, overlaps blended with weights that rise and fall linearly.

    Args:
        windows: ``[B * N, C, L, *S]``.
        number: N windows of each clip.
        overlap: frames that neighbours share.

    Returns:
        ``[B, C, L + (N - 1) * (L - overlap), *S]``.
    """
    windows = windows.unflatten(0, (-1, number))  # [B, N, C, L, *S]
    length = windows.shape[3]
    if not overlap:
        # Windows beside frames, then both one axis of time: channels stay where they are.
        return windows.transpose(1, 2).flatten(2, 3)
    hop = length - overlap
    frames = length + (number - 1) * hop
    ramp = blend_weights(length, overlap).to(windows).reshape(-1, *[1] * (windows.ndim - 4))
    total = windows.new_zeros(windows.shape[0], windows.shape[2], frames, *windows.shape[4:])
    weight = windows.new_zeros(frames, *[1] * (windows.ndim - 4))
    for i in range(number):
        where = slice(i * hop, i * hop + length)
        total[:, :, where] += windows[:, i] * ramp
        weight[where] += ramp
    return total / weight
