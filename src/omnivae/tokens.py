"""Tokenisers: sentences to numbers and back, by words or by characters; the vocabulary is part of a model's configuration.

Four numbers are reserved: padding, the beginning and the end of a sentence, and whatever the vocabulary does not know.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from omnivae.component import Component

PAD, BEGIN, END, UNKNOWN = 0, 1, 2, 3
#: Names of the reserved numbers, as they are shown in text.
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
#: The first number that a sentence can hold: padding and beginning are never predicted.
FIRST_PREDICTED = END

#: Words with inner apostrophes and hyphens, numbers with inner points and commas, and every other mark by itself.
WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:['’\-]\w+)*|[^\w\s]")
#: Marks that stand close to the word before or after them.
BEFORE, AFTER = set(".,;:!?)]}%…"), set("([{$£€")


class Tokenizer(Component):
    """Base of the tokenisers.

    Args:
        vocabulary: what a token may be, each once; number 4 is the first.

    Raises:
        ValueError: for an empty vocabulary, or an entry that is there twice or reserved.
    """

    abstract = True

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._numbers = {token: number for number, token in enumerate((*SPECIALS, *self.vocabulary))}
        if not self.vocabulary:
            raise ValueError("got an empty vocabulary; expected at least one token besides the reserved ones")
        if len(self._numbers) != len(self):
            twice = [t for t, count in Counter((*SPECIALS, *self.vocabulary)).items() if count > 1]
            raise ValueError(
                f"the vocabulary holds {twice[0]!r} twice, or under a reserved name; expected each token once"
            )

    def __len__(self) -> int:
        return len(SPECIALS) + len(self.vocabulary)

    def split(self, text: str) -> list[str]:
        """Return the tokens of a sentence as text."""
        raise TypeError(f"{type(self).__name__} does not define split")

    def join(self, tokens: Sequence[str]) -> str:
        """Return the sentence that tokens make."""
        raise TypeError(f"{type(self).__name__} does not define join")

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a sentence, its end included; what is not in the vocabulary becomes ``UNKNOWN``.

        Args:
            text: one sentence.

        Returns:
            At least one number: the end.
        """
        return [self._numbers.get(token, UNKNOWN) for token in self.split(text)] + [END]

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the sentence of numbers, up to its end.

        Args:
            numbers: as :meth:`encode` returns them; padding is left out.

        Returns:
            Text, in which ``<unk>`` stands for an unknown token.

        Raises:
            ValueError: for a number that no token has.
        """
        names = (*SPECIALS, *self.vocabulary)
        tokens: list[str] = []
        for number in map(int, numbers):
            if number == END:
                break
            if not 0 <= number < len(names):
                raise ValueError(f"got the token {number}; this vocabulary has {len(names)}")
            if number not in (PAD, BEGIN):
                tokens.append(names[number])
        return self.join(tokens)

    def unknown(self, text: str) -> list[str]:
        """Return the tokens of a sentence that the vocabulary does not hold, in their order."""
        return [token for token in self.split(text) if token not in self._numbers]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"


class WordTokenizer(Tokenizer):
    """Words and punctuation marks.

    Args:
        vocabulary: the words.
        lowercase: read everything in lower case.

    Example:
        >>> words = WordTokenizer(["the", "cat", "sat", "."])
        >>> words.encode("the dog sat.")
        [4, 3, 6, 7, 2]
        >>> words.decode([4, 3, 6, 7, 2]), words.unknown("the dog sat.")
        ('the <unk> sat.', ['dog'])
    """

    def __init__(self, vocabulary: Sequence[str], lowercase: bool = False) -> None:
        super().__init__(vocabulary)
        self.lowercase = lowercase

    def split(self, text: str) -> list[str]:
        return words_of(text, lowercase=self.lowercase)

    def join(self, tokens: Sequence[str]) -> str:
        text = ""
        for i, token in enumerate(tokens):
            close = i == 0 or token in BEFORE or tokens[i - 1] in AFTER
            text += token if close else f" {token}"
        return text


class CharacterTokenizer(Tokenizer):
    """Single characters (Unicode code points in normal form C).

    Args:
        vocabulary: the characters.
        lowercase: read everything in lower case.

    Example:
        >>> letters = CharacterTokenizer(["a", "b", " "])
        >>> letters.encode("ab b"), letters.decode([4, 5, 6, 5, 2])
        ([4, 5, 6, 5, 2], 'ab b')
    """

    def __init__(self, vocabulary: Sequence[str], lowercase: bool = False) -> None:
        super().__init__(vocabulary)
        longer = [token for token in self.vocabulary if len(token) != 1]
        if longer:
            raise ValueError(f"got {longer[0]!r} in a vocabulary of characters; expected single characters")
        self.lowercase = lowercase

    def split(self, text: str) -> list[str]:
        return characters_of(text, lowercase=self.lowercase)

    def join(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)


def words_of(text: str, *, lowercase: bool = False) -> list[str]:
    """Return the words and punctuation marks of a sentence.

    Args:
        text: one sentence.
        lowercase: in lower case.

    Returns:
        Tokens.

    Example:
        >>> words_of("It's 3.5 well-known cats, isn't it?")
        ["It's", '3.5', 'well-known', 'cats', ',', "isn't", 'it', '?']
    """
    return WORD.findall(_normal(text, lowercase))


def characters_of(text: str, *, lowercase: bool = False) -> list[str]:
    """Return the characters of a sentence, without space at its ends.

    Args:
        text: one sentence.
        lowercase: in lower case.

    Returns:
        Tokens.
    """
    return list(_normal(text, lowercase).strip())


def frequent(sentences: Iterable[Sequence[str]], *, min_count: int = 1, max_size: int | None = None) -> list[str]:
    """Return the tokens that occur often enough, the most frequent first, ties in alphabetical order.

    Args:
        sentences: tokens of each sentence.
        min_count: occurrences from which a token belongs to the vocabulary.
        max_size: at most so many tokens.

    Returns:
        A vocabulary.

    Example:
        >>> frequent([["b", "a"], ["a", "c"], ["b"]], min_count=2)
        ['a', 'b']
    """
    counts = Counter(token for sentence in sentences for token in sentence if token not in SPECIALS)
    ranked = sorted((token for token, count in counts.items() if count >= min_count), key=lambda t: (-counts[t], t))
    return ranked[:max_size]


def _normal(text: str, lowercase: bool) -> str:
    text = unicodedata.normalize("NFC", text)
    return text.lower() if lowercase else text
