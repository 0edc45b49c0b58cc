"""A prior over codes: each given those before it, in raster order and at each position from the first codebook to the last.

van den Oord et al., Neural Discrete Representation Learning, 2017, section 3.1 (there with a PixelCNN); with a transformer as in
Esser et al., Taming Transformers, 2021, section 3.2, and residual codebooks as in Lee et al., RQ-VAE, 2022, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import log_softmax

from omnivae.distributions import at_least_float32
from omnivae.networks.causal import CausalTransformer, Memory
from omnivae.priors.base import Prior

#: A table of logits for each code has no room for more; FSQ and LFQ can have any number.
MOST_CODES = 2**16


class AutoregressivePrior(Prior):
    """p(k) = prod_t p(k_t | k_1 .. k_(t-1)) over the codes of a quantised latent of one size.

    Args:
        num_codes: size of a codebook.
        size: positions of the latent along each axis; none for a vector latent, which is one code.
        num_books: codebooks Q.
        width: channels of the transformer.
        depth: its blocks.
        num_heads: its attention heads; divides the width.
        dropout: share of values that are dropped in training, in [0, 1).

    Raises:
        ValueError: for sizes below 1, or more than 2**16 codes.

    Example:
        >>> prior = AutoregressivePrior(8, (2, 3), width=16, depth=1, num_heads=2)
        >>> codes = prior.distribution(4).sample()
        >>> codes.shape, prior.distribution(4).log_prob(codes).shape
        (torch.Size([4, 2, 3]), torch.Size([4]))
    """

    takes_cond = False

    def __init__(
        self,
        num_codes: int,
        size: Sequence[int] = (),
        num_books: int = 1,
        *,
        width: int = 256,
        depth: int = 6,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(num_codes, num_books, *size) < 1:
            raise ValueError(
                f"got num_codes={num_codes}, size={tuple(size)}, num_books={num_books}; expected at least 1"
            )
        if num_codes > MOST_CODES:
            raise ValueError(
                f"got {num_codes:,} codes; a prior over codes holds a table of them and takes at most {MOST_CODES:,}: use fewer "
                "levels (fsq_vae) or bits (lfq_vae), or several small codebooks (residual_vq_vae)"
            )
        self.num_codes, self.size, self.num_books = num_codes, tuple(int(n) for n in size), num_books
        self.length = math.prod(self.size) * num_books
        self.embedding = nn.Embedding(num_books * num_codes, width)
        self.begin = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(math.prod(self.size), 1, width))
        self.books = nn.Parameter(torch.zeros(1, num_books, width))
        self.body = CausalTransformer(width, depth, num_heads, dropout)
        self.head = nn.ModuleList(nn.Linear(width, num_codes) for _ in range(num_books))
        for table in (self.embedding.weight, self.begin, self.places, self.books):
            nn.init.normal_(table, std=0.02)
        for layer in self.head:
            # Every code is as likely as any other until something is learned.
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self,
        latent_shape: torch.Size,
        encode: Callable[[Tensor], Any] | None = None,
        cond: Tensor | None = None,
    ) -> CodeDistribution:
        """Return the distribution over the codes of a latent ``[B, C, *S]``."""
        if tuple(latent_shape[2:]) != self.size:
            raise ValueError(
                f"got a latent of size {tuple(latent_shape[2:])}; this prior over codes was trained on {self.size}: use images of "
                "the training size"
            )
        return self.distribution(latent_shape[0])

    def distribution(self, n: int) -> CodeDistribution:
        """Return the distribution over the codes of ``n`` images."""
        return CodeDistribution(self, n)

    def logits(self, codes: Tensor) -> Tensor:
        """Return the logits of every code given those before it, float32.

        Args:
            codes: ``[B, T]``, in the order of the prior.

        Returns:
            ``[B, T, num_codes]``.
        """
        offset = self._book(codes.shape[1]) * self.num_codes
        given = self.embedding(codes + offset)[:, :-1]
        hidden, _ = self.body(torch.cat([self.begin.expand(len(codes), -1, -1), given], 1) + self._where())
        return self._heads(hidden, 0)

    @torch.no_grad()
    def draw(self, n: int, *, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
        """Draw codes, one after the other.

        Args:
            n: of so many images.
            temperature: divides the logits, >= 0; 0 takes the likeliest code each time.
            top_k: draw from the likeliest so many codes; from all by default.

        Returns:
            ``[n, T]``, in the order of the prior.

        Raises:
            ValueError: for a temperature below 0, or top_k outside 1 to num_codes.
        """
        if not temperature >= 0 or (top_k is not None and not 1 <= top_k <= self.num_codes):
            raise ValueError(
                f"got temperature={temperature}, top_k={top_k}; expected at least 0, and 1 to {self.num_codes} codes"
            )
        where, step = self._where(), self.begin.expand(n, -1, -1)
        drawn: list[Tensor] = []
        memory: Memory | None = None
        training = self.training
        self.eval()
        for t in range(self.length):
            hidden, memory = self.body(step + where[:, t : t + 1], memory)
            logits = self._heads(hidden, t)[:, 0]
            if top_k is not None:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
            if temperature == 0:
                drawn.append(logits.argmax(-1))
            else:
                drawn.append(torch.multinomial(torch.softmax(logits / temperature, -1), 1)[:, 0])
            step = self.embedding(drawn[-1] + (t % self.num_books) * self.num_codes).unsqueeze(1)
        self.train(training)
        return torch.stack(drawn, 1)

    def _where(self) -> Tensor:
        return (self.places + self.books).flatten(0, 1).unsqueeze(0)

    def _book(self, length: int) -> Tensor:
        return torch.arange(length, device=self.begin.device) % self.num_books

    def _heads(self, hidden: Tensor, start: int) -> Tensor:
        books = [(start + t) % self.num_books for t in range(min(hidden.shape[1], self.num_books))]
        parts = [self.head[book](hidden[:, i :: self.num_books]) for i, book in enumerate(books)]
        stacked = torch.stack(parts, 2).flatten(1, 2) if len(parts) > 1 else parts[0]
        return at_least_float32(stacked)


class CodeDistribution(Distribution):
    """The joint distribution of all codes of each of B images; a value is ``[B, *S]``, or ``[B, *S, Q]`` for Q > 1 codebooks.

    Args:
        prior: the network.
        n: B.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, prior: AutoregressivePrior, n: int) -> None:
        self.prior = prior
        event = (*prior.size, *((prior.num_books,) if prior.num_books > 1 else ()))
        super().__init__(torch.Size((n,)), torch.Size(event), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p in nats, ``[B]``.

        Args:
            value: codes, ``[B, *S]`` or ``[B, *S, Q]``.
        """
        codes = value.reshape(len(value), self.prior.length).long()
        terms = log_softmax(self.prior.logits(codes), -1).gather(-1, codes.unsqueeze(-1))
        return terms.flatten(1).sum(1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw codes, ``[B, *S]`` or ``[B, *S, Q]``."""
        if tuple(sample_shape):
            raise ValueError(f"got sample_shape={tuple(sample_shape)}; draw a larger batch instead")
        return self.sample_at(1.0)

    def sample_at(self, temperature: float, top_k: int | None = None) -> Tensor:
        """Draw codes at a temperature, from the likeliest ``top_k`` of each step."""
        drawn = self.prior.draw(self.batch_shape[0], temperature=temperature, top_k=top_k)
        return drawn.reshape(self._extended_shape())
