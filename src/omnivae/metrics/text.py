"""Metrics of sentences: perplexity by token and by word, and how much of a sentence its code brings back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from omnivae.metrics.density import nll
from omnivae.metrics.inference import Inference
from omnivae.metrics.population import Estimate, Population
from omnivae.metrics.registry import metric
from omnivae.tokens import PAD, UNKNOWN

#: Metrics that apply to sentences.
TEXT_METRICS = (
    "elbo", "nll", "kl", "token_perplexity", "word_perplexity", "token_accuracy", "bits_per_dim", "active_units",
    "mutual_information", "aggregate_kl", "total_correlation", "dimension_wise_kl", "prior_holes", "density_cv",
    "density_entropy", "density_gini",
)  # fmt: skip


def sentence_nats(inference: Inference) -> Mapping[str, Tensor]:
    """Return nats of each sentence by the importance-weighted bound, and its numbers of tokens, words and unknown tokens.

    Args:
        inference: the group.

    Returns:
        ``nats``, ``tokens`` (the end included), ``words`` (parted by space) and ``unknown``, each ``[B]``.

    Raises:
        ValueError: for a model of images.
    """
    model, x = inference.model, inference.x
    if not hasattr(model, "tokenizer"):
        raise ValueError("perplexity is of sentences, and this model is one of images: choose nll or bits_per_dim")
    words = [len(text.split()) for text in model.to_text(x)]
    return {
        "nats": nll(inference),
        "tokens": torch.tensor([model.num_values(row[None]) for row in x]),
        "words": torch.tensor(words, dtype=torch.float32),
        "unknown": (x == UNKNOWN).sum(1).float(),
    }


@metric(
    unit="",
    better="lower",
    meaning="Perplexity by token, the end of a sentence counted: how many equally likely tokens the next one is among, at most.",
    scope="population",
    comparable="likelihood",
    collect=sentence_nats,
)
def token_perplexity(population: Population) -> Estimate:
    """Return ``exp(nats of all sentences / tokens of all sentences)``, nats by the importance-weighted bound (an upper bound).

    Args:
        population: the sentences.

    Returns:
        At least 1.
    """
    return _perplexity(population, "tokens", "by token, the end of each sentence included")


@metric(
    unit="",
    better="lower",
    meaning="Perplexity by word (what space parts), for models of words and of characters alike.",
    scope="population",
    comparable="likelihood",
    collect=sentence_nats,
)
def word_perplexity(population: Population) -> Estimate:
    """Return ``exp(nats of all sentences / words of all sentences)``; the nats include punctuation and ends, the words do not.

    Args:
        population: the sentences.

    Returns:
        At least 1.
    """
    return _perplexity(population, "words", "by word as parted by space; ends and punctuation add nats and no words")


@metric(
    unit="",
    better="higher",
    meaning="Share of a sentence's tokens that greedy search from its code writes in the right place.",
    scope="inference",
)
def token_accuracy(inference: Inference) -> Tensor:
    """Return the share of tokens that the decoded mode of the posterior has in the right place, the end included.

    Args:
        inference: the batch.

    Returns:
        ``[B]`` in [0, 1].

    Raises:
        ValueError: for a model of images.
    """
    if not hasattr(inference.model, "tokenizer"):
        raise ValueError("token_accuracy is of sentences, and this model is one of images: choose psnr")
    x = inference.x
    written = inference.model.decode(inference.posterior, size=(x.shape[1],))
    real = x != PAD
    return ((written == x) & real).sum(1) / real.sum(1)


def _perplexity(population: Population, per: str, remark: str) -> Estimate:
    columns = [population.table(sentence_nats, name) for name in ("nats", per, "tokens", "unknown")]
    rows = torch.stack(columns, dim=1).double().numpy()
    unknown = rows[:, 3].sum() / rows[:, 2].sum()

    def statistic(values: np.ndarray) -> float:
        nats, count = values[:, 0].sum(), values[:, 1].sum()
        return math.exp(min(700.0, nats / count)) if count else math.nan

    return Estimate(rows, statistic, f"{remark}; {unknown:.2%} of the tokens are unknown")
