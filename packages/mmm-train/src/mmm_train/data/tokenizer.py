"""Words to numbers and back: a word-level tokenizer in lower case that knows the words of the training texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

PAD, UNKNOWN, IMAGE, ANSWER, END = range(5)
SPECIAL = ("[PAD]", "[UNK]", "<image>", "<answer>", "<end>")
"""Tokens that no text has: padding, an unknown word, the mark of an image, and where an answer begins and ends."""

NORMALIZER = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[\s▁]+"), " "),  # the tokens write a space as ▁
        normalizers.Strip(),
        normalizers.Replace(Regex(r" (?=[?!.,:;%)\]}…])"), ""),
    ]
)


def normal(text: str) -> str:
    """A text as the tokenizer reads and writes it.

    Args:
        text: Any.
    Returns:
        In lower case, with single spaces, and none before the marks that end a sentence or a part of it.
    """
    return NORMALIZER.normalize_str(text)


class Tokenizer:
    """Splits at spaces and around punctuation, and numbers the parts, a space before each included.

    Args:
        inner: A tokenizer of the `tokenizers` library that does so; `learn` and `from_json` make one.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        inner.encode_special_tokens = True  # a text that has "<image>" in it has no image there

    @classmethod
    def learn(cls, texts: Iterable[str]) -> Self:
        """Number the words of some texts, the most frequent first.

        Args:
            texts: The questions and answers of the training set.
        Returns:
            A tokenizer that knows all their words.
        """
        inner = tokenizers.Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
        inner.normalizer = NORMALIZER
        words = pre_tokenizers.Split(Regex(r"▁?(\w+|[^\w▁])"), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), words])
        inner.decoder = decoders.Metaspace()
        trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Args:
            text: Content of a tokenizer.json.
        Returns:
            The same tokenizer.
        """
        return cls(tokenizers.Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The tokenizer as text, readable by the `tokenizers` library.

        Returns:
            Content for a tokenizer.json.
        """
        return self._inner.to_str(pretty=True)

    def __len__(self) -> int:
        return self._inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's words.

        Args:
            text: A question or an answer.
        Returns:
            One number a word or punctuation mark.
        """
        return self._inner.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that some words make.

        Args:
            tokens: Their numbers; those of special tokens are left out.
        Returns:
            Of a text that was encoded and has no unknown word, what `normal` makes of it.
        """
        return self._inner.decode(list(tokens), skip_special_tokens=True)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the training texts do not have.

        Args:
            text: A question.
        Returns:
            Those words, as written.
        """
        encoding = self._inner.encode(text)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end].strip() for number, (start, end) in places if number == UNKNOWN]
