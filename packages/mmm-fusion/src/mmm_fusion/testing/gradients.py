"""The rules on gradients: of parameters, and of what comes in, so that the encoder and the embeddings learn too."""

from __future__ import annotations

import torch
from torch import Tensor

from mmm_fusion.interface import FusionMethod
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import kinds_of_image, noise, places, where
from mmm_fusion.testing.rule import require, rule
from mmm_fusion.testing.settings import seeded

ROUNDING = 1e-6
"""Of the largest gradient: below, it may be a difference of sums."""


class GradientRules(Kit):
    """A test for each rule on gradients."""

    @rule("every parameter gets a gradient.", "use it in forward, do not detach or freeze it, or delete it.")
    def test_parameters_get_gradients(self) -> None:
        """After calls with every kind of image, no parameter is without a gradient, or has one of zeros."""
        method = self.make().train()
        for tokens in outputs(method, *self.inputs(p=12)):
            if tokens.requires_grad:
                weighted(tokens).backward()
        for name, parameter in method.named_parameters():
            require(parameter.grad is not None and bool(parameter.grad.any()), f"no gradient of `{name}`.")

    @rule(
        "a new method can learn: one of its parameters at least has a gradient.",
        "start one of two gates that are multiplied, or one of two layers in a row, away from zero.",
    )
    def test_start_can_learn(self) -> None:
        """The method as its constructor leaves it, in calls with every kind of image."""
        with seeded(0):
            method = self.new().double().train()
        parameters = list(method.parameters())
        for tokens in outputs(method, *self.inputs(p=12)):
            if tokens.requires_grad:
                weighted(tokens).backward()
        alive = any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)
        require(alive or not parameters, "every gradient of a new method is zero: it stays as it is for ever.")

    @rule(
        "text and image get gradients, in every row; none crosses rows, or goes from a word to a later one.",
        "do not detach what comes in; where no gradient can pass, as through argmax, let one pass beside it.",
    )
    def test_inputs_get_gradients(self) -> None:
        """By `forward` and by `read` and `join`, in evaluation and in training."""
        for kind, (image, given) in kinds_of_image(self.inputs(p=12)[1]).items():
            for training in (False, True):
                text = self.inputs()[0].requires_grad_()
                inputs = [("text", text)]
                if image is not None:
                    image = image.detach().requires_grad_()
                    inputs.append(("image", image))
                with seeded(0):
                    method = self.make().train(training)
                    output = method(text, image, **given)
                at, masked = where(kind, training), "image_mask" in given
                check_paths(output.tokens, places(output).start, inputs, masked, at)
                if image is not None:
                    memory = method.read(image, **given)
                    tokens = torch.cat([memory.prefix, method.join(text, memory)], dim=1)
                    check_paths(tokens, memory.prefix.shape[1], inputs, masked, f"{at}, by read and join")


def check_paths(tokens: Tensor, start: int, inputs: list[tuple[str, Tensor]], masked: bool, at: str) -> None:
    """Follow the gradients of one output, whose text begins at `start`; `masked`: row 1 has no image."""
    require(tokens.requires_grad, f"no gradient of the output{at}.")
    for row in range(len(tokens)):
        for name, grad in gradients(tokens[row : row + 1], inputs):
            require(bool(grad.isfinite().all()), f"a gradient of `{name}` that is not finite{at}.")
            own = bool(grad[row].any()) or (name == "image" and masked and row == 1)
            require(own, f"no gradient of `{name}` in row {row}{at}.")
            others = grad[torch.arange(len(grad)) != row].abs().amax()
            require(bool(others <= ROUNDING * grad.abs().amax()), f"row {row} sends other rows a gradient{at}.")
    for stop in range(start, tokens.shape[1]):
        (_, grad), *_ = gradients(tokens[:, : stop + 1], inputs)
        later = grad[:, stop + 1 - start :].abs()
        small = not later.numel() or bool(later.amax() <= ROUNDING * grad.abs().amax())
        require(small, f"text position {stop - start} sends later ones a gradient{at}.")


def gradients(tokens: Tensor, inputs: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Of a weighted sum of the tokens; zeros where there is no path."""
    grads = torch.autograd.grad(
        weighted(tokens), [x for _, x in inputs], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [(name, grad) for (name, _), grad in zip(inputs, grads, strict=True)]


def weighted(tokens: Tensor) -> Tensor:
    """A sum in which no two tokens cancel."""
    return (tokens * noise(tokens.shape, seed=2)).sum()


def outputs(method: FusionMethod, text: Tensor, image: Tensor) -> list[Tensor]:
    """The tokens of calls with every kind of image."""
    return [method(text, picture, **given).tokens for picture, given in kinds_of_image(image).values()]
