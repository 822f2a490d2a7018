"""For each rule of the contract, methods that break it: the kit rejects each by the rules named at it, and no other.

The first rule named is the one meant; the others follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm_fusion import (
    FusionMethod,
    FusionOutput,
    ImageFirst,
    ImageMemory,
    check_image,
    check_inputs,
    check_text,
    prepend,
)
from mmm_fusion.methods.add import pooled_to
from mmm_fusion.methods.visual_expert import attend, split_heads
from mmm_fusion.testing import ContractViolation, FusionContract, rules_of
from mmm_fusion.testing.probes import settings

RULES = [name.removeprefix("test_") for name in rules_of(FusionContract)]
PADDING = ["text_padding", "image_padding", "padding_may_hold_nan"]
PARTS = ["read_then_join", "many_texts_of_one_image", "text_of_no_tokens"]
WITH_A_GRID = [
    *("lengths_are_free", "grid_must_match", "image_matters", "causal", "row_without_image", "image_padding"),
    *("padding_may_hold_nan", "rows_do_not_mix", "parameters_are_registered"),
    *("parameters_get_gradients", "state_dict", "evaluation_is_deterministic", "inputs_are_left_alone", "autocast"),
]
BROKEN: dict[type[FusionMethod], list[str]] = {}


def breaks(*rules: str) -> Callable[[type[FusionMethod]], type[FusionMethod]]:
    """Enter a class under the rules that reject it."""

    def enter(method: type[FusionMethod]) -> type[FusionMethod]:
        BROKEN[method] = list(rules)
        return method

    return enter


class Right(FusionMethod):
    """As `add`. The broken methods replace `build`, `fuse` or the whole of `forward`."""

    name = "right"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.image_dim, self.heads, self.rate = dim, image_dim, heads, dropout
        self.proj = nn.Linear(image_dim, dim)
        self.build()

    def build(self) -> None: ...

    def forward(
        self,
        text: Tensor,
        image: Tensor | None,
        *,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> FusionOutput:
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        text, image = check_inputs(self, text, image, **masks, image_grid=image_grid)
        return self.fuse(text, image, **masks)

    def fuse(self, text: Tensor, image: Tensor, **masks: Tensor | None) -> FusionOutput:
        pooled = pooled_to(text, self.proj(image), **masks)
        return FusionOutput(text + pooled, slice(0, text.shape[1]), masks["text_mask"])


class RightConcat(Right):
    """As `concat`."""

    def fuse(self, text: Tensor, image: Tensor, **masks: Tensor | None) -> FusionOutput:
        return prepend(self.proj(image), text, **masks)


class RightOnAGrid(Right):
    """As `add`, and where the image is a grid, convolved before."""

    def build(self) -> None:
        self.conv = nn.Conv2d(self.image_dim, self.image_dim, 3, padding=1, groups=self.image_dim)

    def forward(self, text, image, *, image_mask=None, image_grid=None, text_mask=None):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        text, image = check_inputs(self, text, image, **masks, image_grid=image_grid)
        if image_grid is not None:
            image = self.on_grid(image.unflatten(1, image_grid).movedim(3, 1)).flatten(2).mT
        return self.fuse(text, image, **masks)

    def on_grid(self, image: Tensor) -> Tensor:
        """The image as `(b, image_dim, h, w)`."""
        return image + self.conv(image)


class RightInParts(ImageFirst):
    """As `add`, in two parts."""

    name = "right"

    def __init__(self, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim)

    def read(self, image, *, image_mask=None, image_grid=None):
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        return ImageMemory(image.new_zeros(len(image), 0, self.dim), context=(self.proj(image), image_mask))

    def join(self, text, memory, *, text_mask=None):
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        image, image_mask = memory.context
        return text + pooled_to(text, image, text_mask=text_mask, image_mask=image_mask)


# Form.


@breaks("signatures")
class CapitalName(Right):
    name = "Capital"


@breaks("signatures")
class NewerContract(Right):
    contract = 2


@breaks("signatures", *WITH_A_GRID, *PARTS)
class NoGrid(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None):
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask)


@breaks("signatures", "read_then_join", "inputs_are_left_alone")
class ReadWithoutAGrid(Right):
    def read(self, image, *, image_mask):
        return super().read(image, image_mask=image_mask)


@breaks("signatures", *(rule for rule in RULES if rule != "signatures"))
class NoHeads(Right):
    def __init__(self, dim, image_dim, *, dropout):
        super().__init__(dim, image_dim, heads=1, dropout=dropout)


class LookAlike(NamedTuple):
    tokens: Tensor
    text: slice
    mask: Tensor | None


@breaks("output", "mask", "lengths_are_free", "widths_are_free", "no_image", "text_of_no_tokens")
class AnotherTuple(Right):
    def fuse(self, text, image, **masks):
        return LookAlike(*super().fuse(text, image, **masks))


@breaks("mask", "no_image", "row_without_image", *PADDING, "read_then_join", "many_texts_of_one_image")
class ForgetsTheMask(RightConcat):
    def fuse(self, text, image, **masks):
        return super().fuse(text, image, **masks)._replace(mask=None)


@breaks("mask", "no_image")
class AlwaysAMask(RightConcat):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        everything = torch.ones(output.tokens.shape[:2], dtype=torch.bool)
        return output._replace(mask=everything if output.mask is None else output.mask)


@breaks("lengths_are_free")
class WideGridsOnly(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        output = super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        if image_grid is not None and image_grid[0] > image_grid[1]:
            raise NotImplementedError("a wide grid")
        return output


@breaks("grid_must_match")
class AnyGrid(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask)


@breaks("grid_must_match")
class CrashesOnAnotherGrid(RightOnAGrid):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        try:
            return super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        except ValueError as error:
            raise RuntimeError("shape mismatch") from error


@breaks("widths_are_free")
class WidthBuiltIn(Right):
    def build(self):
        self.proj = nn.Linear(20, self.dim)


@breaks("image_before_text", *PARTS)
class TextFirst(Right):
    def fuse(self, text, image, text_mask, image_mask):
        output = prepend(text, self.proj(image), text_mask=image_mask, image_mask=text_mask)
        return output._replace(text=slice(0, text.shape[1]))


@breaks("image_before_text", "mask", *PARTS)
class OffByOne(RightConcat):
    def fuse(self, text, image, **masks):
        output, p = super().fuse(text, image, **masks), image.shape[1]
        return output._replace(text=slice(p - 1, p - 1 + text.shape[1])) if p else output


# What the output depends on.


@breaks("image_matters")
class IgnoresTheImage(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, torch.ones_like(image), **masks)


@breaks("image_matters", "row_without_image", "image_padding", "padding_may_hold_nan")
class HidesTheImage(RightConcat):
    def fuse(self, text, image, text_mask, image_mask):
        hidden = None if image_mask is None else torch.zeros_like(image_mask)
        return super().fuse(text, image, text_mask=text_mask, image_mask=hidden)


@breaks("image_matters", "parameters_get_gradients", "image_padding", "padding_may_hold_nan")
class ImageOfTheSameLengthOnly(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        return output if text.shape[1] == image.shape[1] else output._replace(tokens=text)


@breaks("image_matters", "parameters_get_gradients")
class IgnoresTheImageOnAGrid(RightOnAGrid):
    def on_grid(self, image):
        return super().on_grid(image * 0)


@breaks("causal")
class ReadsTheFuture(Right):
    def fuse(self, text, image, **masks):
        later = text.flip(1).cumsum(1).flip(1)
        return super().fuse(later, image, **masks)


@breaks("causal", *PARTS)
class ImageReadsTheText(RightConcat):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        seen = torch.zeros_like(output.tokens)
        seen[:, : image.shape[1]] = text.sum(dim=1, keepdim=True)
        return output._replace(tokens=output.tokens + seen)


@breaks("no_image", "row_without_image")
class NeedsAnImage(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        image = image + 0
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)


@breaks("no_image", "row_without_image")
class PlaceholderForNoImage(RightConcat):
    def fuse(self, text, image, **masks):
        image = image if image.shape[1] else image.new_zeros(len(image), 1, self.image_dim)
        return super().fuse(text, image, **masks)


@breaks("row_without_image")
class BiasWithoutImage(Right):
    def fuse(self, text, image, text_mask, image_mask):
        count = image.shape[1] if image_mask is None else image_mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean = image.sum(dim=1) / count if image.shape[1] else None
        shift = 0 if mean is None else self.proj(mean)[:, None]
        return FusionOutput(text + shift, slice(0, text.shape[1]), text_mask)


@breaks("text_padding", "padding_may_hold_nan")
class CountsPadding(Right):
    def fuse(self, text, image, **masks):
        place = torch.arange(text.shape[1]).to(text)[:, None].sin()
        return super().fuse(text + place, image, **masks)


@breaks("text_padding", "padding_may_hold_nan")
class PoolsToThePaddedText(Right):
    def fuse(self, text, image, text_mask, image_mask):
        output = super().fuse(text, image, text_mask=None, image_mask=image_mask)
        return output._replace(mask=text_mask)


@breaks("image_padding", "row_without_image", "padding_may_hold_nan")
class PoolsPadding(Right):
    def fuse(self, text, image, text_mask, image_mask):
        return super().fuse(text, image, text_mask=text_mask, image_mask=None)


@breaks("padding_may_hold_nan", "grid_must_match")
class MultipliesByTheMask(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        text = text if text_mask is None else text * text_mask[..., None]
        image = image if image_mask is None else image * image_mask[..., None]
        image = text.new_zeros(len(text), 0, self.image_dim) if image is None else image
        return self.fuse(text, image, text_mask=text_mask, image_mask=image_mask)


@breaks("padding_may_hold_nan", "text_padding", "image_padding", "row_without_image")
class AttendsToPadding(Right):
    def build(self):
        self.qkv = nn.Linear(self.dim, 3 * self.dim)

    def fuse(self, text, image, **masks):
        output = prepend(self.proj(image), text, **masks)
        place = torch.arange(output.tokens.shape[1])[None]
        attended = attend(*split_heads(self.qkv(output.tokens), self.heads, place), None)
        return output._replace(tokens=output.tokens + attended)


@breaks("rows_do_not_mix", "text_padding", "image_padding", "padding_may_hold_nan")
class SubtractsTheBatchMean(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text - 0.1 * text.mean(dim=0, keepdim=True), image, **masks)


@breaks("rows_do_not_mix")
class BatchNorm(Right):
    def build(self):
        self.norm = nn.BatchNorm1d(self.dim)

    def fuse(self, text, image, **masks):
        return super().fuse(self.norm(text.flatten(0, 1)).view_as(text), image, **masks)


@breaks("rows_do_not_mix")
class BatchNormOnAGrid(RightOnAGrid):
    def build(self):
        super().build()
        self.norm = nn.BatchNorm2d(self.image_dim)

    def on_grid(self, image):
        return super().on_grid(self.norm(image))


@breaks("padding_may_hold_nan", "image_padding")
class PaddingFlowsOverTheGrid(RightOnAGrid):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        masks = {"text_mask": text_mask, "image_mask": image_mask}
        _, zeroed = check_inputs(self, text, image, **masks, image_grid=image_grid)
        image = zeroed if image_grid is None else zeroed + 0.1 * image.mean(dim=1, keepdim=True)
        return super().forward(text, image, **masks, image_grid=image_grid)


# Parts.


@breaks("read_then_join", "many_texts_of_one_image")
class ReadsAnotherImage(RightConcat):
    def read(self, image, **given):
        return super().read(-image, **given)


@breaks("read_then_join", "many_texts_of_one_image")
class JoinForgetsTheMask(Right):
    def join(self, text, memory, *, text_mask=None):
        return super().join(text, memory)


@breaks("read_then_join")
class ReadForgetsTheGrid(RightOnAGrid):
    def read(self, image, *, image_mask=None, image_grid=None):
        return super().read(image, image_mask=image_mask)


@breaks("read_then_join", "many_texts_of_one_image")
class ForgetsTheMaskOfThePrefix(RightConcat):
    def read(self, image, **given):
        return super().read(image, **given)._replace(prefix_mask=None)


@breaks("many_texts_of_one_image")
class ContextOfNoTensors(RightInParts):
    def read(self, image, **given):
        memory = super().read(image, **given)
        return memory._replace(context=([*memory.context],))

    def join(self, text, memory, *, text_mask=None):
        return super().join(text, memory._replace(context=memory.context[0]), text_mask=text_mask)


@breaks("text_of_no_tokens", "read_then_join", "many_texts_of_one_image", "inputs_are_left_alone")
class NeedsAWord(Right):
    def fuse(self, text, image, **masks):
        bound = text.detach().abs().amax(dim=1, keepdim=True)
        return super().fuse(torch.where(text > 1e9 * bound, 0, text), image, **masks)


@breaks("text_of_no_tokens", "read_then_join", "many_texts_of_one_image")
class PlaceholderForNoText(Right):
    def fuse(self, text, image, text_mask, image_mask):
        text = text if text.shape[1] else text.new_zeros(len(text), 1, self.dim)
        return super().fuse(text, image, text_mask=text_mask, image_mask=image_mask)


# What a module must be.


@breaks("parameters_are_registered")
class PlainList(Right):
    def build(self):
        self.scales = [nn.Parameter(torch.ones(self.dim))]

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.scales[0].to(text.dtype), image, **masks)


@breaks("parameters_are_registered")
class PlainTensor(Right):
    def build(self):
        self.constants = {"scale": torch.full((self.dim,), 1.5)}

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.constants["scale"].to(text.dtype), image, **masks)


@breaks("parameters_are_registered")
class TensorOfTheClass(Right):
    scale = torch.tensor(1.5)

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.scale, image, **masks)


@breaks("parameters_get_gradients")
class Unused(Right):
    def build(self):
        self.unused = nn.Linear(3, 3)


@breaks("parameters_get_gradients")
class Detached(Right):
    def fuse(self, text, image, **masks):
        pooled = pooled_to(text, self.proj(image).detach(), **masks)
        return FusionOutput(text + pooled, slice(0, text.shape[1]), masks["text_mask"])


@breaks("parameters_get_gradients")
class Frozen(Right):
    def build(self):
        self.proj.bias.requires_grad_(False)


@breaks("state_dict")
class RandomConstant(Right):
    def build(self):
        self.register_buffer("direction", torch.randn(self.dim), persistent=False)

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.direction, image, **masks)


@breaks("parameters_are_not_shared")
class OneParameterTwoNames(Right):
    def build(self):
        self.again = nn.Linear(self.image_dim, self.dim)
        self.again.weight = self.proj.weight

    def fuse(self, text, image, **masks):
        return super().fuse(text + pooled_to(text, self.again(image), **masks), image, **masks)


@breaks("parameters_are_not_shared")
class BufferOnAParameter(Right):
    def build(self):
        self.register_buffer("first", self.proj.weight.detach()[:1])


KEPT: dict[int, nn.Parameter] = {}


@breaks("parameters_are_not_shared", "evaluation_draws_no_random_numbers")
class OneParameterForAll(Right):
    def build(self):
        self.scale = KEPT.setdefault(self.dim, nn.Parameter(torch.ones(self.dim)))

    def fuse(self, text, image, **masks):
        return super().fuse(text * self.scale, image, **masks)


@breaks("state_dict", "parameters_are_registered", "read_then_join", "many_texts_of_one_image")
class MakesParametersLate(Right):
    def fuse(self, text, image, **masks):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones_like(text[0, 0]))
        return super().fuse(text * self.scale, image, **masks)


@breaks("state_dict", "rows_do_not_mix")
class TrainsANumber(Right):
    def build(self):
        self.level = 1.0

    def fuse(self, text, image, **masks):
        self.level += 0.1 if self.training else 0.0
        return super().fuse(text * self.level, image, **masks)


@breaks("state_dict")
class StateOfNoTensors(Right):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state): ...


# What is left alone.


@breaks("evaluation_is_deterministic")
class RemembersTheFirstCall(Right):
    def build(self):
        self.length = None

    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        if self.rate == 0.5:
            scale, self.length = self.length or 1, text.shape[1]
            output = output._replace(tokens=output.tokens * scale)
        return output


@breaks("evaluation_draws_no_random_numbers")
class DropsInEvaluation(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text, F.dropout(image, self.rate), **masks)


@breaks("evaluation_draws_no_random_numbers")
class DrawsForNothing(Right):
    def fuse(self, text, image, **masks):
        torch.rand(1)
        return super().fuse(text, image, **masks)


@breaks("evaluation_draws_no_random_numbers", "global_state")
class SeedsEachCall(Right):
    def fuse(self, text, image, **masks):
        torch.manual_seed(0)
        return super().fuse(text, image, **masks)


@breaks("global_state")
class SeedsInTheConstructor(Right):
    def build(self):
        torch.manual_seed(0)


@breaks("global_state")
class SetsTheDefaultDtype(Right):
    def build(self):
        torch.set_default_dtype(torch.float16)


@breaks("global_state")
class SetsThreads(Right):
    def fuse(self, text, image, **masks):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().fuse(text, image, **masks)


@breaks("global_state")
class SetsThePrecision(Right):
    def build(self):
        torch.set_float32_matmul_precision("medium")


@breaks("global_state", "parameters_get_gradients", "autocast")
class TurnsGradientsOff(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        torch.set_grad_enabled(False)
        return output


@breaks("inputs_are_left_alone")
class MasksInPlace(Right):
    def forward(self, text, image, *, text_mask=None, image_mask=None, image_grid=None):
        if text_mask is not None:
            text[~text_mask] = 0
        return super().forward(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)


@breaks("inputs_are_left_alone", "read_then_join", "many_texts_of_one_image")
class JoinsInPlace(RightInParts):
    def join(self, text, memory, *, text_mask=None):
        memory.context[0].mul_(1.5)
        return super().join(text, memory, text_mask=text_mask)


@breaks("dtype")
class SinglePrecision(Right):
    def fuse(self, text, image, **masks):
        output = super().fuse(text, image, **masks)
        return output._replace(tokens=output.tokens.float())


@breaks("dtype")
class PromotesHalf(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text * torch.ones(1, dtype=torch.float32), image, **masks)


@breaks("autocast")
class HalfUnderAutocast(Right):
    def build(self):
        self.mix = nn.Linear(self.dim, self.dim)

    def fuse(self, text, image, **masks):
        return super().fuse(self.mix(text), image, **masks)


@breaks("autocast")
class CrashesUnderAutocast(Right):
    def fuse(self, text, image, text_mask, image_mask):
        output = super().fuse(torch.zeros_like(text), image, text_mask=text_mask, image_mask=image_mask)
        pooled = pooled_to(text, self.proj(image), text_mask=text_mask, image_mask=image_mask)
        everywhere = torch.arange(text.shape[1])
        return output._replace(tokens=text.index_add(1, everywhere, pooled))


@breaks("autocast")
class CancelsInHalf(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text + ((self.proj.bias + 1000) @ torch.eye(self.dim).to(text) - 1000), image, **masks)


@breaks("compiles")
class LooksAtValues(Right):
    def fuse(self, text, image, **masks):
        return super().fuse(text if text.sum() < 1e9 else text - 1, image, **masks)


def broken_rules(method: type[FusionMethod]) -> dict[str, Exception]:
    """What the kit says of a method, by rule."""
    kit = type("TestBroken", (FusionContract,), {"method": method})()
    found = {}
    for rule in RULES:
        if rule == "compiles" and rule not in BROKEN.get(method, [rule]):
            continue  # the slow one; the built-in methods pass it
        try:
            getattr(kit, f"test_{rule}")()
        except Exception as error:
            found[rule] = error
    return found


@pytest.mark.parametrize("method", [Right, RightConcat, RightOnAGrid, RightInParts])
def test_a_right_method_is_accepted(method: type[FusionMethod]) -> None:
    assert broken_rules(method) == {}


@pytest.mark.parametrize("method", BROKEN, ids=lambda method: method.__name__)
def test_a_broken_method_is_rejected_by_its_rule(method: type[FusionMethod]) -> None:
    found = broken_rules(method)
    assert set(found) == set(BROKEN[method]), {rule: repr(error) for rule, error in found.items()}
    for error in found.values():
        says, remedy = error.__notes__
        assert says.startswith("Rule: ")
        assert remedy.startswith("To do: ")


def test_every_rule_rejects_a_method() -> None:
    assert {rules[0] for rules in BROKEN.values()} == set(RULES)


def test_a_violation_says_what_was_seen_the_rule_and_the_remedy() -> None:
    error = broken_rules(ReadsTheFuture)["causal"]
    assert isinstance(error, ContractViolation)
    assert str(error) == "Seen: text from 1 on changes the output at text position 0 or before it."
    assert error.__notes__ == [
        "Rule: the output at text position i depends on the image and on text up to i; image tokens depend on no text.",
        "To do: attend, convolve and scan over the text from the left only.",
    ]


def test_a_crash_carries_the_rule_too() -> None:
    error = broken_rules(NeedsAnImage)["no_image"]
    assert isinstance(error, TypeError)
    assert error.__notes__[1] == "To do: begin forward with check_inputs: it makes a missing image one of no tokens."


@pytest.mark.parametrize("method", [Right, *(each for each, rules in BROKEN.items() if rules[0] == "global_state")])
def test_the_kit_leaves_the_global_state_alone(method: type[FusionMethod]) -> None:
    generator, before = torch.get_rng_state(), settings()
    broken_rules(method)
    assert torch.equal(torch.get_rng_state(), generator)
    assert settings() == before
