"""What the conformance tests are made of: probing inputs, calls and comparisons."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from mmm_fusion.interface import FusionMethod, FusionOutput
from mmm_fusion.testing.rule import require

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this dtype, so that one which is not registered, and not converted, can be told by name."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def fuse(method: FusionMethod, text: Tensor, image: Tensor | None, **given: Any) -> FusionOutput:
    """Call the method without a graph."""
    output: FusionOutput = method(text, image, **given)
    return output


def check_output(output: FusionOutput, text: Float[Tensor, "b l dim"]) -> None:
    """Refuse an output of the wrong types or shapes."""
    require(isinstance(output, FusionOutput), f"{type(output).__name__} in place of FusionOutput.")
    b, l, dim = text.shape
    shape = tuple(output.tokens.shape)
    require(len(shape) == 3 and shape[::2] == (b, dim), f"tokens {shape} for a text {tuple(text.shape)}.")
    require(isinstance(output.text, slice), f"{type(output.text).__name__} in place of a slice.")
    at = places(output)
    require(len(at) == l and at.step == 1, f"{output.text} of {shape[1]} tokens for {l} text positions.")
    if output.mask is not None:
        kind = f"a mask {output.mask.dtype} {tuple(output.mask.shape)} for tokens {shape}."
        require(output.mask.dtype == torch.bool and output.mask.shape == shape[:2], kind)


def places(output: FusionOutput) -> range:
    """The positions of the text."""
    return range(output.tokens.shape[1])[output.text]


def words(output: FusionOutput) -> Float[Tensor, "b l dim"]:
    """The tokens at the positions of the text."""
    return output.tokens[:, output.text]


def masks(text: Tensor, image: Tensor) -> tuple[Bool[Tensor, "b l"], Bool[Tensor, "b p"]]:
    """Masks with padding in some rows."""
    text_mask, image_mask = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (text, image))
    text_mask[0, 3:] = text_mask[1, :1] = image_mask[1, 2:] = image_mask[2, :3] = False
    return text_mask, image_mask


def kinds_of_image(image: Float[Tensor, "b 12 image_dim"]) -> dict[str, tuple[Tensor | None, dict[str, Any]]]:
    """The ways to pass an image of 12 tokens, or none: in words, the image, and what is given with it."""
    some = torch.ones(image.shape[:2], dtype=torch.bool)
    some[1] = False
    return {
        "an image": (image, {}),
        "an image on a grid": (image, {"image_grid": (3, 4)}),
        "no image": (None, {}),
        "an image masked out in one row": (image, {"image_mask": some}),
    }


def where(kind: str, training: bool) -> str:
    """A kind of image and a mode in words; nothing for the first of each."""
    return f"{'' if kind == 'an image' else f', with {kind}'}{', in training' if training else ''}"


def real(output: FusionOutput) -> Iterator[Float[Tensor, "m dim"]]:
    """The tokens of each row, without padding."""
    for row, tokens in enumerate(output.tokens):
        yield tokens if output.mask is None else tokens[output.mask[row]]


def leaves(tensor: Tensor) -> list[Tensor]:
    """The tensors at the ends of the autograd graph of `tensor`."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    todo: list[Any] = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal numbers in float64, from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding in float32, which a method may use inside."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def compare(a: Tensor, b: Tensor) -> str:
    """How far two outputs are apart."""
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} in place of {tuple(b.shape)}"
    largest = max((a - b).detach().abs().flatten().tolist(), default=0.0)
    return f"largest difference {largest:.2g}"
