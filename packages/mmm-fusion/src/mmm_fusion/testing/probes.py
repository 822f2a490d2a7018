"""What the conformance tests are made of: probing inputs, comparisons, and errors that name the rule."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from mmm_fusion.interface import FusionMethod, FusionOutput

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

K = TypeVar("K")


class ContractViolation(AssertionError):
    """A method breaks a rule. The text says what was seen; the notes name the rule and the remedy."""


class Rule(NamedTuple):
    """What a test checks, and what to do where it is broken."""

    says: str
    remedy: str


def rule(says: str, remedy: str) -> Callable[[Callable[[K], None]], Callable[[K], None]]:
    """Mark a test as the check of one rule.

    What the test raises carries the rule and the remedy as notes. What a broken method did to the settings of torch
    and to the global generator ends with the test.

    Args:
        says: The rule.
        remedy: What to do where it is broken.
    """

    def mark(test: Callable[[K], None]) -> Callable[[K], None]:
        @functools.wraps(test)
        def checked(kit: K) -> None:
            with settings_kept(), torch.random.fork_rng(devices=[]):
                try:
                    test(kit)
                except Exception as error:
                    error.add_note(f"Rule: {says}")
                    error.add_note(f"To do: {remedy}")
                    raise

        setattr(checked, "rule", Rule(says, remedy))  # noqa: B010  # functions have no such attribute, says mypy
        return checked

    return mark


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "the float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
}
"""The settings of torch that hold for the process or the thread: how to read and to write each."""


def settings() -> dict[str, Any]:
    """The settings as they are now."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back the settings that were changed inside."""
    before = settings()
    try:
        yield
    finally:
        for name, value in settings().items():
            if value != before[name]:
                SETTINGS[name][1](before[name])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A global generator of this seed; the one before comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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


def masks(text: Tensor, image: Tensor) -> tuple[Bool[Tensor, "b l"], Bool[Tensor, "b p"]]:
    """Masks with padding in some rows."""
    text_mask, image_mask = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (text, image))
    text_mask[0, 3:] = text_mask[1, :1] = image_mask[1, 2:] = image_mask[2, :3] = False
    return text_mask, image_mask


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


def require(holds: bool, seen: str) -> None:
    """Raise with what was seen. Not `assert`, which `python -O` leaves out."""
    if not holds:
        raise ContractViolation(f"Seen: {seen}")
