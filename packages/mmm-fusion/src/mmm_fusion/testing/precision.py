"""The rules on dtypes: as they come in, and under autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmm_fusion.interface import FusionMethod
from mmm_fusion.testing.kit import Kit
from mmm_fusion.testing.parts import extend, read
from mmm_fusion.testing.probes import fuse, kinds_of_image, masks, real, where
from mmm_fusion.testing.rule import require, rule

AUTOCAST_ERROR = 0.05
"""Root of the mean square of the difference to float32, over that of the result: bfloat16 has steps of 1/256, and
methods of several layers stay below 0.01."""


CASTS: dict[torch.dtype, Callable[[FusionMethod], FusionMethod]] = {
    torch.float32: nn.Module.float,
    torch.float64: nn.Module.double,
    torch.bfloat16: nn.Module.bfloat16,
    torch.float16: nn.Module.half,
}
"""These leave complex parameters as they are; `.to(dtype)` drops half of them."""


class PrecisionRules(Kit):
    """A test for each rule on dtypes."""

    @rule(
        "tokens have the dtype of the text and of the weights.",
        "make masks and constants in the dtype of the text: text.new_zeros, x.to(text.dtype).",
    )
    def test_dtype(self) -> None:
        """float16, bfloat16, float32 and float64 come out as they go in, by `read` and `extend` too."""
        for dtype, cast in CASTS.items():
            method = cast(self.make())
            text, image = (x.to(dtype) for x in self.inputs(p=12))
            for kind, (picture, given) in kinds_of_image(image).items():
                for text_mask in (None, masks(text, image)[0]):
                    output = fuse(method, text, picture, text_mask=text_mask, **given)
                    check_tokens(output.tokens, dtype, where(kind, False))
                    if picture is not None:
                        memory = read(method, picture, **given)
                        check_tokens(memory.prefix, dtype, f" by read{where(kind, False)}")
                        for _ in range(2):
                            tokens, memory = extend(method, text, memory, text_mask)
                            check_tokens(tokens, dtype, f" by extend{where(kind, False)}")

    @rule(
        "under autocast to bfloat16, weights and text in float32, tokens are float32, finite and close to the same "
        "call without autocast; gradients are finite.",
        "keep the residual in the dtype of the text: text + change, or x.to(text.dtype); give matrices of one dtype "
        "to operations that autocast leaves alone.",
    )
    def test_autocast(self) -> None:
        """On the CPU, with and without masks, with a grid, and backward."""
        method = self.make().float()
        text, image = (x.float() for x in self.inputs(p=12))
        text_mask, image_mask = masks(text, image)
        for given in ({}, {"image_grid": (3, 4)}, {"text_mask": text_mask, "image_mask": image_mask}):
            expected = fuse(method, text, image, **given)
            with torch.autocast("cpu", torch.bfloat16):
                output = method(text, image, **given)
            require(output.tokens.dtype == torch.float32, f"{output.tokens.dtype} for a text in float32.")
            require(bool(output.tokens.isfinite().all()), "values that are not finite.")
            a, b = (torch.cat(list(real(each))).detach() for each in (output, expected))
            error = float((a - b).square().mean().sqrt() / b.square().mean().sqrt())
            require(error <= AUTOCAST_ERROR, f"an error of {error:.0%}, above {AUTOCAST_ERROR:.0%}.")
            if output.tokens.requires_grad:
                output.tokens.sum().backward()
        for name, parameter in method.named_parameters():
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            require(finite, f"a gradient of `{name}` that is not finite.")


def check_tokens(tokens: Tensor, dtype: torch.dtype, at: str) -> None:
    """Refuse another dtype, and NaN or infinity."""
    require(tokens.dtype == dtype, f"{tokens.dtype} for a text in {dtype}{at}.")
    require(bool(tokens.isfinite().all()), f"values in {dtype} that are not finite{at}.")
