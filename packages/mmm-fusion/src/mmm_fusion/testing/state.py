"""The rules on what a method must leave alone: the settings of torch, its random numbers, and the caller's tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import compare, fuse, masks, require, rule, same, seeded, settings


class StateRules(Kit):
    """A test for each rule on what is left alone."""

    @rule("evaluation is deterministic.", "keep nothing from one call to the next.")
    def test_evaluation_is_deterministic(self) -> None:
        """A call made again, after other calls, gives the same."""
        method = self.make(dropout=0.5)
        text, image = self.inputs()
        outputs = []
        for _ in range(2):
            with seeded(0):
                outputs.append(fuse(method, text, image).tokens)
                fuse(method, *self.inputs(l=3, p=12, seed=1), image_grid=(3, 4))
        require(torch.equal(*outputs), f"the same call gave two outputs: {compare(*outputs)}.")

    @rule(
        "evaluation draws no random numbers, and seeds no generator.",
        "call dropout with `self.training`, and draw what is fixed in the constructor, into a buffer.",
    )
    def test_evaluation_draws_no_random_numbers(self) -> None:
        """The global generator changes nothing, and is not changed."""
        text, image = self.inputs()
        outputs = []
        for seed in (0, 1):
            method = self.make(dropout=0.5)
            with seeded(seed):
                before = torch.get_rng_state()
                outputs.append(fuse(method, text, image).tokens)
                untouched = torch.equal(torch.get_rng_state(), before)
            require(untouched, "a call in evaluation changes the state of the global generator.")
        require(same(*outputs), f"two seeds gave two outputs: {compare(*outputs)}.")

    @rule(
        "the settings of torch stay as they are: threads, default dtype, gradient and deterministic mode, precision. "
        "Constructor and training draw random numbers, and do not seed.",
        "use torch's context managers where a setting must differ for a moment, and leave seeds to the user.",
    )
    def test_global_state(self) -> None:
        """The constructor, a call in evaluation, and one in training with its backward."""
        text, image = self.inputs()
        with unchanged("the constructor"):
            self.new()
        check_not_seeded("the constructor", self.new)
        method = self.make(dropout=0.5)
        with unchanged("a call in evaluation"):
            method(text, image)
        method.train()
        with unchanged("a call in training"):
            tokens = method(text, image).tokens
            if tokens.requires_grad:
                tokens.sum().backward()
        check_not_seeded("a call in training", lambda: method(text, image))

    @rule("the inputs stay as they are.", "write into no tensor that was given: x = x + y in place of x += y.")
    def test_inputs_are_left_alone(self) -> None:
        """Texts, images and masks, and what `read` gave, after calls with them."""
        method = self.make()
        text, image = self.inputs(p=12)
        text_mask, image_mask = masks(text, image)
        masked = {"text_mask": text_mask, "image_mask": image_mask}
        before = [each.clone() for each in (text, image, text_mask, image_mask)]
        for given in ({}, {"image_grid": (3, 4)}, masked, {**masked, "image_grid": (3, 4)}):
            fuse(method, text, image, **given)
        with torch.no_grad():
            memory = method.read(image)
            first = method.join(text, memory)
            kept = first.clone()
            again = method.join(text, memory)
        for name, now, then in zip(("text", "image", *masked), (text, image, *masked.values()), before, strict=True):
            require(torch.equal(now, then), f"a call changes `{name}`.")
        require(torch.equal(again, kept), f"join changes what read gave: {compare(again, kept)}.")


@contextlib.contextmanager
def unchanged(what: str) -> Iterator[None]:
    """Refuse a change of the settings of torch."""
    before = settings()
    yield
    changed = [f"{what} sets {name} to {now}" for name, now in settings().items() if now != before[name]]
    require(not changed, "; ".join(changed) + ".")


def check_not_seeded(what: str, run: Callable[[], object]) -> None:
    """Refuse what leaves one state of the global generator, whatever it was before."""
    states = []
    for seed in (0, 1):
        with seeded(seed):
            run()
            states.append(torch.get_rng_state())
    require(not torch.equal(*states), f"{what} seeds the global generator.")
