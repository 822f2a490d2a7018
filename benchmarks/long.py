"""Does the hundred thousandth token cost what the first one costs, in time and in memory?

A small model reads an image and a few words, and writes 100,000 tokens: drawn, with a penalty for repetition and a stop
string that never comes, so that all of `generate` is at work. Checks that its steps give the logits of `forward`. Then
prints how much the resident memory grows behind the first thousand tokens, which Linux alone tells, and how long one
of the last thousand takes beside one of the first thousand of a second text: the two take turns.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timing import print_at_most, print_between, print_figure, setting

from mmm_block import MultiModalMamba
from mmm_core.testing import rms_error_ratio

if TYPE_CHECKING:
    from mmm_block import TokenStream

TOKENS, PART = 100_000, 1_000
MARK = 1
TOLERANCE = 1e-5


def make() -> MultiModalMamba:
    return MultiModalMamba(
        vocab_size=512,
        dim=64,
        depth=2,
        image_size=32,
        patch_size=8,
        encoder_dim=64,
        encoder_depth=1,
        encoder_heads=4,
        fusion_method="concat",
        image_token_id=MARK,
    ).eval()


def begin(model: MultiModalMamba) -> TokenStream:
    return model.stream(
        torch.tensor([[2, MARK, 3, 4]]),
        torch.zeros(1, 3, 32, 32),
        max_new_tokens=2 * TOKENS,
        temperature=1.0,
        top_p=0.95,
        repetition_penalty=1.1,
        seeds=[0],
        stop_strings="never",
        decode=lambda tokens: "".join(chr(ord("a") + token % 26) for token in tokens).replace("r", "R"),
    )


@torch.no_grad()
def check(model: MultiModalMamba) -> None:
    """Raise unless steps give the logits of the whole text."""
    text = torch.randint(2, 512, (2, 40))
    whole, state = model(text).logits, model(text[:, :4], return_state=True).state
    for place in range(4, 40):
        error = rms_error_ratio(model.step(text[:, place], state), whole[:, place])
        assert error <= TOLERANCE, f"token {place}: RMS error ratio {error:.2e} to forward, at most {TOLERANCE:.0e}"


def seconds(*streams: TokenStream) -> list[float]:
    """The median time of a token of each stream; they take turns for a part of their texts."""
    times: list[list[float]] = [[] for _ in streams]
    for _ in range(PART):
        for stream, taken in zip(streams, times, strict=True):
            start = time.perf_counter()
            next(stream)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def resident() -> float:
    """Resident memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    torch.manual_seed(0)
    model = make()
    check(model)
    print(f"{TOKENS:,} tokens of a small model ({setting()})")
    stream = begin(model)
    (first,) = seconds(stream)
    before = resident()
    for _ in range(TOKENS - 2 * PART):
        next(stream)
    print_at_most("growth of the resident memory, MiB", resident() - before, 5)
    late, early = seconds(stream, begin(model))
    print_between("one of the last 1,000 / one of the first 1,000", late / early, 0.95, 1.05)
    print_figure("one of the first 1,000, us", first * 1e6)


if __name__ == "__main__":
    main()
