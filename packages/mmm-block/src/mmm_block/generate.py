"""Tokens that a `MultiModalMamba` writes behind its prompts, step by step, in memory that does not grow."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from mmm_block.config import is_int
from mmm_block.errors import InputError
from mmm_block.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from mmm_block.sampling import Sampling

Reason = Literal["stop_token", "stop_string", "length"]
SLACK = 8  # tokens that a tokenizer writes nothing for, inside a stop string


class Generation(NamedTuple):
    """What `MultiModalMamba.generate` returns.

    Attributes:
        tokens: What was written behind each prompt, `(b, n)`, the stop token included; padding behind a row's end.
        lengths: How many of them each row has, `(b,)`.
        reasons: Why each row ended: "stop_token", "stop_string", or "length", after max_new_tokens.
        state: What prompts and tokens left behind, the last token of each row included: the next part of a chat goes
            on from it.
    """

    tokens: Int[Tensor, "b n"]
    lengths: Int[Tensor, " b"]
    reasons: tuple[Reason, ...]
    state: ModelState


class Stopping:
    """When a row ends.

    Args:
        max_new_tokens: After so many tokens at the latest.
        tokens: After any of these; None: after none.
        strings: As soon as any of these is in the text of the row's new tokens.
        decode: Tokens to text; strings ask for it.
        vocab_size: Number of tokens of the vocabulary.
    Raises:
        InputError: A value is out of its range, or strings come without `decode`.
    """

    def __init__(
        self,
        max_new_tokens: int,
        tokens: int | Iterable[int] | Tensor | None,
        strings: str | Iterable[str],
        decode: Callable[[list[int]], str] | None,
        vocab_size: int,
    ) -> None:
        self.max_new_tokens, self.decode = max_new_tokens, decode
        self.tokens = _find_stops(tokens)
        self.strings = _find_strings(strings)
        if not is_int(max_new_tokens) or max_new_tokens < 1:
            raise InputError(
                f"generate: `max_new_tokens` must be an int of at least 1, got {max_new_tokens!r}. "
                "To read a prompt alone, call the model with return_state=True."
            )
        if outside := [token for token in self.tokens if not 0 <= token < vocab_size]:
            raise InputError(
                f"generate: `stop_tokens` must be from 0 to below vocab_size = {vocab_size}, got {outside[0]}. "
                "Use the tokenizer of this model."
            )
        if "" in self.strings:
            raise InputError("generate: `stop_strings` must have a letter or more each, got ''. Leave it out.")
        if self.strings and decode is None:
            raise InputError(
                "generate: with `stop_strings`, `decode` must turn tokens into text, got None. "
                "Pass decode=tokenizer.decode."
            )
        # How many of the last tokens a string can be spread over: each writes a byte or more.
        self.window = SLACK + max((len(each.encode()) for each in self.strings), default=0)

    def reason(self, token: int, count: int, last: list[int]) -> Reason | None:
        """Why a row ends with this token, its `count`-th; None: it goes on. `last` are its last tokens, with it."""
        if token in self.tokens:
            return "stop_token"
        if self.strings and self.decode is not None:
            text = self.decode(last)
            if any(each in text for each in self.strings):
                return "stop_string"
        return "length" if count == self.max_new_tokens else None


class TokenStream:
    """The tokens of each step, `(b,)`, as a model writes them: `MultiModalMamba.stream` makes it, and it is iterated.

    A row that has ended gets padding, and takes no part in the steps that follow.

    Args:
        step: As `MultiModalMamba.step`: reads a token of each row, writes the state, and gives the logits behind.
        logits: Behind the prompts.
        state: What the prompts left behind; it is written.
        seen: True for the tokens of the vocabulary that stand in each prompt; None without a repetition penalty.
        seeds: The seed of each row.
        sampling: How tokens are chosen.
        stopping: When rows end.
        mark: The token that is never written; None: there is none.
        padding: The token behind a row's end.
    Attributes:
        reasons: Why each row ended; None for one that goes on.
        lengths: How many tokens each row has got.
    """

    def __init__(
        self,
        step: Callable[[Int[Tensor, " b"], ModelState], Float[Tensor, "b v"]],
        logits: Float[Tensor, "b v"],
        state: ModelState,
        *,
        seen: Bool[Tensor, "b v"] | None,
        seeds: Int[Tensor, " b"],
        sampling: Sampling,
        stopping: Stopping,
        mark: int | None,
        padding: int,
    ) -> None:
        b = len(logits)
        self.reasons: list[Reason | None] = [None] * b
        self.lengths = [0] * b
        self._step, self._sampling, self._stopping, self._padding = step, sampling, stopping, padding
        self._mark = None if mark is None else torch.tensor([mark], device=logits.device)
        # Of the rows that go on:
        self._rows = list(range(b))
        self._logits, self._state, self._seen, self._seeds = logits, state, seen, seeds
        self._last: list[list[int]] = [[] for _ in range(b)]
        self._unread: Tensor | None = None  # tokens that the state does not hold yet
        self._ended: list[tuple[list[int], ModelState]] = []

    def __iter__(self) -> TokenStream:
        return self

    @torch.no_grad()
    def __next__(self) -> Int[Tensor, " b"]:
        self._read()
        if not self._rows:
            raise StopIteration
        chosen = self._choose()
        self._unread = chosen
        for place, token in enumerate(chosen.tolist()):
            row, last = self._rows[place], self._last[place]
            self.lengths[row] += 1
            last.append(token)
            self.reasons[row] = self._stopping.reason(token, self.lengths[row], last)
            del last[: -self._stopping.window]
        if len(self._rows) == len(self.reasons):
            return chosen.clone()  # the row numbers would have to go to the device
        tokens = chosen.new_full((len(self.reasons),), self._padding)
        tokens[self._rows] = chosen
        return tokens

    @property
    def state(self) -> ModelState:
        """What prompts and tokens so far left behind, of its own memory."""
        with torch.no_grad():
            self._read()
            parts = [*self._ended, (self._rows, self._state)]
            order = torch.tensor([row for rows, _ in parts for row in rows], device=self._seeds.device)
            return ModelState.cat([state for _, state in parts]).rows(order.argsort())

    def collect(self) -> Generation:
        """Run to the end, and return all tokens."""
        written = array("q")  # eight bytes a token
        for tokens in self:
            written.extend(tokens.tolist())
        device, b = self._seeds.device, len(self.reasons)
        tokens = torch.tensor(written, dtype=torch.long, device=device).view(-1, b).T.contiguous()
        reasons = tuple(reason for reason in self.reasons if reason is not None)
        return Generation(tokens, torch.tensor(self.lengths, device=device), reasons, self.state)

    def _choose(self) -> Tensor:
        logits = self._logits.to(torch.promote_types(self._logits.dtype, torch.float32))
        if self._mark is not None:
            logits = logits.index_fill(1, self._mark, -torch.inf)
        chosen = self._sampling.choose(logits, self._seen, self._seeds, self._state.length)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        return chosen

    def _read(self) -> None:
        """Let the model read what was written last, and put away the rows that ended with it."""
        if self._unread is None:
            return
        self._logits = self._step(self._unread, self._state)
        self._unread = None
        on = [place for place, row in enumerate(self._rows) if self.reasons[row] is None]
        if len(on) == len(self._rows):
            return
        off = [place for place in range(len(self._rows)) if place not in on]
        going, ended = (torch.tensor(x, dtype=torch.long, device=self._seeds.device) for x in (on, off))
        self._ended.append(([self._rows[place] for place in off], self._state.rows(ended)))
        self._state, self._logits, self._seeds = self._state.rows(going), self._logits[going], self._seeds[going]
        self._seen = None if self._seen is None else self._seen[going]
        self._rows, self._last = [self._rows[place] for place in on], [self._last[place] for place in on]


def _find_stops(tokens: int | Iterable[int] | Tensor | None) -> frozenset[int]:
    """The stop tokens as ints, however they are given.

    Raises:
        InputError: They are no ints.
    """
    if tokens is None:
        return frozenset()
    each = tokens.flatten().tolist() if isinstance(tokens, torch.Tensor) else tokens
    try:
        return frozenset(map(index, each if isinstance(each, Iterable) else (each,)))
    except TypeError as error:
        raise InputError(
            f"generate: `stop_tokens` must be an int, ints or None, got {tokens!r}. Text goes to stop_strings."
        ) from error


def _find_strings(strings: str | Iterable[str]) -> tuple[str, ...]:
    """The stop strings, however they are given.

    Raises:
        InputError: They are no strings.
    """
    found = tuple(strings) if isinstance(strings, Iterable) and not isinstance(strings, str) else (strings,)
    if not all(isinstance(each, str) for each in found):
        raise InputError(
            f"generate: `stop_strings` must be a string or strings, got {strings!r}. Leave it out where there are "
            "none; tokens go to stop_tokens."
        )
    return found


def check_prompts(attention_mask: Bool[Tensor, "b l"] | None) -> None:
    """Refuse prompts of which one is empty.

    Raises:
        InputError: A row has no real token.
    """
    if attention_mask is not None and not bool((real := attention_mask.any(dim=1)).all()):
        raise InputError(
            "generate: `attention_mask` must leave each row at least one real token, "
            f"got none in row {int(real.int().argmin())}. Begin an empty text with a token that begins texts."
        )


def find_seen(
    input_ids: Int[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"] | None, vocab_size: int
) -> Bool[Tensor, "b v"]:
    """Which tokens of the vocabulary stand in each prompt.

    Args:
        input_ids: Tokens.
        attention_mask: True for a real token; None: all are.
        vocab_size: Number of tokens of the vocabulary.
    Returns:
        True for those that do.
    """
    if attention_mask is not None:
        input_ids = input_ids.where(attention_mask.bool(), vocab_size)
    seen = torch.zeros(len(input_ids), vocab_size + 1, dtype=torch.bool, device=input_ids.device)
    return seen.scatter(1, input_ids.long(), True)[:, :vocab_size]


def find_seeds(
    seeds: Sequence[int] | Int[Tensor, " b"] | None, input_ids: Int[Tensor, "b l"], sampling: Sampling
) -> Int[Tensor, " b"]:
    """The seed of each row.

    Args:
        seeds: What the caller gave; None: torch's generator gives them.
        input_ids: Tokens.
        sampling: How tokens are chosen.
    Returns:
        The seeds.
    Raises:
        InputError: They are not one for each row, or nothing is drawn.
    """
    b, greedy = len(input_ids), sampling.temperature == 0
    if seeds is None:
        found = torch.zeros(b, dtype=torch.long) if greedy else torch.randint(2**63 - 1, (b,))
        return found.to(input_ids.device)
    try:
        found = torch.as_tensor(seeds, device=input_ids.device)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"generate: `seeds` must be b = {b} ints below 2**63, one for each row, got {seeds!r}. range(b) will do."
        ) from error
    if found.shape != (b,) or found.is_floating_point():
        raise InputError(
            f"generate: `seeds` must be b = {b} ints, one for each row, got {found.dtype} {tuple(found.shape)}. "
            "range(b) will do."
        )
    if greedy:
        raise InputError(
            "generate: `seeds` must be None at temperature = 0, where nothing is drawn, got some. "
            "Pass temperature=1.0 to draw from the model's own probabilities."
        )
    return found.long()
