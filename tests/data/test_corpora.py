"""A corpus: read to the byte, split by sentence, one vocabulary; and what is wrong with one."""

import gzip
import itertools
from dataclasses import replace

import pytest
import torch

from omnivae.data import DataConfig, collate_text, is_text, load_data, load_text
from omnivae.tokens import END, PAD, UNKNOWN, CharacterTokenizer, WordTokenizer, frequent, words_of

LINES = [
    f"the {a} {b} {c}." for a in ["red", "old", "wet", "big"] for b in ["cat", "dog", "hen"] for c in ["sits", "runs"]
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"

    def write(lines=LINES, data=None):
        path.write_bytes("\n".join(lines).encode() + b"\n" if data is None else data)
        return DataConfig(str(path), min_count=1)

    return write


def texts(dataset):
    return [dataset.text(i) for i in range(len(dataset))]


def test_every_sentence_is_in_one_split_and_comes_back(corpus):
    splits = load_text(corpus())
    parts = [texts(getattr(splits, name)) for name in ("train", "val", "test")]
    assert sorted(itertools.chain(*parts)) == sorted(LINES)
    assert [len(part) for part in parts] == [20, 2, 2]
    for dataset in (splits.train, splits.val, splits.test):
        for i, text in enumerate(texts(dataset)):
            item = dataset[i]
            assert item["x"][-1] == END
            if UNKNOWN not in item["x"]:
                assert splits.tokenizer.decode(item["x"].tolist()) == text
    assert splits.max_length == 6
    assert splits.summary["unknown"]["train"] == 0


def test_the_split_depends_on_sentences_and_seed_alone(corpus):
    first = load_text(corpus())
    assert set(texts(load_text(corpus(LINES[::-1])).test)) == set(texts(first.test))
    assert set(texts(load_text(replace(corpus(), split_seed=1)).train)) != set(texts(first.train))


def test_repeated_sentences_stay_together(corpus):
    # Equal as tokens, not as bytes: spacing and, where it is asked for, case say nothing.
    config = replace(corpus([*LINES, *LINES, *(line.upper().replace(" ", "  ") for line in LINES)]), lowercase=True)
    splits = load_text(config)
    parts = [{text.lower().replace("  ", " ") for text in texts(d)} for d in (splits.train, splits.val, splits.test)]
    assert parts[0] & parts[1] == parts[0] & parts[2] == parts[1] & parts[2] == set()
    assert splits.summary["duplicates"] == 2 * len(LINES)
    assert len(splits.train) == 3 * len(parts[0])


def test_the_vocabulary_is_of_the_training_sentences(corpus):
    config = corpus([*LINES, *(f"rare{i} word{i}" for i in range(60))])
    splits = load_text(replace(config, min_count=2))
    assert set(splits.tokenizer.vocabulary) == {word for line in LINES for word in words_of(line)}
    assert 0 < splits.summary["unknown"]["test"] < 1
    seen = [word for text in texts(splits.train) for word in words_of(text)]
    everything = load_text(config).tokenizer.vocabulary
    assert set(everything) == set(seen)
    assert list(everything) == frequent([seen])
    assert len(load_text(replace(config, max_vocabulary=5)).tokenizer.vocabulary) == 5


def test_batches_have_sentences_of_one_length_and_every_epoch_another_order(corpus):
    lines = [" ".join(["word"] * (1 + i % 12) + [str(i)]) for i in range(400)]
    train = load_text(corpus(lines), batch_size=8, seed=3).train
    orders = [train.permutation(epoch) for epoch in (0, 0, 1)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    assert sorted(orders[0].tolist()) == list(range(len(train)))
    lengths = torch.tensor([len(train.rows[i]) for i in orders[0][: len(train) // 8 * 8]]).reshape(-1, 8)
    assert float((lengths.max(1).values - lengths.min(1).values).float().mean()) <= 1
    assert lengths.float().mean(1).diff().abs().mean() > 1  # the batches themselves are mixed


def test_collating_pads_and_words_are_cut_as_documented():
    batch = collate_text([{"x": torch.tensor([5, 6, END]), "key": "a"}, {"x": torch.tensor([END]), "key": "b"}])
    assert batch["x"].tolist() == [[5, 6, END], [END, PAD, PAD]]
    assert batch["key"] == ["a", "b"]
    assert words_of("Don't say 3.14, (naïve) co-op!") == ["Don't", "say", "3.14", ",", "(", "naïve", ")", "co-op", "!"]
    words = WordTokenizer([*words_of("Don't say 3.14, (naïve)!"), "co-op"])
    assert words.decode(words.encode("Don't say 3.14, (naïve) co-op!")) == "Don't say 3.14, (naïve) co-op!"
    # Two spellings of one letter are one token.
    assert CharacterTokenizer(["\u00e9"]).encode("e\u0301") == [4, END]


def test_folders_tables_and_characters(corpus, tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(LINES[:12]))
    (folder / "b.txt").write_text("\ufeff" + "\r\n".join(LINES[12:]), newline="")
    assert is_text(DataConfig(str(folder)))
    splits = load_text(DataConfig(str(folder), min_count=1))
    assert sorted(itertools.chain(*(texts(d) for d in (splits.train, splits.val, splits.test)))) == sorted(LINES)
    assert {key.partition(":")[0] for key in splits.train.keys} == {"a.txt", "b.txt"}
    table = tmp_path / "reviews.csv"
    table.write_text("id,review\n" + "\n".join(f'{i},"{line}"' for i, line in enumerate(LINES)))
    assert not is_text(DataConfig(str(table)))
    config = DataConfig(str(table), text_column="review", min_count=1)
    assert is_text(config)
    assert load_text(config).summary["sentences"] == len(LINES)
    with pytest.raises(ValueError, match="no column 'text'; it has id, review"):
        load_text(replace(config, text_column="text"))
    letters = load_text(replace(corpus(), tokens="character"))
    assert set(letters.tokenizer.vocabulary) <= set("".join(LINES))
    assert letters.max_length == max(map(len, LINES)) + 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no sentence"),
        (b"\n  \n\n", "holds no sentence"),
        (b"one sentence\n", "1 different sentences; expected at least 3"),
        ("\n".join(LINES).encode("utf-16"), "is UTF-16"),
        (b"fine\nbroken \xff line\n", r"corpus\.txt:2: byte 8 of the line \(0xff\) is not UTF-8"),
        (b"fine\n\0\n", "NUL"),
        ("\n".join([*LINES, "word " * 300]).encode(), r"longest 301 \(corpus\.txt:25\).*data\.max_length to 301"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_said(corpus, data, message):
    with pytest.raises(ValueError, match=message):
        load_text(corpus(data=data))


def test_bad_lines_can_be_left_out_and_are_listed(corpus):
    data = "\n".join([*LINES, "", "word " * 300]).encode() + b"\n\xff\n"
    splits = load_text(replace(corpus(data=data), on_error="skip"))
    assert [key for key, _ in splits.skipped] == ["corpus.txt:27", "corpus.txt:26"]
    assert splits.summary["empty"] == 1
    assert "1 empty lines and 2 others left out" in splits.describe()


def test_settings_of_images_and_commands_of_images_refuse_text(corpus):
    with pytest.raises(ValueError, match=r"data\.image_size is for images"):
        load_text(replace(corpus(), image_size=8))
    with pytest.raises(ValueError, match="is text, and images are needed"):
        load_data(corpus())
    with pytest.raises(FileNotFoundError, match="one sentence a line"):
        load_text(DataConfig("missing.txt"))
    with pytest.raises(ValueError, match=r"data\.min_count"):
        DataConfig("a.txt", min_count=0)
    with pytest.raises(ValueError, match=r"no word of .* occurs 99 times"):
        load_text(replace(corpus(), min_count=99))


def test_a_compressed_file_is_no_text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_text(DataConfig(str(path)))
