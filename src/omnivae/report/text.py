"""The report on a model of sentences: one self-contained HTML file with tables of text in the place of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from omnivae.metrics import METRICS, Evaluation
from omnivae.report import page, plots
from omnivae.report.history import read_history
from omnivae.report.latent_ops import evaluating

#: Metrics in large print, and what they are called there.
TILES = (("token_perplexity", "perplexity by token"), ("word_perplexity", "perplexity by word"), ("kl", "KL"),
         ("active_units", "active units"), ("token_accuracy", "tokens brought back in place"))  # fmt: skip
SAMPLES, WALKS, STEPS = 16, 3, 7


def text_report(
    model: Any,
    sentences: Sequence[str],
    *,
    evaluation: Evaluation,
    history: str | Path | None = None,
    config_text: str | None = None,
    facts: Sequence[tuple[str, str]] = (),
    advice: Sequence[tuple[str, str, str]] = (),
    title: str = "omnivae report",
    seed: int = 0,
) -> str:
    """Return the page of a report on a model of sentences: reconstructions, samples, walks between sentences, curves, numbers.

    Args:
        model: a text VAE; left as it was.
        sentences: that are shown with their reconstructions, at least two.
        evaluation: numbers to show.
        history: a run's ``metrics.csv``, for the curves.
        config_text: the run's configuration, shown as it is.
        facts: names and values about the corpus.
        advice: (severity, what was seen, what to do).
        title: heading.
        seed: of the samples.

    Returns:
        HTML, self-contained.
    """
    with torch.no_grad(), evaluating(model):
        codes = model.encode(model.to_tokens(sentences))
        columns = [model.decode_text(codes), model.decode_text(codes, search="beam")]
        tokens = model.sample(SAMPLES, generator=torch.Generator().manual_seed(seed))
        samples = [text or "(an empty sentence)" for text in model.to_text(tokens)]
        walks = _walks(model, sentences, codes.mode())
    reconstructed = list(zip(sentences, *columns, strict=True))
    sections = [
        page.section("Summary", "", page.tiles(_tiles(evaluation)), page.facts(facts)),
        page.section(
            "Reconstructions",
            "Sentences of the test, and what the mode of each one's posterior decodes to, by greedy and by beam search.",
            page.table(("sentence", "greedy", "beam of 5"), reconstructed, ("", "", "")),
        ),
        page.section(
            "Samples",
            "z from the prior, greedy search.",
            page.table(("", "sentence"), [(str(i + 1), text) for i, text in enumerate(samples)], ("", "")),
        ),
        page.section(
            "Interpolations", "On the line between the codes of two sentences; the ends are reconstructions.", *walks
        ),
        *_numbers(evaluation),
    ]
    curves = None if history is None else read_history(history)
    if curves:
        note = "Each panel is one quantity over the training steps; bits per dimension are bits by token."
        sections.append(
            page.section("Training", note, page.picture(plots.curves(curves), "Training curves", scale=2 / 3))
        )
    if advice:
        content = page.table(("severity", "seen", "what it means, and what to do"), advice, ("", "", "meaning"))
        sections.append(
            page.section("Doctor", "What the rules of omnivae doctor found in the logs of this run.", content)
        )
    if config_text is not None:
        sections.append(page.folded("Configuration", page.code(config_text)))
    lead = f"{type(model).__name__} with {model.num_parameters():,} parameters and {model.latent_dim} latent dimensions"
    return page.page(title, lead, sections, "Written by omnivae. This file is self-contained.")


def _walks(model: Any, sentences: Sequence[str], z: torch.Tensor) -> list[str]:
    tables = []
    for i in range(min(WALKS, len(sentences) // 2)):
        weights = torch.linspace(0, 1, STEPS, device=z.device)[:, None]
        texts = model.decode_text(torch.lerp(z[2 * i], z[2 * i + 1], weights))
        rows = [(f"{float(w):.2f}", text) for w, text in zip(weights, texts, strict=True)]
        named = [("from", sentences[2 * i]), *rows, ("to", sentences[2 * i + 1])]
        tables.append(page.table(("", "sentence"), named, ("", "")))
    return tables


def _tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    known = ((evaluation.metrics[name], text) for name, text in TILES if name in evaluation.metrics)
    return [(f"{result.mean:.4g}", result.unit, text) for result, text in known]


def _numbers(evaluation: Evaluation) -> list[tuple[str, str]]:
    rows = [
        (
            name,
            mean.replace("-", "−"),
            interval.replace("-", "−"),
            unit,
            METRICS[name].meaning if name in METRICS else "",
        )
        for name, mean, interval, unit, _ in evaluation.rows()
    ]
    note = f"Of {evaluation.images:,} sentences, with 95 % bootstrap intervals."
    extra = [f"{name}: {text}." for name, text in evaluation.notes.items()]
    styles = ("", "number", "number", "number", "meaning")
    content = page.table(("metric", "mean", "95 % interval", "unit", "meaning"), rows, styles)
    parts = [page.section("Evaluation", " ".join([note, *extra]), content)]
    if evaluation.kl_per_dimension:
        picture = page.picture(plots.kl_bar(evaluation.kl_per_dimension), "KL of each latent dimension", scale=2 / 3)
        parts.insert(0, page.section("KL by dimension", "Dimensions near 0 are not in use.", picture))
    return parts
