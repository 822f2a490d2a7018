"""Batches by picture: each picture is read once, and all its questions come along."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from mmm_train.data.pictures import open_picture, to_bytes, to_tensor
from mmm_train.data.questions import QuestionSet
from mmm_train.data.tokenizer import ANSWER, END, PAD, Tokenizer
from mmm_train.errors import DataError
from mmm_train.seeds import derive

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
    from torch import Tensor

Change = Callable[["Float[Tensor, 'c y x']", int], "Float[Tensor, 'c y x']"]
IGNORE = -100
"""The label of a token that the model is not to write."""


class Batch(NamedTuple):
    """Some pictures and all questions about them. `i` counts pictures, `b` questions."""

    images: Float[Tensor, "i c y x"]
    text: Int[Tensor, "b l"]
    """Question, answer-start, answer, end; without the mark of the image, which comes first."""
    text_mask: Bool[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    """The tokens of answer and end at their own places."""
    image_of: Int[Tensor, " b"]
    """Which of the images a question is about."""

    @property
    def prompt_mask(self) -> Bool[Tensor, "b l"]:
        """True for what stands before an answer."""
        return self.text_mask & (self.labels == IGNORE)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


class Text(NamedTuple):
    """A question and its answer, in numbers."""

    tokens: Int[Tensor, " l"]
    labels: Int[Tensor, " l"]

    @classmethod
    def of(cls, tokenizer: Tokenizer, question: str, answer: str | None = None) -> Text:
        """Number the words.

        Args:
            tokenizer: Does it.
            question: The question; nothing for a caption.
            answer: The answer; None: the model is to write it.
        Returns:
            The numbers.
        """
        asked = [*tokenizer.encode(question), ANSWER]
        told = [] if answer is None else [*tokenizer.encode(answer), END]
        return cls(torch.tensor(asked + told), torch.tensor([IGNORE] * len(asked) + told))


class Example(NamedTuple):
    """One picture and the texts about it, in numbers."""

    image: Float[Tensor, "c y x"]
    texts: list[Text]


class Examples(Dataset[Example]):
    """The pictures of a set as tensors, with their questions in numbers.

    Args:
        data: The set.
        tokenizer: Numbers the words.
        image_size: Side of a picture in pixels.
    """

    KEEP = 2**28
    """Bytes of pictures that a set may keep in memory; those of a larger set are read anew in each epoch."""

    def __init__(self, data: QuestionSet, tokenizer: Tokenizer, image_size: int) -> None:
        self.data = data
        self.image_size = image_size
        self.change: Change | None = None
        self._keeps = len(data.pictures) * 3 * image_size**2 <= self.KEEP
        self._kept: dict[int, UInt8[Tensor, "c y x"]] = {}
        numbered = cache(lambda question: Text.of(tokenizer, question.text, question.answer))
        self._texts = [[numbered(question) for question in picture.questions] for picture in data.pictures]

    def __len__(self) -> int:
        return len(self.data.pictures)

    def __getitem__(self, index: int) -> Example:
        image = to_tensor(self._read(index))
        if self.change:
            image = self.change(image, index)
        return Example(image, self._texts[index])

    def _read(self, index: int) -> UInt8[Tensor, "c y x"]:
        values = self._kept.get(index)
        if values is None:
            values = to_bytes(open_picture(self.data.pictures[index].path), self.image_size)
            if self._keeps:
                self._kept[index] = values
        return values


def collate(examples: Sequence[Example]) -> Batch:
    """Put examples together; shorter texts are padded at their end."""
    texts = [text for example in examples for text in example.texts]
    tokens = pad_sequence([text.tokens for text in texts], batch_first=True, padding_value=PAD)  # (b, l)
    labels = pad_sequence([text.labels for text in texts], batch_first=True, padding_value=IGNORE)  # (b, l)
    counts = torch.tensor([len(example.texts) for example in examples])
    return Batch(
        images=torch.stack([example.image for example in examples]),
        text=tokens,
        text_mask=tokens != PAD,
        labels=labels,
        image_of=torch.arange(len(examples)).repeat_interleave(counts),
    )


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` pictures in an epoch."""
    order = list(range(count))
    random.Random(derive(seed, "order", epoch)).shuffle(order)
    return order


def batches(
    examples: Examples, size: int, *, order: Sequence[int] | None = None, start: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Read batches of `size` pictures.

    Args:
        examples: The pictures.
        size: Pictures of a batch; the last may have fewer.
        order: Their order; by default that of the set.
        start: First batch.
        workers: Processes that read; 0 reads here.
    Yields:
        One batch after the other.
    Raises:
        DataError: A picture cannot be read.
    """
    order = range(len(examples)) if order is None else order
    picked = [list(order[first : first + size]) for first in range(start * size, len(order), size)]
    loader = DataLoader(
        examples,
        batch_sampler=picked,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
    )
    try:
        yield from loader
    except DataError as error:  # that of a worker comes with its traceback as text, our message last
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the workers too; they end with the training."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
