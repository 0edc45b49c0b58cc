"""Sentences: a recurrent VAE over words or characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from omnivae.models.text import TextVAE
from omnivae.networks.sequence import Cell, SequenceDecoder, SequenceEncoder
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.family import member
from omnivae.tokens import CharacterTokenizer, WordTokenizer


@member(
    paper="Bowman et al., Generating Sentences from a Continuous Space (2015); annealing of Fu et al., Cyclical Annealing (2019)",
    equation="-E_q[Σ_t log p(x_t | x_<t, z)] + β(t) Σ_d max(0.5, KL_d), β from 0 to 1 in every cycle of 10 epochs",
    purpose="sentences as vectors: sampling, interpolation and reconstruction of text",
    losses={
        "nll": {},
        "kl": {
            "weight": {"component": "CyclicalSchedule", "cycle_length": 10, "unit": "epoch"},
            "free_bits": 0.5,
        },
    },
    training={"batch_size": 64, "learning_rate": 1e-3, "num_epochs": 50},
)
def text_vae(
    *,
    vocabulary: Sequence[str] = (),
    tokens: Literal["word", "character"] = "word",
    lowercase: bool = False,
    max_length: int = 64,
    latent_dim: int = 32,
    embedding_dim: int = 256,
    hidden: int = 256,
    encoder_layers: int = 2,
    decoder_layers: int = 1,
    decoder_hidden: int | None = None,
    decoder_embedding_dim: int | None = None,
    cell: Cell = "lstm",
    tied: bool = False,
    word_dropout: float = 0.25,
) -> TextVAE:
    """Return a recurrent VAE over sentences (Bowman et al., Generating Sentences from a Continuous Space, 2015).

    Args:
        vocabulary: words or characters; in a run they come from the training sentences.
        tokens: "word" or "character".
        lowercase: read everything in lower case.
        max_length: tokens of the longest sentence, its end included.
        latent_dim: size of z; 32 to 128 for sentences.
        embedding_dim: size of a token's vector.
        hidden: width of the encoder in each direction, and of the decoder.
        encoder_layers: 1 to 3.
        decoder_layers: 1 to 3.
        decoder_hidden: width of the decoder alone; ``hidden`` by default.
        decoder_embedding_dim: size of the vectors that the decoder reads words by; ``embedding_dim`` by default. Few numbers
            make a weaker decoder, which leaves more to z.
        cell: "lstm" or "gru".
        tied: score words with the vectors that they are read by.
        word_dropout: share of the decoder's input words that training hides, 0.25 to 0.5 against collapse.

    Returns:
        The model.

    Raises:
        ValueError: without a vocabulary.
    """
    if not vocabulary:
        raise ValueError(
            "got no vocabulary; give the words (or characters) of the text, or train with --data.path corpus.txt"
        )
    tokenizer = {"word": WordTokenizer, "character": CharacterTokenizer}[tokens](vocabulary, lowercase)
    encoder = SequenceEncoder(len(tokenizer), embedding_dim, hidden, num_layers=encoder_layers, cell=cell)
    posterior = GaussianPosterior(encoder.out_channels, latent_dim, 0)
    sizes = (decoder_embedding_dim or embedding_dim, decoder_hidden or hidden)
    decoder = SequenceDecoder(len(tokenizer), latent_dim, *sizes, num_layers=decoder_layers, cell=cell, tied=tied)
    return TextVAE(
        encoder, posterior, decoder, StandardNormal(),
        tokenizer=tokenizer, max_length=max_length, word_dropout=word_dropout,
    )  # fmt: skip
