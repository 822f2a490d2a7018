"""From the logits of a model to the next token of each row: what `generate` chooses by.

The rules apply in this order, as in transformers: repetition penalty, temperature, top-k, top-p. A draw is a function
of the logits, a seed and a place, and of nothing else: there is no generator whose state a row shares with the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import torch

from mmm_block.config import is_int
from mmm_block.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's constants, as int64 holds them
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64
DRAW_BITS = 24  # what float32 holds exactly


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: Divides the logits; 0: the likeliest token is taken, and nothing is drawn.
        top_k: Draw from the k likeliest tokens; None: from all.
        top_p: Draw from the fewest of the likeliest tokens that together have at least this probability.
        repetition_penalty: Above 1, tokens that were there before become less likely; see `penalise_repeats`.
    Raises:
        InputError: A value is out of its range, or two contradict each other.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        heat, k, p, penalty = self.temperature, self.top_k, self.top_p, self.repetition_penalty
        _expect(
            _is_number(heat) and 0 <= heat < math.inf,
            "temperature",
            "a number of at least 0",
            heat,
            "0 takes the likeliest token.",
        )
        ok = k is None or (is_int(k) and k >= 1)
        _expect(ok, "top_k", "an int of at least 1, or None", k, "None keeps all.")
        ok = p is None or (_is_number(p) and 0 < p <= 1)
        _expect(ok, "top_p", "above 0 and at most 1, or None", p, "None keeps all.")
        ok = _is_number(penalty) and 0 < penalty < math.inf
        _expect(ok, "repetition_penalty", "a number above 0", penalty, "1 changes nothing.")
        for name, value in (("top_k", k), ("top_p", p)):
            advice = "Pass temperature=1.0 to draw from the model's own probabilities."
            _expect(value is None or heat > 0, name, "None at temperature = 0", value, advice)

    def choose(
        self,
        logits: Float[Tensor, "b v"],
        seen: Bool[Tensor, "b v"] | None,
        seeds: Int[Tensor, " b"],
        places: Int[Tensor, " b"],
    ) -> Int[Tensor, " b"]:
        """Choose the next token of each row.

        Args:
            logits: Of the next token, in float32 or wider.
            seen: True for the tokens of the vocabulary that were there before; None where no penalty asks for them.
            seeds: The seed of each row.
            places: The place of the next token in the text of each row.
        Returns:
            The tokens.
        """
        if seen is not None:
            logits = penalise_repeats(logits, seen, self.repetition_penalty)
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        # The greatest becomes 0: however small the temperature is, no two logits meet at infinity.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return draw(logits, uniform(seeds, places))


def penalise_repeats(logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float) -> Float[Tensor, "b v"]:
    """Divide the logits of the seen tokens by the penalty where they are positive, and else multiply them by it.

    Args:
        logits: Logits.
        seen: True for the tokens that were there before.
        penalty: Above 1 against repetition, below 1 for it.
    Returns:
        The logits, changed.
    Source:
        Keskar et al., CTRL, arXiv:1909.05858 §4.1; with the case of negative logits as transformers has it.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """The k greatest logits of each row, and those equal to the last of them; -inf for the others."""
    last = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < last, -math.inf)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """The fewest of the greatest logits of each row whose tokens have a probability of p together; -inf for the others.

    Source:
        Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751 §3.1.
    """
    if p == 1:  # all of them: sums that are rounded may not reach it
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    enough = probability.cumsum(dim=-1) - probability >= p  # without this one already
    return logits.masked_fill(torch.zeros_like(enough).scatter(1, order, enough), -math.inf)


def draw(logits: Float[Tensor, "b v"], at: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The token of each row in whose share of [0, 1) the number falls: token after token, each with its probability.

    Args:
        logits: Logits; -inf for a token that must not be drawn.
        at: A number of [0, 1) for each row.
    Returns:
        The tokens.
    """
    upper = logits.softmax(dim=-1).cumsum(dim=-1)
    token = torch.searchsorted(upper, (at * upper[:, -1])[:, None], right=True)[:, 0]
    return torch.where(token < logits.shape[-1], token, logits.argmax(dim=-1))  # NaN is nowhere below


def uniform(seeds: Int[Tensor, " b"], places: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Numbers of [0, 1) that a seed and a place alone decide, on every device.

    Args:
        seeds: Any integers.
        places: Which number of the seed's sequence.
    Returns:
        float32 numbers.
    Source:
        Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014: SplitMix64, whose sequences
        start where it mixes the seed to.
    """
    bits = _mix(_mix(seeds) + (places + 1) * GOLDEN)
    numbers: Tensor = _shift(bits, 64 - DRAW_BITS) * 2.0**-DRAW_BITS
    return numbers


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * MIX_1
    x = (x ^ _shift(x, 27)) * MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """`x >> by` of the bits, where the sign is one of them."""
    shifted: Tensor = (x >> by) & (2 ** (64 - by) - 1)
    return shifted


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _expect(ok: bool, name: str, what: str, got: object, advice: str) -> None:
    if not ok:
        raise InputError(f"generate: `{name}` must be {what}, got {got!r}. {advice}")
