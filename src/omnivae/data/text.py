"""Sentences to tokens: the vocabulary, three splits, and batches of sentences of about one length.

Equal sentences are in one split, so that no sentence of the test has been trained on; the vocabulary is
that of the training sentences.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from omnivae.data.config import DataConfig
from omnivae.data.corpus import Corpus, read_corpus
from omnivae.data.sources import SPLITS, Split
from omnivae.tokens import PAD, UNKNOWN, CharacterTokenizer, Tokenizer, WordTokenizer, characters_of, frequent, words_of
from omnivae.types import Batch

logger = logging.getLogger(__name__)

#: Tokens of a sentence, its end included, that are taken without being asked for by ``data.max_length``.
LONGEST = {"word": 256, "character": 1024}
#: Batches among which sentences of one length are brought together.
BUCKET = 50
#: Settings that apply to images alone, and those that apply to text alone.
IMAGES_ONLY = (
    "image_size", "channels", "value_range", "binarize", "flip", "random_crop", "resolutions", "input_range", "clip",
    "channel_axis", "pages_as_channels", "image_column", "label_column", "download",
)  # fmt: skip
TEXT_ONLY = ("tokens", "lowercase", "max_length", "min_count", "max_vocabulary", "text_column")


class TextSource:
    """All sentences of a corpus, under numbers; what a run writes down about its data.

    Args:
        corpus: the sentences.
    """

    in_memory = True
    labels = classes = None

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.name = corpus.name

    def __len__(self) -> int:
        return len(self.corpus.sentences)

    def key(self, number: int) -> str:
        """Return file and line of a sentence."""
        return self.corpus.keys[number]

    def content_hash(self, number: int) -> str:
        """Return the SHA-256 of a sentence, in hexadecimal."""
        return hashlib.sha256(self.corpus.sentences[number].encode()).hexdigest()

    def fingerprint(self, number: int) -> str:
        """Return what tells a sentence from another one."""
        return self.content_hash(number)[:16]


class TextDataset(Dataset):
    """One split of a corpus: items ``{"x": tokens [L], "key": file and line}``.

    Args:
        source: the sentences.
        indices: those of this split, ``[N]``.
        split: "train", "val" or "test".
        tokenizer: from text to tokens.
        seed: of the order in which sentences are seen.
        batch_size: sentences that are seen together; those of one batch have about one length.
    """

    def __init__(
        self,
        source: TextSource,
        indices: np.ndarray,
        *,
        split: Split,
        tokenizer: Tokenizer,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        self.source, self.indices, self.split, self.seed, self.batch_size = source, indices, split, seed, batch_size
        self.tokenizer = tokenizer
        self.rows = [torch.tensor(tokenizer.encode(self.text(i))) for i in range(len(indices))]
        self.keys = [source.key(int(i)) for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def text(self, index: int) -> str:
        """Return a sentence."""
        return self.source.corpus.sentences[int(self.indices[index])]

    def content_hash(self, index: int) -> str:
        """Return the SHA-256 of a sentence."""
        return self.source.content_hash(int(self.indices[index]))

    def keep_decoded(self, setting: Any, *, any_size: bool = False) -> bool:
        """Return False: sentences are in memory already."""
        return False

    def permutation(self, epoch: int) -> np.ndarray:
        """Return an order in which each batch has sentences of about one length, the batches mixed.

        Args:
            epoch: every epoch has another order.

        Returns:
            Every number from 0 to ``len(self) - 1`` once; a function of seed and epoch.
        """
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self))
        whole = len(order) // self.batch_size * self.batch_size
        # What fills no batch is left out of the epoch: drawn before sorting, so that it is not always the longest.
        head, tail = order[:whole], order[whole:]
        lengths = np.array([len(row) for row in self.rows])
        window = BUCKET * self.batch_size
        parts = [head[i : i + window] for i in range(0, whole, window)]
        batches = [b for p in parts for b in p[np.argsort(lengths[p], kind="stable")].reshape(-1, self.batch_size)]
        mixed = random.permutation(len(batches))
        return np.concatenate([*(batches[i] for i in mixed), tail])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        return {"x": self.rows[index], "key": self.keys[index]}


@dataclass(frozen=True)
class TextSplits:
    """The three splits of a corpus, and what they have in common.

    Attributes:
        train: training sentences.
        val: validation sentences.
        test: test sentences.
        name: of the file or folder.
        tokenizer: the vocabulary of the training sentences.
        tokens: "word" or "character".
        max_length: tokens of the longest sentence, its end included.
        skipped: file and line, and reason, of each line that is left out.
        summary: numbers of lines, empty lines, duplicates and unknown tokens.
        official_test: False: the test sentences are carved from the corpus.
        condition: None: sentences are told nothing beside themselves.
    """

    train: TextDataset
    val: TextDataset
    test: TextDataset
    name: str
    tokenizer: Tokenizer
    tokens: Literal["word", "character"]
    max_length: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    official_test: bool = False
    condition: None = None

    def describe(self) -> str:
        """Return what was found, in a sentence."""
        s = self.summary
        unknown = ", ".join(f"{share:.2%} of {name}" for name, share in s["unknown"].items())
        return (
            f"{s['sentences']:,} sentences of {self.name} ({s['empty']:,} empty lines and {len(self.skipped):,} others left out; "
            f"{s['duplicates']:,} repeat an earlier one and stay in its split), {len(self.tokenizer):,} {self.tokens}s with the "
            f"reserved ones, unknown: {unknown}; the longest sentence has {self.max_length} tokens"
        )


def load_text(
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    max_length: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> TextSplits:
    """Read a corpus and split it into training, validation and test sentences.

    The split is drawn by the SHA-256 of each sentence's tokens: it depends on no order and no machine, and equal sentences
    stay together.

    Args:
        config: what to read.
        tokenizer: a vocabulary to use; by default that of the training sentences.
        max_length: of the model that reads the sentences; ``config.max_length`` or the longest sentence by default.
        seed: of the order in which training sentences are seen.
        batch_size: sentences seen together.

    Returns:
        The three datasets.

    Raises:
        FileNotFoundError: when ``config.path`` does not exist.
        ValueError: for an empty corpus, one that is too small, bytes that are not UTF-8, or a sentence that is too long.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "corpus.txt"
        >>> _ = path.write_text("\\n".join(f"the {a} {b}" for a in "red old wet big".split() for b in "cat dog hen".split()))
        >>> splits = load_text(DataConfig(str(path), min_count=1))
        >>> len(splits.train), len(splits.val), len(splits.test), splits.max_length
        (10, 1, 1, 4)
    """
    for name in IMAGES_ONLY:
        if getattr(config, name) != _DEFAULTS[name]:
            raise ValueError(f"data.{name} is for images, and {config.path} is text: leave it out")
    own: Literal["word", "character"] = "word" if isinstance(tokenizer, WordTokenizer) else "character"
    kind = config.tokens if tokenizer is None else own
    lowercase = config.lowercase if tokenizer is None else tokenizer.lowercase  # type: ignore[attr-defined]
    cut = words_of if kind == "word" else characters_of
    corpus = read_corpus(config)
    pieces = [cut(sentence, lowercase=lowercase) for sentence in corpus.sentences]
    corpus, pieces, longest = _fitting(corpus, pieces, config, kind, max_length)
    if len(set(map(tuple, pieces))) < 3:
        raise ValueError(
            f"{config.path} holds {len(set(map(tuple, pieces)))} different sentences; expected at least 3, one for each of "
            "training, validation and test: one sentence a line"
        )
    indices, duplicates = _split(pieces, config)
    if tokenizer is None:
        training = [pieces[i] for i in indices["train"]]
        words = frequent(training, min_count=config.min_count, max_size=config.max_vocabulary)
        if not words:
            raise ValueError(
                f"no {kind} of {config.path} occurs {config.min_count} times in the training sentences: lower data.min_count to 1"
            )
        tokenizer = (WordTokenizer if kind == "word" else CharacterTokenizer)(words, lowercase)
    source = TextSource(corpus)
    sets = {
        split: TextDataset(
            source,
            indices[split],
            split=split,
            tokenizer=tokenizer,
            seed=seed,
            batch_size=min(batch_size, len(indices["train"])),
        )
        for split in SPLITS
    }
    unknown = {split: _unknown_share(dataset) for split, dataset in sets.items()}
    if unknown["train"] > 0.2:
        logger.warning(
            "%.0f %% of the training %ss are not in the vocabulary and become <unk>: lower data.min_count, or raise "
            "data.max_vocabulary", 100 * unknown["train"], kind,
        )  # fmt: skip
    summary = {"sentences": len(source), "empty": corpus.empty, "duplicates": duplicates, "unknown": unknown}
    return TextSplits(
        train=sets["train"],
        val=sets["val"],
        test=sets["test"],
        name=corpus.name,
        tokenizer=tokenizer,
        tokens=kind,
        max_length=longest,
        skipped=corpus.skipped,
        summary=summary,
    )


def collate_text(items: list[dict[str, Any]]) -> Batch:
    """Pad items of a :class:`TextDataset` to the longest of them.

    Args:
        items: at least one.

    Returns:
        ``x [B, L]``, and ``key`` as a list.

    Example:
        >>> collate_text([{"x": torch.tensor([5, 2]), "key": "a"}, {"x": torch.tensor([2]), "key": "b"}])["x"]
        tensor([[5, 2],
                [2, 0]])
    """
    x = torch.nn.utils.rnn.pad_sequence([item["x"] for item in items], batch_first=True, padding_value=PAD)
    return Batch(x=x, key=[item["key"] for item in items])


# -- inside

_DEFAULTS = {f.name: f.default for f in fields(DataConfig)}


def _fitting(
    corpus: Corpus, pieces: list[list[str]], config: DataConfig, kind: str, max_length: int | None
) -> tuple[Corpus, list[list[str]], int]:
    """Leave out what has no token or too many, and return how long a sentence may be."""
    limit = max_length or config.max_length or LONGEST[kind]
    lengths = [len(piece) + 1 for piece in pieces]
    long = [i for i, n in enumerate(lengths) if n > limit]
    if long and config.on_error == "stop":
        i = max(long, key=lengths.__getitem__)
        raise ValueError(
            f"{len(long)} of {len(pieces)} sentences have more than {limit} {kind}s with their end, the longest {lengths[i]} "
            f"({corpus.keys[i]}): one sentence a line is expected; set data.max_length to {lengths[i]}, or leave them out with "
            "data.on_error skip"
            if max_length is None
            else f"{corpus.keys[i]} has {lengths[i]} {kind}s with its end, and this model takes at most {limit}: shorten it, or "
            "leave such sentences out with data.on_error skip"
        )
    kept = [i for i, n in enumerate(lengths) if 1 < n <= limit]
    skipped = [*corpus.skipped, *((corpus.keys[i], f"{lengths[i]} {kind}s, more than {limit}") for i in long)]
    empty = corpus.empty + sum(n == 1 for n in lengths)
    if not kept:
        raise ValueError(f"{config.path} holds no sentence of at most {limit} {kind}s")
    left = Corpus(corpus.name, [corpus.sentences[i] for i in kept], [corpus.keys[i] for i in kept], empty, skipped)
    longest = max_length or config.max_length or max(lengths[i] for i in kept)
    return left, [pieces[i] for i in kept], longest


def _split(pieces: list[list[str]], config: DataConfig) -> tuple[dict[Split, np.ndarray], int]:
    """Return the sentences of each split in hash order, equal ones together, and how many repeat an earlier one."""
    groups: dict[bytes, list[int]] = {}
    for i, piece in enumerate(pieces):
        digest = hashlib.sha256("\0".join((str(config.split_seed), *piece)).encode()).digest()
        groups.setdefault(digest, []).append(i)
    ranked = [groups[digest] for digest in sorted(groups)]
    counts = {"val": config.val_fraction, "test": config.test_fraction}
    numbers = {name: max(1, round(len(ranked) * fraction)) for name, fraction in counts.items()}
    while sum(numbers.values()) >= len(ranked):
        numbers[max(numbers, key=lambda name: numbers[name])] -= 1
    cuts = np.cumsum([0, numbers["val"], numbers["test"]])
    parts: dict[Split, list[list[int]]] = {
        "val": ranked[cuts[0] : cuts[1]], "test": ranked[cuts[1] : cuts[2]], "train": ranked[cuts[2] :]
    }  # fmt: skip
    chosen = {name: np.array([i for group in part for i in group][: config.limit]) for name, part in parts.items()}
    return chosen, len(pieces) - len(groups)


def _unknown_share(dataset: TextDataset) -> float:
    counts = Counter(int(number) for row in dataset.rows for number in row[:-1])
    return counts[UNKNOWN] / max(1, sum(counts.values()))
