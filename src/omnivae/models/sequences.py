"""p(x|z) of token sequences: teacher-forced log-probabilities, and sentences by greedy search, beam search or sampling.

A sequence of L tokens is a sentence that ends within them, padded, or the first L tokens of one that goes on. Over these
the probabilities sum to one, for every L.

N sequences, L tokens, V numbers that can be predicted, W hypotheses of a beam.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from omnivae.tokens import BEGIN, END, FIRST_PREDICTED, PAD, UNKNOWN

Search = Literal["greedy", "sample", "beam"]
#: Scores held at once where no gradient is asked for: sentences times tokens times vocabulary.
SCORES = 2**25


class TokenSequences(Distribution):
    """An autoregressive distribution over token sequences: p(x|z) = prod_t p(x_t | x_<t, z).

    Args:
        decoder: network from tokens so far and z to scores of the next token, as ``SequenceDecoder``.
        z: latents, ``[*batch, latent_dim]``.
        length: tokens L of a sequence.
        word_dropout: share of the tokens that the decoder reads as unknown while it predicts the next; what it has to
            predict never changes (Bowman et al., Generating Sentences from a Continuous Space, 2015, section 3.2).
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.nonnegative_integer

    def __init__(self, decoder: Any, z: Tensor, *, length: int, word_dropout: float = 0.0) -> None:
        self.decoder, self.z, self.word_dropout = decoder, z, word_dropout
        self._read: tuple[Tensor, Tensor] | None = None
        super().__init__(z.shape[:-1], torch.Size((length,)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of sequences in nats.

        Args:
            value: tokens ``[*batch, L]`` or what broadcasts to it; padding after the end only.

        Returns:
            ``[*batch]``, float32 or more.
        """
        # The loss and the diagnosis of one step ask for the same sequences: the network reads them once.
        if self._read is not None and self._read[0] is value:
            known = self._read[1]
            if known.requires_grad or not torch.is_grad_enabled():
                return known
        tokens = value.expand(*self.batch_shape, value.shape[-1]).reshape(-1, value.shape[-1])
        result = self._log_prob(tokens, self.z.reshape(-1, self.z.shape[-1])).reshape(self.batch_shape)
        self._read = (value, result)
        return result

    def token_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each token given those before it, ``[*batch, L]``; 0 for padding.

        Args:
            value: as for :meth:`log_prob`.
        """
        tokens = value.expand(*self.batch_shape, value.shape[-1]).reshape(-1, value.shape[-1])
        return self._each(tokens, self.z.reshape(-1, self.z.shape[-1])).reshape(*self.batch_shape, -1)

    @property
    def mean(self) -> Tensor:
        """Tokens have no mean.

        Raises:
            ValueError: always; says what there is instead.
        """
        raise ValueError("sentences have no mean: take .mode (greedy search), .sample(), or decode(z, search='beam')")

    @property
    def mode(self) -> Tensor:
        """The sequence that greedy search finds, ``[*batch, L]``, padded: each token the most probable after those before."""
        tokens = generate(self.decoder, self.z.reshape(-1, self.z.shape[-1]), length=self.event_shape[0])
        return tokens.reshape(*self.batch_shape, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw sequences.

        Args:
            sample_shape: leading axes.

        Returns:
            ``[*sample_shape, *batch, L]``, padded.
        """
        shape = torch.Size(sample_shape)
        z = self.z.expand(*shape, *self.z.shape)
        tokens = generate(self.decoder, z.reshape(-1, z.shape[-1]), length=self.event_shape[0], search="sample")
        return tokens.reshape(*shape, *self.batch_shape, -1)

    def _log_prob(self, tokens: Tensor, z: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._each(tokens, z).sum(1)
        rows = max(1, SCORES // (tokens.shape[1] * self.decoder.out_channels))
        parts = zip(tokens.split(rows), z.split(rows), strict=True)
        return torch.cat([self._each(*part).sum(1) for part in parts])

    def _each(self, tokens: Tensor, z: Tensor) -> Tensor:
        inputs = F.pad(tokens[:, :-1], (1, 0), value=BEGIN)
        if self.word_dropout:
            dropped = torch.rand(inputs.shape, device=inputs.device) < self.word_dropout
            inputs = torch.where(dropped & (inputs >= UNKNOWN), UNKNOWN, inputs)
        scores, _ = self.decoder(inputs, z)
        # Padding has no score: it is taken for the first token and left out of the sum.
        targets = (tokens - FIRST_PREDICTED).clamp(min=0)
        picked = -F.cross_entropy(scores.transpose(1, 2), targets, reduction="none")
        return torch.where(tokens == PAD, torch.zeros_like(picked), picked)


@torch.no_grad()
def generate(
    decoder: Any,
    z: Tensor,
    *,
    length: int,
    search: Search = "greedy",
    temperature: float = 1.0,
    beam: int = 5,
    unknown: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Write sentences token by token.

    Args:
        decoder: network from tokens so far and z to scores of the next token.
        z: latents, ``[N, latent_dim]``.
        length: tokens at most, the end included, >= 1.
        search: "greedy" takes the most probable token, "sample" draws it, "beam" keeps the ``beam`` most probable beginnings.
        temperature: of "sample": below 1 nearer to greedy, > 0.
        beam: hypotheses W of "beam", >= 1.
        unknown: whether the unknown token may be written.
        generator: source of randomness on the CPU; torch's global one by default.

    Returns:
        Tokens ``[N, length]``, padding after the end.

    Raises:
        ValueError: for an unknown search, or numbers out of their range.
    """
    if search not in ("greedy", "sample", "beam"):
        raise ValueError(f"got search={search!r}; expected greedy, sample or beam")
    if length < 1 or beam < 1 or not temperature > 0:
        raise ValueError(
            f"got length={length}, beam={beam}, temperature={temperature}; expected 1, 1 and above 0, or more"
        )
    if search == "beam":
        return _beam_search(decoder, z, length, beam, unknown)
    token = torch.full((len(z), 1), BEGIN, device=z.device)
    ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    result = torch.full((len(z), length), PAD, device=z.device)
    state = None
    for place in range(length):
        scores, state = decoder(token, z, state)
        scores = _allowed(scores[:, 0], unknown)
        if search == "sample":
            # The largest of scores with Gumbel noise is a draw from their softmax (Gumbel, 1954).
            noise = torch.rand(scores.shape, generator=generator).clamp_(1e-20).to(scores)
            scores = scores / temperature - torch.log(-torch.log(noise))
        token = scores.argmax(1, keepdim=True) + FIRST_PREDICTED
        result[:, place] = torch.where(ended, PAD, token[:, 0])
        ended |= token[:, 0] == END
        if bool(ended.all()):
            break
    return result


def _beam_search(decoder: Any, z: Tensor, length: int, beam: int, unknown: bool) -> Tensor:
    """Return the most probable of the hypotheses that survive: probabilities of whole sentences, without a length penalty."""
    count, choices = len(z), decoder.out_channels
    z = z.repeat_interleave(beam, 0)
    token = torch.full((count * beam, 1), BEGIN, device=z.device)
    written = torch.full((count, beam, length), PAD, device=z.device)
    ended = torch.zeros(count, beam, dtype=torch.bool, device=z.device)
    # All hypotheses start equal: only the first counts, or the beam would be one sentence W times.
    total = torch.full((count, beam), -torch.inf, dtype=torch.float64, device=z.device)
    total[:, 0] = 0.0
    state = None
    for place in range(length):
        scores, state = decoder(token, z, state)
        step = _allowed(scores[:, 0], unknown).log_softmax(1).double().unflatten(0, (count, beam))
        # A sentence that has ended goes on in one way, at no cost.
        stay = torch.full_like(step, -torch.inf)
        stay[..., END - FIRST_PREDICTED] = 0.0
        candidates = (total[..., None] + torch.where(ended[..., None], stay, step)).flatten(1)
        total, chosen = candidates.topk(beam, dim=1)
        parent, new = chosen // choices, chosen % choices + FIRST_PREDICTED
        written = written.gather(1, parent[..., None].expand_as(written))
        ended = ended.gather(1, parent)
        written[..., place] = torch.where(ended, PAD, new)
        ended = ended | (new == END)
        rows = (parent + beam * torch.arange(count, device=z.device)[:, None]).flatten()
        state = tuple(part.index_select(1, rows) for part in state)
        token = new.reshape(-1, 1)
        if bool(ended.all()):
            break
    return written[:, 0]


def _allowed(scores: Tensor, unknown: bool) -> Tensor:
    if unknown:
        return scores
    scores = scores.clone()
    scores[..., UNKNOWN - FIRST_PREDICTED] = -torch.inf
    return scores
