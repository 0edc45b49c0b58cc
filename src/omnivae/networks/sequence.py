"""Recurrent networks over token sequences (Bowman et al., Generating Sentences from a Continuous Space, 2015).

The encoder reads a sentence in both directions and keeps the last states; the decoder predicts each token from those before
it and from z, which is its initial state and part of its input at every step.

N sequences, T tokens, H width, E embedding, V numbers of tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from omnivae.component import Component
from omnivae.tokens import FIRST_PREDICTED, PAD

Cell = Literal["lstm", "gru"]
#: What a recurrent layer carries from token to token: one tensor for a GRU, two for an LSTM, ``[layers, N, H]`` each.
State = tuple[Tensor, ...]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class SequenceEncoder(nn.Module, Component):
    """Token sequences to one vector each: a bidirectional LSTM or GRU, its last state in each direction.

    Sequences are packed, so what stands behind the end of a sentence changes nothing.

    Args:
        num_tokens: numbers that a token may have, reserved ones included.
        embedding_dim: size of a token's vector.
        hidden: width H of each direction.
        num_layers: 1 to 3.
        cell: "lstm" or "gru".

    Example:
        >>> SequenceEncoder(10, 8, 16)(torch.tensor([[4, 5, 2], [6, 2, 0]])).shape
        torch.Size([2, 32])
    """

    def __init__(
        self, num_tokens: int, embedding_dim: int = 256, hidden: int = 256, *, num_layers: int = 1, cell: Cell = "lstm"
    ) -> None:
        super().__init__()
        _check(num_tokens, embedding_dim, hidden, num_layers, cell)
        self.dim, self.stride, self.in_channels = 1, 1, 1
        self.out_channels = 2 * hidden
        self.embedding = nn.Embedding(num_tokens, embedding_dim, padding_idx=PAD)
        self.recurrent = CELLS[cell](embedding_dim, hidden, num_layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return features.

        Args:
            x: tokens ``[N, T]``, padding at the end only, no sequence empty.
            cond: ``None``; this network takes no condition.

        Returns:
            ``[N, 2 H]``.

        Raises:
            ValueError: for a condition.
        """
        _refuse(cond)
        lengths = (x != PAD).sum(1).cpu()
        packed = pack_padded_sequence(self.embedding(x), lengths, batch_first=True, enforce_sorted=False)
        _, state = self.recurrent(packed)
        last = state[0] if isinstance(state, tuple) else state
        return torch.cat([last[-2], last[-1]], dim=1)


class SequenceDecoder(nn.Module, Component):
    """Tokens so far and z to scores of the next token.

    Args:
        num_tokens: numbers that a token may have, reserved ones included.
        latent_dim: size of z.
        embedding_dim: size of a token's vector.
        hidden: width H.
        num_layers: 1 to 3.
        cell: "lstm" or "gru".
        tied: score tokens with the same vectors that they are read by (Press & Wolf, Using the Output Embedding to Improve
            Language Models, 2017).

    Example:
        >>> decoder = SequenceDecoder(10, 3, 8, 16)
        >>> scores, state = decoder(torch.tensor([[1, 4, 5]]), torch.zeros(1, 3))
        >>> scores.shape  # padding and the beginning are never predicted
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        num_tokens: int,
        latent_dim: int,
        embedding_dim: int = 256,
        hidden: int = 256,
        *,
        num_layers: int = 1,
        cell: Cell = "lstm",
        tied: bool = False,
    ) -> None:
        super().__init__()
        _check(num_tokens, embedding_dim, hidden, num_layers, cell)
        self.dim, self.stride, self.in_channels = 1, 1, latent_dim
        self.num_tokens, self.num_layers, self.hidden, self.tied = num_tokens, num_layers, hidden, tied
        self.out_channels = num_tokens - FIRST_PREDICTED
        self.num_states = 2 if cell == "lstm" else 1
        self.embedding = nn.Embedding(num_tokens, embedding_dim, padding_idx=PAD)
        self.initial = nn.Linear(latent_dim, self.num_states * num_layers * hidden)
        self.recurrent = CELLS[cell](embedding_dim + latent_dim, hidden, num_layers, batch_first=True)
        self.output = nn.Linear(hidden, embedding_dim if tied else self.out_channels)
        if tied:
            self.bias = nn.Parameter(torch.zeros(self.out_channels))

    def start(self, z: Tensor) -> State:
        """Return the state before the first token, ``[layers, N, H]`` each.

        Args:
            z: latents, ``[N, latent_dim]``.
        """
        state = torch.tanh(self.initial(z)).unflatten(1, (self.num_states, self.num_layers, self.hidden))
        return tuple(part.transpose(0, 1).contiguous() for part in state.unbind(1))

    def forward(self, tokens: Tensor, z: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Score the token after each of the given ones.

        Args:
            tokens: what was read so far, from ``state`` on, ``[N, T]``; a sentence starts with the token of its beginning.
            z: latents, ``[N, latent_dim]``.
            state: where to continue; the start by default.

        Returns:
            Unnormalised log-probabilities of the numbers from ``FIRST_PREDICTED`` on, ``[N, T, out_channels]``, float32 or
            more; and the state after the last token.
        """
        state = self.start(z) if state is None else state
        inputs = torch.cat([self.embedding(tokens), z.unsqueeze(1).expand(-1, tokens.shape[1], -1)], dim=2)
        # Autocast leaves some of these in another type than the layer computes in.
        inputs, *state = (t.to(self._type(t)) for t in (inputs, *state))  # type: ignore[assignment]
        features, after = self.recurrent(inputs, tuple(state) if self.num_states == 2 else state[0])
        scores = self.output(features)
        if self.tied:
            scores = F.linear(scores, self.embedding.weight[FIRST_PREDICTED:]) + self.bias
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return scores, after if isinstance(after, tuple) else (after,)

    def _type(self, t: Tensor) -> torch.dtype:
        kind = t.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.embedding.weight.dtype


def _check(num_tokens: int, embedding_dim: int, hidden: int, num_layers: int, cell: str) -> None:
    if cell not in CELLS:
        raise ValueError(f"got cell={cell!r}; expected 'lstm' or 'gru'")
    if not 1 <= num_layers <= 3:
        raise ValueError(f"got num_layers={num_layers}; expected 1 to 3")
    if num_tokens <= FIRST_PREDICTED or embedding_dim < 1 or hidden < 1:
        raise ValueError(
            f"got num_tokens={num_tokens}, embedding_dim={embedding_dim}, hidden={hidden}; expected more than "
            f"{FIRST_PREDICTED} tokens and sizes of at least 1"
        )


def _refuse(cond: Tensor | None) -> None:
    if cond is not None:
        raise ValueError("got a condition; this sequence network is built without one: leave cond out")
