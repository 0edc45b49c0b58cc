"""What the commands do with models of sentences: train, evaluate, sample, interpolate, reconstruct, report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import ConcatDataset, Subset

from omnivae.data import DataConfig, TextSplits, collate_text, is_text, load_text
from omnivae.files import write_atomic
from omnivae.jobs.config import RunConfig, build_losses
from omnivae.losses import Loss
from omnivae.metrics import METRICS, Evaluation, Provenance, evaluate
from omnivae.metrics.text import TEXT_METRICS
from omnivae.models import VAE
from omnivae.models.sequences import Search
from omnivae.models.storage import CONFIG, find_model, load_exactly, model_hash
from omnivae.models.text import TextVAE
from omnivae.recipes import text_vae

log = logging.getLogger(__name__)

Split = Literal["auto", "train", "val", "test", "all"]
#: What a report and an evaluation show, where nothing else is asked for.
DEFAULT_METRICS = (
    "elbo", "nll", "kl", "token_perplexity", "word_perplexity", "token_accuracy", "active_units", "mutual_information",
)  # fmt: skip
#: Arguments of the recipe that the sentences decide.
FROM_TEXT = {
    "vocabulary": "data.min_count",
    "tokens": "data.tokens",
    "lowercase": "data.lowercase",
    "max_length": "data.max_length",
}
REPORT_SENTENCES = 256


def prepare_text(config: RunConfig, directory: Path | None = None) -> tuple[TextVAE, dict[str, Loss], TextSplits]:
    """Build everything that a run on text needs, and refuse what cannot work, before anything is trained.

    Args:
        config: the run.
        directory: of the run; one that is continued keeps its vocabulary.

    Returns:
        Model, losses and sentences.

    Raises:
        ValueError: for a recipe of images, settings that the sentences decide, or a corpus that cannot be trained on.
    """
    arguments = dict(config.model)
    name = arguments.pop("recipe", "text_vae")
    if name != "text_vae":
        raise ValueError(
            f"the recipe {name!r} reads images and {config.data.path} is text: use text_vae, or give data.path a folder of images"
        )
    for argument, setting in FROM_TEXT.items():
        if arguments.get(argument) not in (None, "", [], ()):
            raise ValueError(f"model.{argument} comes from the sentences: leave it out and set {setting}")
        arguments.pop(argument, None)
    losses = build_losses(config.losses)
    if "nll" in losses and losses["nll"].per_element:
        raise ValueError(
            "losses.nll.per_element would divide by the padding of a batch as well: leave it out, or lower losses.nll.weight"
        )
    start = None if config.checkpoint is None else load_text_model(config.checkpoint)
    known = start
    if known is None and directory is not None and (directory / "model" / CONFIG).is_file():
        known = load_text_model(directory)
    splits = load_text(
        config.data,
        tokenizer=None if known is None else known.tokenizer,
        max_length=None if known is None else known.max_length,
        seed=config.training.seed,
        batch_size=config.training.batch_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = text_vae(
            **arguments,
            vocabulary=splits.tokenizer.vocabulary,
            tokens=splits.tokens,
            lowercase=splits.tokenizer.lowercase,  # type: ignore[attr-defined]
            max_length=splits.max_length,
        )
    if start is not None:
        load_exactly(model, start.state_dict(), str(config.checkpoint))
    model.statistics["data"] = {"name": splits.name}
    log.info("%s", splits.describe())
    return model, losses, splits


def choose_for_text(data: DataConfig) -> dict[str, Any]:
    """Choose model, losses and training for a corpus: what ``omnivae train`` does without a configuration.

    Args:
        data: what to train on.

    Returns:
        Sections model, losses and training.
    """
    from omnivae.recipes import MEMBERS

    known = MEMBERS["text_vae"]
    sentences = len(load_text(data).train)
    training = dict(known.training)
    # As many steps as teach something, whatever the size of the corpus; a cycle of the annealing is a fifth of them.
    training["batch_size"] = max(1, min(int(training["batch_size"]), sentences // 4))
    del training["num_epochs"]
    training["max_steps"] = 2000
    kl = {**known.losses["kl"], "weight": {"component": "CyclicalSchedule", "cycle_length": 400}}
    return {"model": {"recipe": "text_vae"}, "losses": {**known.losses, "kl": kl}, "training": training}


def is_text_model(model: str | Path) -> bool:
    """Return whether a directory holds a model of sentences.

    Args:
        model: a model directory or a run.

    Raises:
        FileNotFoundError: when there is no model.
    """
    try:
        config = json.loads((find_model(model) / CONFIG).read_text())
        return bool(config["model"]["component"] == "TextVAE")
    except (ValueError, KeyError, TypeError):
        return False  # a damaged configuration is reported where the model is loaded


def load_text_model(model: str | Path) -> TextVAE:
    """Load a model of sentences, onto the GPU if there is one, in float32.

    Args:
        model: a model directory or a run.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: for a model of images.
    """
    loaded = VAE.from_pretrained(model)
    if not isinstance(loaded, TextVAE):
        raise ValueError(
            f"{model} holds a {type(loaded).__name__}, a model of images; expected a model of text (text_vae)"
        )
    return loaded.to("cuda") if torch.cuda.is_available() else loaded


def text_for(model: str | Path, path: str | None, split: Split) -> tuple[TextVAE, Any, TextSplits, str]:
    """Load a model and the sentences that a command about it works on, cut by the model's own tokeniser.

    Args:
        model: a model directory or a run.
        path: the sentences; the run's own by default.
        split: which of them; "auto" is the test split of the run's own and everything of others.

    Returns:
        The model, the sentences, the data that they are of, and the name of the split.
    """
    from omnivae.jobs.run_data import is_same_data, run_data

    loaded = load_text_model(model)
    own = run_data(find_model(model))
    if path is None and own is None:
        raise ValueError("this model directory is not part of a run, so its text is not known: say --data.path FILE")
    same = own is not None and (path is None or is_same_data(path, own))
    config = own if own is not None and same else DataConfig(path=str(path))
    if not is_text(config):
        raise ValueError(
            f"{config.path} is no text, and this model reads sentences: give a .txt file with one sentence a line"
        )
    splits = load_text(config, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
    chosen = ("test" if same else "all") if split == "auto" else split
    dataset = ConcatDataset([splits.test, splits.val, splits.train]) if chosen == "all" else getattr(splits, chosen)
    return loaded, dataset, splits, chosen


def evaluate_text(
    model: str | Path,
    *,
    path: str | None = None,
    split: Split = "auto",
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    num_samples_nll: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a model of sentences: bounds, perplexities, use of the latent, reconstruction.

    Args:
        model: a model directory or a run.
        path: the sentences; the run's own by default.
        split: which of them.
        metrics: names of metrics; ``DEFAULT_METRICS`` by default.
        limit: at most so many sentences.
        num_samples_nll: K of the importance-weighted bound, which perplexities are of.
        seed: of the posterior noise and the bootstrap.
        progress: show progress on a terminal.

    Returns:
        Means, intervals, values of each sentence and the card.

    Raises:
        ValueError: for a metric of images.
    """
    names = list(DEFAULT_METRICS if metrics is None else metrics)
    for name in names:
        if name in METRICS and name not in TEXT_METRICS:
            raise ValueError(
                f"the metric {name!r} is of images, and this model reads sentences: choose from {', '.join(TEXT_METRICS)}"
            )
    loaded, dataset, splits, chosen = text_for(model, path, split)
    if limit is not None:
        if limit < 1:
            raise ValueError(f"got a limit of {limit} sentences (--data.limit); expected at least 1")
        dataset = Subset(dataset, range(min(limit, len(dataset))))
    prepared = {"tokens": splits.tokens, "max_length": splits.max_length, "vocabulary": len(splits.tokenizer)}
    known = Provenance(
        model_hash=model_hash(model), recipe="text_vae", data=splits.name, split=chosen, preprocessing=prepared
    )
    return evaluate(
        loaded, dataset, names, num_samples_nll=num_samples_nll, seed=seed, provenance=known, progress=progress
    )


@torch.no_grad()
def sample_sentences(
    model: str | Path, *, n: int = 16, temperature: float = 1.0, search: Search = "greedy", seed: int = 0
) -> list[str]:
    """Draw z from the prior and write a sentence for each.

    Args:
        model: a model directory or a run.
        n: number of sentences.
        temperature: multiplies the prior's standard deviation.
        search: "greedy", "beam" or "sample".
        seed: of the draw.

    Returns:
        Sentences.
    """
    loaded = load_text_model(model)
    tokens = loaded.sample(n, temperature=temperature, search=search, generator=torch.Generator().manual_seed(seed))
    return loaded.to_text(tokens)


@torch.no_grad()
def interpolate_sentences(
    model: str | Path, first: str, second: str, *, steps: int = 10, mode: Literal["linear", "spherical"] = "linear"
) -> list[str]:
    """Walk from one sentence to another through the latent.

    Args:
        model: a model directory or a run.
        first: sentence at the beginning.
        second: sentence at the end.
        steps: sentences on the way, those that both ends decode to included, >= 2.
        mode: straight line or great circle.

    Returns:
        Sentences; the first and last are the reconstructions of the ends.
    """
    from omnivae.report.latent_ops import great_circle

    loaded = load_text_model(model)
    _tell_unknown(loaded, [first, second])
    if steps < 2:
        raise ValueError(f"got {steps} steps (--steps); expected at least 2, both ends included")
    a, b = loaded.encode(loaded.to_tokens([first, second])).mode().unbind(0)
    path = torch.linspace(0, 1, steps, device=a.device)[:, None]
    return loaded.decode_text(torch.lerp(a, b, path) if mode == "linear" else great_circle(a, b, path))


@torch.no_grad()
def reconstruct_sentences(
    model: str | Path, texts: Sequence[str], *, search: Search = "greedy"
) -> list[tuple[str, str]]:
    """Encode and decode sentences.

    Args:
        model: a model directory or a run.
        texts: sentences, or text files with one sentence a line.
        search: "greedy" or "beam".

    Returns:
        Each sentence and what it decodes to.
    """
    from omnivae.data.corpus import read_corpus

    loaded = load_text_model(model)
    sentences: list[str] = []
    for text in texts:
        is_file = len(text) < 1024 and Path(text).suffix.lower() in (".txt", ".text")
        sentences += read_corpus(DataConfig(text, format="text")).sentences if is_file else [text]
    _tell_unknown(loaded, sentences)
    written: list[str] = []
    for start in range(0, len(sentences), 64):
        written += loaded.decode_text(loaded.encode(loaded.to_tokens(sentences[start : start + 64])), search=search)
    return list(zip(sentences, written, strict=True))


def draw_sentences(model: TextVAE, splits: TextSplits, path: Path) -> None:
    """Write reconstructions of validation sentences, and samples, into a text file.

    Args:
        model: in evaluation mode.
        splits: the sentences.
        path: to write.
    """
    texts = [splits.val.text(i) for i in range(min(8, len(splits.val)))]
    with torch.no_grad():
        pairs = zip(texts, model.decode_text(model.encode(model.to_tokens(texts))), strict=True)
        samples = model.to_text(model.sample(8, generator=torch.Generator().manual_seed(0)))
    lines = [f"{text}\n    -> {again}" for text, again in pairs] + ["", "from the prior:", *samples]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def report_text(model: str | Path, output: str | Path, *, path: str | None = None) -> Path:
    """Evaluate a model of sentences and write its report.

    Args:
        model: a model directory or a run.
        output: HTML file.
        path: the sentences to show; the run's own test sentences by default.

    Returns:
        The report.
    """
    from omnivae.jobs.doctor import diagnose
    from omnivae.report.text import text_report

    loaded, dataset, splits, _ = text_for(model, path, "auto")
    directory = find_model(model)
    run = directory.parent
    evaluation = evaluate_text(model, path=path, limit=REPORT_SENTENCES, progress=False)
    is_run = directory.name == "model" and (run / "config.yaml").is_file()
    if is_run and path is None:
        evaluation.to_json(run / "evaluation.json")
    sentences = loaded.to_text(collate_text([dataset[i] for i in range(min(16, len(dataset)))])["x"])
    history = run / "metrics.csv"
    html = text_report(
        loaded,
        sentences,
        evaluation=evaluation,
        history=history if is_run and history.is_file() else None,
        config_text=(run / "config.yaml").read_text() if is_run else None,
        facts=_facts(splits),
        advice=[finding.row() for finding in diagnose(run, look=False)] if is_run and history.is_file() else (),
        title=f"{splits.name}: {type(loaded).__name__}",
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, html.encode())
    return output


def without_compiling(training: Any) -> Any:
    """Return a training section for sentences: batches of many lengths would be compiled again and again.

    Args:
        training: the section.
    """
    return replace(training, compile=False) if training.compile == "auto" else training


def _facts(splits: TextSplits) -> list[tuple[str, str]]:
    s: Mapping[str, Any] = splits.summary
    counts = ", ".join(f"{len(getattr(splits, name)):,} {name}" for name in ("train", "val", "test"))
    unknown = ", ".join(f"{share:.2%} {name}" for name, share in s["unknown"].items())
    return [
        ("sentences", counts),
        ("vocabulary", f"{len(splits.tokenizer):,} {splits.tokens}s, four of them reserved"),
        ("unknown tokens", unknown),
        ("repeated sentences", f"{s['duplicates']:,}, each in the split of the first"),
        ("left out", f"{s['empty']:,} empty lines, {len(splits.skipped):,} others"),
    ]


def _tell_unknown(model: TextVAE, sentences: Sequence[str]) -> None:
    unknown = sorted({token for sentence in sentences for token in model.tokenizer.unknown(sentence)})
    if unknown:
        shown = ", ".join(map(repr, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        log.warning("%d tokens are not in the model's vocabulary and are read as <unk>: %s", len(unknown), shown)
