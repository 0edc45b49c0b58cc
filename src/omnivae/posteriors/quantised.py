"""Quantised posteriors: one code for each position, learned (VQ, residual VQ) or fixed (FSQ, LFQ). No density.

Own code, tested against vector-quantize-pytorch: that library decides once a process whether codebooks are synchronised
(before a trainer has started its process group), leaves bfloat16 autocast on for CPUs, and cannot be built on the meta device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnivae.distributions import at_least_float32
from omnivae.posteriors.codebook import Codebook
from omnivae.posteriors.point import Point, PointHead


class QuantisedPosterior(Point):
    """The code of every position of one batch: all its mass is on one point, and it has no density.

    Args:
        z: codes with the encoder's gradient, ``[B, C, *S]``.
        indices: the codes' numbers, ``[B, *S]``; ``[B, *S, Q]`` for Q residual codebooks.
        num_codes: size of a codebook.
        penalties: name to terms summed over the event, ``[B]``.
        input_size: spatial size of the encoded image before padding.

    Example:
        >>> q = QuantisedPosterior(torch.zeros(2, 4, 3), torch.tensor([[0, 1, 2], [2, 1, 0]]), 4, {})
        >>> round(float(q.perplexity), 3), float(q.usage)
        (3.0, 0.75)
    """

    def __init__(
        self,
        z: Tensor,
        indices: Tensor,
        num_codes: int,
        penalties: dict[str, Tensor],
        *,
        input_size: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(z, input_size=input_size)
        self.indices = indices
        self.num_codes = num_codes
        self._penalties = penalties

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Terms that a :class:`Penalty` loss weights, ``[B]`` each."""
        return dict(self._penalties)

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy) of the batch's codes: how many are in use as if equally often, 1 to ``num_codes``.

        The mean over residual codebooks.
        """
        share = self._counts() / self._counts().sum(1, keepdim=True)
        return torch.exp(torch.special.entr(share).sum(1)).mean()

    @property
    def usage(self) -> Tensor:
        """Share of the codes that the batch uses, the mean over residual codebooks."""
        return (self._counts() > 0).double().mean()

    def _counts(self) -> Tensor:
        books = self.indices.reshape(*self.indices.shape[: self._z.ndim - 1], -1).flatten(0, -2)
        return torch.stack([torch.bincount(book, minlength=self.num_codes).double() for book in books.unbind(-1)])

    def __repr__(self) -> str:
        return f"QuantisedPosterior(shape={tuple(self.shape)}, num_codes={self.num_codes})"


class QuantisedHead(PointHead):
    """Base of the quantised heads: projects the features in float32, then quantises.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z.
        dim: number of spatial axes of the features; 0 for a vector latent.
    """

    abstract = True

    num_codes: int

    def forward(self, features: Tensor) -> QuantisedPosterior:
        """Return the codes for features ``[B, C, *S]``."""
        # Float32 from here on: half-precision distances would choose other codes.
        with torch.autocast(device_type=features.device.type, enabled=False):
            x = at_least_float32(self.project(features)).movedim(1, -1)
            z, indices, penalties = self.quantise(x)
        return QuantisedPosterior(z.movedim(-1, 1), indices, self.num_codes, penalties)

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return codes ``[B, *S, C]``, their numbers and the penalties of ``x``, ``[B, *S, C]``."""
        raise TypeError(f"{type(self).__name__} does not define quantise")

    def snap(self, z: Tensor) -> Tensor:
        """Return the nearest codes to latents that are none, such as points between two of them; changes nothing.

        Args:
            z: ``[B, C, *S]``.

        Returns:
            The same shape; of residual codebooks the code that they find one after the other.
        """
        raise TypeError(f"{type(self).__name__} does not define snap")

    def codes(self, indices: Tensor) -> Tensor:
        """Return the latents that indices stand for, ready to decode.

        Args:
            indices: as a posterior's ``indices``.

        Returns:
            ``[B, C, *S]``.
        """
        raise TypeError(f"{type(self).__name__} does not define codes")


class VQPosterior(QuantisedHead):
    """The nearest of M learned codes (van den Oord et al., Neural Discrete Representation Learning, 2017, eq. 2 and appendix A.1).

    The codes follow exponential moving averages of the vectors assigned to them, so there is no codebook loss; a code in too little
    use is replaced by a vector of the batch. Penalty "commitment": ||x - sg(code)||^2, summed over the event.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z and of a code.
        dim: number of spatial axes of the features; 0 for a vector latent.
        num_codes: M >= 2.
        num_books: codebooks Q; each quantises what the ones before left over (Zeghidour et al., SoundStream, 2021).
        decay: of the moving averages, in [0, 1).
        revive_below: a code is replaced when its share of the vectors falls below this part of ``1 / num_codes``, >= 0; 0
            never replaces.
        sync: keep the codebooks of all processes equal, from the vectors of all of them.

    Example:
        >>> q = VQPosterior(8, 4, num_codes=16).eval()(torch.zeros(2, 8, 3, 3))
        >>> q.shape, q.indices.shape, list(q.penalties)
        (torch.Size([2, 4, 3, 3]), torch.Size([2, 3, 3]), ['commitment'])
    """

    provides = frozenset({"indices", "commitment"})

    def __init__(
        self,
        in_channels: int,
        latent_dim: int,
        dim: int = 2,
        *,
        num_codes: int = 512,
        num_books: int = 1,
        decay: float = 0.99,
        revive_below: float = 0.05,
        sync: bool = True,
    ) -> None:
        super().__init__(in_channels, latent_dim, dim)
        if num_books < 1:
            raise ValueError(f"got num_books={num_books}; expected at least 1")
        self.num_codes = num_codes
        self.books = nn.ModuleList(
            Codebook(num_codes, latent_dim, decay=decay, revive_below=revive_below, sync=sync) for _ in range(num_books)
        )

    @property
    def started(self) -> bool:
        """Whether the codes come from data."""
        return all(bool(book.started) for book in self.books)

    @torch.no_grad()
    def start(self, features: Tensor, seed: int = 0) -> None:
        """Set the codes to clusters of these features, the same for the same arguments; training starts there.

        Args:
            features: of the encoder, ``[N, C, *S]``.
            seed: of the vectors that the clusters start from.
        """
        rest = at_least_float32(self.project(features)).movedim(1, -1).flatten(0, -2)
        for book in self.books:
            book.start(rest, seed)  # type: ignore[operator]
            rest = rest - book.look_up(book.nearest(rest)).to(rest.dtype)  # type: ignore[operator]

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        total, commitment, numbers = torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype, device=x.device), []
        for book in self.books:
            # Each level commits the encoder to what the codes so far say, as if those were constants.
            rest = x - total
            code, number = book(rest)  # type: ignore[operator]
            commitment = commitment + (rest - code).square().flatten(1).sum(1)
            total = total + code
            numbers.append(number)
        indices = numbers[0] if len(numbers) == 1 else torch.stack(numbers, -1)
        return straight_through(x, total), indices, {"commitment": commitment}

    def codes(self, indices: Tensor) -> Tensor:
        indices = indices.unsqueeze(-1) if len(self.books) == 1 else indices
        parts = [book.look_up(i) for book, i in zip(self.books, indices.unbind(-1), strict=True)]  # type: ignore[operator]
        return torch.stack(parts).sum(0).movedim(-1, 1)

    @torch.no_grad()
    def snap(self, z: Tensor) -> Tensor:
        rest = at_least_float32(z).movedim(1, -1)
        total = torch.zeros_like(rest)
        for book in self.books:
            flat = (rest - total).flatten(0, -2)
            total = total + book.look_up(book.nearest(flat)).reshape(rest.shape).to(rest.dtype)  # type: ignore[operator]
        return total.movedim(-1, 1)


class FSQPosterior(QuantisedHead):
    """Rounds each bounded channel to one of a few levels (Mentzer et al., Finite Scalar Quantization, 2023, section 3.1).

    There is nothing to learn, to collapse or to penalise: the codebook is the grid, of ``prod(levels)`` codes. The gradient
    passes the rounding unchanged and the bounding tanh as any activation.

    Args:
        in_channels: channels of the encoder's features.
        levels: levels of each channel of z, each >= 2; the paper advises at least 5, [8, 5, 5, 5] for about 2**10 codes.
        dim: number of spatial axes of the features; 0 for a vector latent.

    Example:
        >>> q = FSQPosterior(8, (8, 5, 5)).eval()(torch.zeros(2, 8, 3, 3))
        >>> q.shape, q.num_codes, q.penalties
        (torch.Size([2, 3, 3, 3]), 200, {})
    """

    provides = frozenset({"indices"})

    def __init__(self, in_channels: int, levels: tuple[int, ...] | list[int] = (8, 5, 5, 5), dim: int = 2) -> None:
        if not levels or min(levels) < 2:
            raise ValueError(
                f"got levels={tuple(levels)}; expected at least 2 levels for each channel, such as [8, 5, 5, 5]"
            )
        super().__init__(in_channels, len(levels), dim)
        self.levels = tuple(int(n) for n in levels)
        basis = [1]
        for n in self.levels:
            basis.append(basis[-1] * n)
        self.num_codes = basis.pop()
        self.register_buffer("_levels", torch.tensor(self.levels, dtype=torch.float32), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        levels: Tensor = self._levels.to(x.dtype)  # type: ignore[assignment, operator]
        # An even number of levels has none at zero: shifted by half a level, such that x = 0 stays in the middle.
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (levels % 2 == 0)
        bounded = torch.tanh(x + torch.atanh(offset / half)) * half - offset
        rounded = straight_through(bounded, bounded.round())
        middle = levels.div(2, rounding_mode="floor")
        indices = ((rounded.detach() + middle).long() * self._basis).sum(-1)  # type: ignore[operator]
        return rounded / middle, indices, {}

    def codes(self, indices: Tensor) -> Tensor:
        levels: Tensor = self._levels  # type: ignore[assignment]
        digits = indices.unsqueeze(-1).div(self._basis, rounding_mode="floor") % levels.long()  # type: ignore[arg-type]
        middle = levels.div(2, rounding_mode="floor")
        return ((digits - middle) / middle).movedim(-1, 1)

    @torch.no_grad()
    def snap(self, z: Tensor) -> Tensor:
        levels: Tensor = self._levels  # type: ignore[assignment]
        middle = levels.div(2, rounding_mode="floor")
        digits = (z.movedim(1, -1) * middle).round()
        # An even number of levels has one more below the middle than above.
        return (torch.minimum(torch.maximum(digits, -middle), levels - 1 - middle) / middle).movedim(-1, 1)


class LFQPosterior(QuantisedHead):
    """The sign of each channel: 2**latent_dim codes without a lookup (Yu et al., Language Model Beats Diffusion, 2024, eq. 2-5).

    Penalties, summed over the event: "commitment" ||x - sg(code)||^2, and "entropy", the entropy of a position's code minus
    that of the batch's average code, which is small where codes are certain and used equally. Codes are soft there with
    probabilities proportional to exp(-||x - code||^2 / temperature). The batch's entropy is summed over groups of channels,
    an upper bound of the joint entropy.

    Args:
        in_channels: channels of the encoder's features.
        latent_dim: channels of z, 1 to 62.
        dim: number of spatial axes of the features; 0 for a vector latent.
        temperature: of the soft codes, > 0.
        group: channels whose joint entropy is computed exactly, 1 to 16; memory grows with ``2**group``.

    Example:
        >>> q = LFQPosterior(8, 10).eval()(torch.ones(2, 8, 3, 3))
        >>> q.num_codes, sorted(q.penalties)
        (1024, ['commitment', 'entropy'])
    """

    provides = frozenset({"indices", "commitment", "entropy"})

    def __init__(
        self, in_channels: int, latent_dim: int, dim: int = 2, *, temperature: float = 1.0, group: int = 8
    ) -> None:
        super().__init__(in_channels, latent_dim, dim)
        if latent_dim > 62 or not temperature > 0 or not 1 <= group <= 16:
            raise ValueError(
                f"got latent_dim={latent_dim}, temperature={temperature}, group={group}; expected at most 62 channels, a "
                "temperature above 0 and groups of 1 to 16 channels"
            )
        self.num_codes = 2**latent_dim
        self.temperature = temperature
        self.group = group
        self.register_buffer("_basis", 2 ** torch.arange(latent_dim), persistent=False)

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        bits = x > 0
        code = 2.0 * bits.to(x.dtype) - 1
        indices = (bits * self._basis).sum(-1)  # type: ignore[operator]
        penalties = {"commitment": (x - code).square().flatten(1).sum(1), "entropy": self._entropy(x)}
        return straight_through(x, code), indices, penalties

    def _entropy(self, x: Tensor) -> Tensor:
        # exp(-(x-1)^2/t) against exp(-(x+1)^2/t): a channel is 1 with probability sigmoid(4 x / t), independent of the others.
        log_bits = torch.stack([nn.functional.logsigmoid(s * 4 * x / self.temperature) for s in (-1, 1)])
        certain = -(log_bits.exp() * log_bits).sum(0).flatten(1).sum(1)
        average = torch.zeros((), dtype=x.dtype, device=x.device)
        for part in log_bits.flatten(1, -2).split(self.group, -1):
            joint = torch.zeros(part.shape[1], 1, dtype=x.dtype, device=x.device)
            for bit in part.unbind(-1):
                joint = torch.cat([joint + bit[0].unsqueeze(1), joint + bit[1].unsqueeze(1)], 1)
            average = average + torch.special.entr(joint.exp().mean(0)).sum()
        positions = x[0, ..., 0].numel()
        return certain - positions * average

    def codes(self, indices: Tensor) -> Tensor:
        bits = indices.unsqueeze(-1).div(self._basis, rounding_mode="floor") % 2  # type: ignore[arg-type]
        return (2.0 * bits - 1).movedim(-1, 1)

    @torch.no_grad()
    def snap(self, z: Tensor) -> Tensor:
        return 2.0 * (z > 0).to(z.dtype) - 1


def straight_through(x: Tensor, code: Tensor) -> Tensor:
    """Return exactly ``code``, with the gradient of ``x`` (Bengio et al., Estimating or Propagating Gradients, 2013).

    Args:
        x: what the encoder said.
        code: what it was rounded to, of the same shape.

    Returns:
        The same shape.
    """
    # Not x + (code - x).detach(): its rounding would take z off the code.
    return code.detach() + (x - x.detach())
