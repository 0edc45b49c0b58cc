"""The text VAE: sentences to a vector and back (Bowman et al., Generating Sentences from a Continuous Space, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from omnivae.distributions import DiagonalGaussian
from omnivae.models.drawing import draw
from omnivae.models.sequences import Search, TokenSequences, generate
from omnivae.models.vae import VAE
from omnivae.tokens import BEGIN, END, PAD, Tokenizer
from omnivae.types import VAEOutput


class TextOutput(VAEOutput):
    """What a text VAE's forward pass returns; its reconstruction is text, so it is searched for only when it is asked for."""

    @cached_property
    def reconstruction(self) -> Tensor:
        """Greedy reconstruction from the first posterior sample: tokens ``[B, L]``, padded."""
        return self.likelihood.mode[0]


class TextVAE(VAE):
    """Variational autoencoder over sentences.

    Args:
        encoder: network from tokens to features.
        posterior: head from features to q(z|x).
        decoder: network from tokens so far and z to scores of the next token.
        prior: module that returns p(z).
        tokenizer: between text and tokens; part of the model's configuration.
        max_length: tokens of the longest sentence, its end included.
        word_dropout: share of the decoder's input tokens that training replaces by the unknown token, in [0, 1]. At 1 the
            decoder reads nothing but z.

    Example:
        >>> import omnivae
        >>> model = omnivae.text_vae(vocabulary=["a", "cat", "sat"], latent_dim=4, hidden=8).eval()
        >>> x = model.to_tokens(["a cat sat", "a cat"])
        >>> x
        tensor([[4, 5, 6, 2],
                [4, 5, 2, 0]])
        >>> model(x).likelihood.log_prob(x).shape, len(model.decode_text(model.encode(x)))
        (torch.Size([1, 2]), 2)
    """

    #: Losses and metrics of pixels do not apply.
    pixels = False

    def __init__(
        self,
        encoder: nn.Module,
        posterior: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        *,
        tokenizer: Tokenizer,
        max_length: int = 64,
        word_dropout: float = 0.0,
    ) -> None:
        # Not VAE's own: there is no likelihood module between the decoder's scores and the tokens.
        nn.Module.__init__(self)
        if not 0 <= word_dropout <= 1:
            raise ValueError(f"got word_dropout={word_dropout}; expected a share in [0, 1]")
        if max_length < 2:
            raise ValueError(f"got max_length={max_length}; expected at least 2: a token and the end of the sentence")
        self.encoder, self.posterior, self.decoder, self.prior = encoder, posterior, decoder, prior  # type: ignore[assignment]
        self.tokenizer, self.max_length, self.word_dropout = tokenizer, max_length, word_dropout
        self.value_range = (0.0, float(len(tokenizer) - 1))
        #: The one canvas of a vector latent, as for images: tokens of the longest sentence.
        self.image_size = (max_length,)
        self.statistics: dict[str, Any] = {}

    # -- tokens

    def encode(self, x: Tensor, cond: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z|x); deterministic, no sampling.

        Args:
            x: tokens ``[B, L]``, each sentence ended and padded.
            cond: ``None``; a text VAE takes no condition.

        Returns:
            The posterior, independent of the padding.

        Raises:
            ValueError: for anything but sentences of this vocabulary, or longer ones than ``max_length``.
        """
        self._check(x)
        posterior = self.posterior(self.encoder(x, cond))
        posterior.input_size = (x.shape[1],)
        return posterior

    def likelihood(
        self, z: Tensor | DiagonalGaussian, cond: Tensor | None = None, *, size: Sequence[int] | None = None
    ) -> TokenSequences:
        """Return p(x|z).

        Args:
            z: latents ``[B, D]`` or K samples ``[K, B, D]``, or a posterior (its mode).
            cond: ``None``.
            size: number of tokens of a sequence; that of the encoded sentences for a posterior, else ``max_length``.

        Returns:
            Distribution of batch shape ``[B]`` (``[K, B]``) and event shape ``[L]``.

        Raises:
            ValueError: for z of another shape, or a condition.
        """
        if not isinstance(z, Tensor):
            size = z.input_size if size is None else size
            z = z.mode()
        if cond is not None:
            raise ValueError("got a condition; a text VAE is built without one: leave cond out")
        if z.ndim not in (2, 3) or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"got z of shape {tuple(z.shape)}; expected [B, {self.latent_dim}] or [K, B, {self.latent_dim}]"
            )
        length = self.max_length if not size else int(size[0])
        # A model cast as a whole samples in float32 still; its decoder computes in its own type.
        z = z if torch.is_autocast_enabled(z.device.type) else z.to(next(self.parameters()).dtype)
        dropout = self.word_dropout if self.training else 0.0
        return TokenSequences(self.decoder, z, length=length, word_dropout=dropout)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, *, num_samples: int = 1, sample: bool | None = None
    ) -> VAEOutput:
        """Encode, sample, and read the sentences with each sample of z.

        Args:
            x: tokens ``[B, L]``.
            cond: ``None``.
            num_samples: posterior samples K for each sentence.
            sample: draw z (``True``) or take the mode (``False``); by default in training mode or when K > 1.

        Returns:
            Posterior, prior, samples and p(x|z), whose ``log_prob(x)`` is known already.
        """
        output = super().forward(x, cond, num_samples=num_samples, sample=sample)
        output.likelihood.log_prob(x)
        return TextOutput(output.latents, output.likelihood)

    def decode(
        self,
        z: Tensor | DiagonalGaussian,
        cond: Tensor | None = None,
        *,
        size: Sequence[int] | None = None,
        search: Search = "greedy",
        beam: int = 5,
        temperature: float = 1.0,
        unknown: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Write a sentence for each z.

        Args:
            z: latents ``[B, D]``, or a posterior (its mode).
            cond: ``None``.
            size: number of tokens; ``max_length`` by default, also for a posterior: z is all that the decoder knows.
            search: "greedy", "beam" or "sample".
            beam: hypotheses of "beam".
            temperature: of "sample".
            unknown: whether the unknown token may be written.
            generator: source of randomness of "sample", on the CPU.

        Returns:
            Tokens ``[B, max_length]``, padding after the end.
        """
        p = self.likelihood(z, cond, size=size or (self.max_length,))
        if len(p.batch_shape) != 1:
            raise ValueError(
                f"got z of shape {tuple(p.z.shape)}; expected [B, {self.latent_dim}]: decode samples one by one"
            )
        return generate(
            self.decoder, p.z, length=p.event_shape[0], search=search, temperature=temperature,
            beam=beam, unknown=unknown, generator=generator,
        )  # fmt: skip

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
        search: Search = "greedy",
    ) -> Tensor:
        """Draw z from the prior and write a sentence for each.

        Args:
            n: number of sentences.
            size: number of tokens; ``max_length`` by default.
            cond: ``None``.
            temperature: multiplies the prior's standard deviation.
            top_k: ``None``; for priors over codes.
            generator: source of randomness on the CPU, for samples that do not depend on the global seed.
            search: how the sentence is written, see :meth:`decode`.

        Returns:
            Tokens ``[n, max_length]``, padding after the end.
        """
        if n < 1:
            raise ValueError(f"got n={n}; expected at least one sentence")
        assert self.prior is not None, "a text VAE has a prior"
        prior = self.prior(torch.Size((n, self.latent_dim)), self.encode, None)
        z = draw(self, prior, temperature, top_k=top_k, generator=generator)
        return self.decode(z, cond, size=size, search=search, generator=generator)

    # -- text

    def to_tokens(self, sentences: Sequence[str]) -> Tensor:
        """Return the tokens of sentences, padded to the longest.

        Args:
            sentences: text.

        Returns:
            ``[B, L]`` int64, on the model's device.

        Raises:
            ValueError: for no sentence, or one of more than ``max_length`` tokens; says which.
        """
        if isinstance(sentences, str) or not len(sentences):
            raise ValueError(f"got {sentences!r}; expected a list of sentences")
        rows = [self.tokenizer.encode(sentence) for sentence in sentences]
        for sentence, row in zip(sentences, rows, strict=True):
            if len(row) == 1:
                raise ValueError(f"got {sentence!r}; expected a sentence of at least one token")
            if len(row) > self.max_length:
                raise ValueError(
                    f"got a sentence of {len(row)} tokens, its end included ({sentence[:40]!r}...); this model takes at most "
                    f"{self.max_length}: shorten it"
                )
        return pad_tokens([torch.tensor(row) for row in rows]).to(next(self.parameters()).device)

    def to_text(self, tokens: Tensor) -> list[str]:
        """Return the sentences of tokens ``[B, L]``."""
        return [self.tokenizer.decode(row) for row in tokens.tolist()]

    def decode_text(
        self, z: Tensor | DiagonalGaussian, *, search: Search = "greedy", unknown: bool = True
    ) -> list[str]:
        """Write a sentence for each z, as text.

        Args:
            z: latents ``[B, D]``, or a posterior (its mode).
            search: see :meth:`decode`.
            unknown: whether the unknown token may be written.

        Returns:
            Sentences.
        """
        return self.to_text(self.decode(z, search=search, unknown=unknown))

    # -- what training and evaluation ask of a model

    def num_values(self, x: Tensor) -> float:
        """Return how many values a sample has, averaged over the batch: tokens, the end included, padding not."""
        return float((x != PAD).sum()) / len(x)

    @torch.no_grad()
    def agreement(self, output: VAEOutput, x: Tensor) -> dict[str, Tensor]:
        """Return how well sentences are told by their codes.

        Args:
            output: for these sentences.
            x: tokens ``[B, L]``.

        Returns:
            ``token_accuracy``: share of the tokens, place by place.
        """
        written = self.decode(output.latents[0].posterior, size=(x.shape[1],))  # type: ignore[arg-type]
        real = x != PAD
        return {"token_accuracy": ((written == x) & real).sum() / real.sum()}

    def check_item(self, x: Tensor, key: str) -> None:
        """Refuse what is no sentence of this model.

        Args:
            x: tokens ``[L]``.
            key: name of the sentence.

        Raises:
            ValueError: says what is wrong with it.
        """
        try:
            self._check(x[None])
        except ValueError as error:
            raise ValueError(f"sentence {key!r}: {error}") from error

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.is_floating_point() or x.dtype == torch.bool:
            raise ValueError(
                f"got a {x.dtype} tensor of shape {tuple(x.shape)}; expected tokens [B, L] of whole numbers"
            )
        if not 1 <= x.shape[1] <= self.max_length:
            raise ValueError(
                f"got sentences of {x.shape[1]} tokens; this model takes 1 to {self.max_length}, the end included"
            )
        if x.device.type != "cpu" or not x.numel() or torch.compiler.is_compiling():
            return
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= len(self.tokenizer):
            raise ValueError(
                f"got tokens from {low} to {high}; this vocabulary has the numbers 0 to {len(self.tokenizer) - 1}"
            )
        after = torch.cumsum((x == END) | (x == PAD), 1) - (x == END).long()
        if bool(((x != PAD) & (after > 0)).any()) or bool((x[:, 0] == PAD).any()) or bool((x == BEGIN).any()):
            raise ValueError(
                "got an empty sentence, one that goes on after its end, or one with the token of a beginning; expected tokens "
                "as to_tokens returns them"
            )

    def extra_repr(self) -> str:
        """Return what is no submodule."""
        return f"likelihood=tokens one by one, tokenizer={self.tokenizer!r}, max_length={self.max_length}"


def pad_tokens(rows: Sequence[Tensor]) -> Tensor:
    """Return sequences of several lengths as one tensor.

    Args:
        rows: tokens ``[L_i]`` each, at least one.

    Returns:
        ``[B, max L_i]``, padded at the end.

    Example:
        >>> pad_tokens([torch.tensor([4, 2]), torch.tensor([2])])
        tensor([[4, 2],
                [2, 0]])
    """
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD)
