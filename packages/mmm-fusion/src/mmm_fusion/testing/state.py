"""The rules on what a method must leave alone: the settings of torch, its random numbers, and the caller's tensors."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch

from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.module import tensors_in
from mmm_fusion.testing.parts import extend, join, read
from mmm_fusion.testing.probes import compare, fuse, masks, same, where
from mmm_fusion.testing.rule import require, rule
from mmm_fusion.testing.settings import generators, seeded, settings


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
        """The global generators of torch, Python and NumPy change nothing, and are not changed."""
        text, image = self.inputs()
        outputs = []
        for seed in (0, 1):
            method = self.make(dropout=0.5)
            with seeded(seed):
                before = generators()
                outputs.append(fuse(method, text, image).tokens)
                for name, state in generators().items():
                    require(state == before[name], f"a call in evaluation changes the global generator of {name}.")
        require(same(*outputs), f"two seeds gave two outputs: {compare(*outputs)}.")

    @rule(
        "the settings of torch stay as they are: threads, default dtype and device, gradient mode, autocast, precision "
        "and backends. Constructor and training draw random numbers, and do not seed.",
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
        """Texts, images and masks, and what `read` and `extend` gave, after calls, in evaluation and in training."""
        text, image = self.inputs(p=12)
        text_mask, image_mask = masks(text, image)
        masked = {"text_mask": text_mask, "image_mask": image_mask}
        before = [each.clone() for each in (text, image, text_mask, image_mask)]
        for training in (False, True):
            method = self.make(dropout=0.5).train(training)
            for given in ({}, {"image_grid": (3, 4)}, masked, {**masked, "image_grid": (3, 4)}):
                fuse(method, text, image, **given)
            memory = read(method, image)
            with torch.no_grad():
                _, begun = extend(method, text, memory, None)
                kept = copy.deepcopy((memory, begun))
                extend(method, text, begun, None)
            join(method, text, memory, None)
            now = (text, image, *masked.values())
            for name, after, then in zip(("text", "image", *masked), now, before, strict=True):
                require(torch.equal(after, then), f"a call changes `{name}`{where('an image', training)}.")
            for after, then in zip(tensors_in((memory, begun)), tensors_in(kept), strict=True):
                require(torch.equal(after, then), "join or extend changes the memory it is given.")


@contextlib.contextmanager
def unchanged(what: str) -> Iterator[None]:
    """Refuse a change of the settings of torch."""
    before = settings()
    yield
    changed = [f"{what} sets {name} to {now}" for name, now in settings().items() if now != before[name]]
    require(not changed, "; ".join(changed) + ".")


def check_not_seeded(what: str, run: Callable[[], object]) -> None:
    """Refuse what leaves one state of a global generator, whatever it was before."""
    states = []
    for seed in (0, 1):
        with seeded(seed):
            run()
            states.append(generators())
    for name, state in states[0].items():
        require(state != states[1][name], f"{what} seeds the global generator of {name}.")
