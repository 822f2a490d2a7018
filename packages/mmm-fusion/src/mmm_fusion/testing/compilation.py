"""The rule on compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmm_fusion.interface import FusionMethod, FusionOutput
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.probes import compare, masks, real, same
from mmm_fusion.testing.rule import require, rule


class CompilationRules(Kit):
    """The slowest of the tests."""

    @rule(
        "works under torch.compile(fullgraph=True), forward and backward.",
        "let no Python branch depend on the values of a tensor.",
    )
    def test_compiles(self) -> None:
        """The compiled method gives the same, and the same gradients, for several lengths and kinds of input."""
        method = self.make()
        torch.compiler.reset()  # else many methods in one process reach the compiler's limit
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        for l, p, masked in ((5, 7, False), (6, 4, False), (5, 12, True), (6, 0, True)):
            text, image = self.inputs(l=l, p=p)
            text_mask, image_mask = masks(text, image)
            given: dict[str, Any] = {"text_mask": text_mask} if masked else {}
            if masked and p:
                given |= {"image_mask": image_mask, "image_grid": (3, p // 3)}
            picture = image if p else None
            with torch._dynamo.config.patch(allow_rnn=True):  # without it torch refuses its own GRU and LSTM
                output, grads = traced(compiled, method, text, picture, given)
            expected, expected_grads = traced(method, method, text, picture, given)
            require(output.text == expected.text, f"`text` {output.text} in place of {expected.text}.")
            require(same(output.tokens, expected.tokens), f"{compare(output.tokens, expected.tokens)}.")
            for name, grad in grads.items():
                seen = f"in the gradient of {name}, {compare(grad, expected_grads[name])}."
                require(same(grad, expected_grads[name]), seen)


def traced(
    call: Callable[..., FusionOutput], method: FusionMethod, text: Tensor, image: Tensor | None, given: dict[str, Any]
) -> tuple[FusionOutput, dict[str, Tensor]]:
    """What a call gives, and the gradients of the real tokens by text, image and parameters."""
    text = text.detach().requires_grad_()
    inputs = {"`text`": text, **{f"`{name}`": parameter for name, parameter in method.named_parameters()}}
    if image is not None:
        inputs["`image`"] = image = image.detach().requires_grad_()
    output = call(text, image, **given)
    total = torch.cat(list(real(output))).square().sum()
    if not total.requires_grad:
        return output, {}
    grads = torch.autograd.grad(total, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return output, dict(zip(inputs, grads, strict=True))
