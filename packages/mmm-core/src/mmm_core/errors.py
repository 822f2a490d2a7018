"""The errors of the kernels, and the checks that word them: where, what was expected = value, got value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


class ShapeError(ValueError):
    """An axis of a tensor disagrees with the others; the text names the tensor and what was expected."""


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run the call; the text gives the reason."""


def expect_rank(where: str, name: str, tensor: Tensor, axes: str) -> None:
    """Raise `ShapeError` unless `tensor` has as many axes as there are letters in `axes`."""
    if tensor.ndim != len(axes.split()):
        raise ShapeError(f"{where}: `{name}` must be {_tuple(axes.split())}, got {_tuple(tensor.shape)}.")


def expect_shape(where: str, name: str, tensor: Tensor, axes: str, sizes: tuple[int, ...], hint: str = "") -> None:
    """Raise unless a tensor has exactly the given sizes.

    Args:
        where: The function that checks, as the user called it.
        name: The argument's name.
        tensor: The argument.
        axes: The axes in letters, `b l e`.
        sizes: The size that each axis must have.
        hint: The next step, a sentence.
    Raises:
        ShapeError: The rank or a size differs.
    """
    if tensor.shape != sizes:
        text = f"{where}: `{name}` must be {_tuple(axes.split())} = {_tuple(sizes)}, got {_tuple(tensor.shape)}."
        raise ShapeError(f"{text} {hint}".rstrip())


def expect_floating(where: str, names: tuple[str, ...], tensors: tuple[Tensor | None, ...]) -> None:
    """Raise unless all tensors are real, floating and on the device of the first, which is there.

    Raises:
        TypeError: A tensor is of another dtype.
        ValueError: A tensor is on another device.
    """
    device = tensors[0].device  # type: ignore[union-attr]
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None:
            continue
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{where}: `{name}` must be float16, bfloat16, float32 or float64, got {tensor.dtype}. "
                f"Pass {name}.float()."
            )
        if tensor.device != device:
            raise ValueError(
                f"{where}: `{name}` must be on the device of `{names[0]}` = {device}, got {tensor.device}. "
                f"Pass {name}.to({names[0]}.device)."
            )


def _tuple(items: Iterable[object]) -> str:
    return str(tuple(items)).replace("'", "")
