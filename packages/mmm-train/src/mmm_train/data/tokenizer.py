"""Words to numbers: a word-level tokenizer in lower case that knows the words of the training questions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

PAD, UNKNOWN = 0, 1


class Tokenizer:
    """Splits at spaces and around punctuation, and numbers the words. 0 pads, 1 is every unknown word.

    Args:
        inner: A tokenizer of the `tokenizers` library that does so; `learn` and `from_json` make one.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner

    @classmethod
    def learn(cls, texts: Iterable[str]) -> Self:
        """Number the words of some texts, the most frequent first.

        Args:
            texts: The questions of the training set.
        Returns:
            A tokenizer that knows all their words.
        """
        inner = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
        inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"], show_progress=False)
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
            text: A question.
        Returns:
            One number a word or punctuation mark.
        """
        return self._inner.encode(text).ids

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the training questions do not have.

        Args:
            text: A question.
        Returns:
            Those words, as written.
        """
        encoding = self._inner.encode(text)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end] for number, (start, end) in places if number == UNKNOWN]
