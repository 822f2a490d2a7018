"""What the methods share at their two ends: the checks of what comes in, and the joining of what goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmm_fusion.errors import ArgumentError, InputError
from mmm_fusion.interface import FusionMethod, FusionOutput, ImageMemory
from mmm_fusion.masks import joint_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def check_arguments(method: FusionMethod, dim: int, image_dim: int, *, heads: int, dropout: float) -> None:
    """Refuse constructor arguments that no method can work with. Call it first in `__init__`.

    Args:
        method: Names the method in the error.
        dim: Width of the text, at least 1.
        image_dim: Width of the image tokens, at least 1.
        heads: Attention heads; divides `dim`, so that any method can take another's place.
        dropout: Probability, from 0 to below 1.
    Raises:
        ArgumentError: Names the argument.
    """
    where = f"fusion method '{method.name}'"
    check_counts(method, dim=dim, image_dim=image_dim, heads=heads)
    if dim % heads:
        divisors = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0)
        raise ArgumentError(f"{where}: `heads` must divide dim = {dim}, got {heads}. Choose one of {divisors}.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ArgumentError(f"{where}: `dropout` must be a number from 0 to below 1, got {dropout!r}.")


def check_counts(method: FusionMethod, **counts: int) -> None:
    """Refuse what is not an int of at least 1.

    Args:
        method: Names the method in the error.
        counts: Arguments of the constructor, by name.
    Raises:
        ArgumentError: Names the argument.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"fusion method '{method.name}': `{name}` must be an int of at least 1, got {value!r}.")


def check_inputs(
    method: FusionMethod,
    text: Float[Tensor, "b l dim"],
    image: Float[Tensor, "b p image_dim"] | None,
    *,
    text_mask: Bool[Tensor, "b l"] | None,
    image_mask: Bool[Tensor, "b p"] | None,
    image_grid: tuple[int, int] | None,
) -> tuple[Float[Tensor, "b l dim"], Float[Tensor, "b p image_dim"]]:
    """Refuse wrong inputs, and make the two hard cases ordinary. Call it first in `forward`.

    Padding is set to zero, so that a NaN there goes no further. A missing image becomes one of no tokens, p = 0: a
    method that is right for a row without real image tokens needs no branch for `image=None`.

    Args:
        method: The method called; its `name`, `dim`, `image_dim`, and the dtype and device of its weights are read.
        text: As in `FusionMethod.forward`; so are the rest.
        image: May be None.
        text_mask: May be None.
        image_mask: May be None.
        image_grid: May be None.
    Returns:
        `text` and `image`, with zeros at padding.
    Raises:
        InputError: Names the tensor, what it must be and what it is.
    """
    text = check_text(method, text, text_mask=text_mask)
    image = given_image(method, text, image, image_mask=image_mask, image_grid=image_grid)
    return text, check_image(method, image, image_mask=image_mask, image_grid=image_grid)


def given_image(
    method: FusionMethod,
    text: Float[Tensor, "b l dim"],
    image: Float[Tensor, "b p image_dim"] | None,
    *,
    image_mask: Bool[Tensor, "b p"] | None,
    image_grid: tuple[int, int] | None,
) -> Float[Tensor, "b p image_dim"]:
    """The part of `check_inputs` that takes text and image together: `read` and `join` check the rest.

    Returns:
        The image as it is, or one of no tokens in the place of None.
    Raises:
        InputError: Text and image do not fit each other in their shapes, or what belongs to an image comes without.
    """
    where = f"fusion method '{method.name}'"
    _check_shape(where, "text", text, b=None, l=None, dim=method.dim)
    if image is not None:
        _check_shape(where, "image", image, b=text.shape[0], p=None, image_dim=method.image_dim)
        return image
    for name, value in {"image_mask": image_mask, "image_grid": image_grid}.items():
        if value is not None:
            raise InputError(f"{where}: `{name}` must be None where `image` is None. Pass both or neither.")
    return next(method.parameters(), text).new_zeros(text.shape[0], 0, method.image_dim)


def check_text(
    method: FusionMethod,
    text: Float[Tensor, "b l dim"],
    *,
    memory: ImageMemory | None = None,
    text_mask: Bool[Tensor, "b l"] | None,
) -> Float[Tensor, "b l dim"]:
    """The half of `check_inputs` that is about the text. Call it first in `join`.

    Args:
        method: The method called.
        text: As in `FusionMethod.join`; so are the rest.
        memory: Must have a row for each of the text.
        text_mask: May be None.
    Returns:
        `text`, with zeros at padding.
    Raises:
        InputError: Names the tensor, what it must be and what it is.
    """
    where = f"fusion method '{method.name}'"
    _check_shape(where, "text", text, b=None, l=None, dim=method.dim)
    _check_kind(method, where, "text", text)
    if memory is not None and memory.prefix.shape[0] != text.shape[0]:
        raise InputError(
            f"{where}: `memory` must have b = {text.shape[0]} rows as `text`, got {memory.prefix.shape[0]}. "
            "Give each text the row of its image: memory.rows(index)."
        )
    if text_mask is None:
        return text
    _check_mask(where, "text_mask", text_mask, text.device, b=text.shape[0], l=text.shape[1])
    return text.masked_fill(~text_mask[..., None], 0)


def check_image(
    method: FusionMethod,
    image: Float[Tensor, "b p image_dim"],
    *,
    image_mask: Bool[Tensor, "b p"] | None,
    image_grid: tuple[int, int] | None,
) -> Float[Tensor, "b p image_dim"]:
    """The half of `check_inputs` that is about the image. Call it first in `read`.

    Args:
        method: The method called.
        image: As in `FusionMethod.read`.
        image_mask: May be None.
        image_grid: May be None.
    Returns:
        `image`, with zeros at padding.
    Raises:
        InputError: Names the tensor, what it must be and what it is.
    """
    where = f"fusion method '{method.name}'"
    _check_shape(where, "image", image, b=None, p=None, image_dim=method.image_dim)
    _check_kind(method, where, "image", image)
    if image_grid is not None:
        _check_grid(where, image_grid, image.shape[1])
    if image_mask is None:
        return image
    _check_mask(where, "image_mask", image_mask, image.device, b=image.shape[0], p=image.shape[1])
    return image.masked_fill(~image_mask[..., None], 0)


def prepend(
    image: Float[Tensor, "b p dim"],
    text: Float[Tensor, "b l dim"],
    *,
    text_mask: Bool[Tensor, "b l"] | None,
    image_mask: Bool[Tensor, "b p"] | None,
) -> FusionOutput:
    """The sequence [image; text], with its mask.

    Args:
        image: Image tokens, already `dim` wide.
        text: Text tokens.
        text_mask: `(b, l)`, or None where all are real.
        image_mask: `(b, p)`, or None where all are real.
    Returns:
        Tokens `(b, p + l, dim)`, in the dtype of `text`.
    """
    p, l = image.shape[1], text.shape[1]
    mask = joint_mask(text, p, text_mask=text_mask, image_mask=image_mask)
    return FusionOutput(torch.cat([image.to(text.dtype), text], dim=1), slice(p, p + l), mask)


def _check_shape(where: str, name: str, tensor: Tensor, **axes: int | None) -> None:
    """An axis of None may have any size."""
    sizes = zip(axes.values(), tensor.shape, strict=False)
    if tensor.ndim == len(axes) and all(want is None or want == got for want, got in sizes):
        return
    letters, values = ", ".join(axes), ", ".join(axis if size is None else str(size) for axis, size in axes.items())
    raise InputError(f"{where}: `{name}` must be ({letters}) = ({values}), got {tuple(tensor.shape)}.")


def _check_kind(method: FusionMethod, where: str, name: str, tensor: Tensor) -> None:
    """The device of the weights, and their dtype, unless autocast sees to that."""
    weight = next(method.parameters(), tensor)
    if tensor.device == weight.device and (tensor.dtype == weight.dtype or _autocasts(tensor)):
        return
    raise InputError(
        f"{where}: `{name}` must be {_kind(weight)}, as the method's weights, got {_kind(tensor)}. "
        "Move one of them with .to()."
    )


def _autocasts(tensor: Tensor) -> bool:
    device = tensor.device.type
    available = torch.amp.is_autocast_available(device)
    return tensor.is_floating_point() and available and torch.is_autocast_enabled(device)


def _check_mask(where: str, name: str, mask: Tensor, device: torch.device, **axes: int) -> None:
    if mask.dtype != torch.bool or mask.device != device or mask.shape != tuple(axes.values()):
        letters, values = ", ".join(axes), ", ".join(map(str, axes.values()))
        raise InputError(
            f"{where}: `{name}` must be bool ({letters}) = ({values}) on {device}, "
            f"got {_kind(mask)}, {tuple(mask.shape)}. True marks a real token."
        )


def _check_grid(where: str, grid: tuple[int, int], p: int) -> None:
    pair = isinstance(grid, Sequence) and len(grid) == 2 and all(map(_is_size, grid))
    if not pair or min(grid) < 1 or grid[0] * grid[1] != p:
        raise InputError(
            f"{where}: `image_grid` must be ints (h, w) with h * w = {p}, the number of image tokens, got {grid!r}. "
            "Leave class and register tokens out of `image`, or pass no grid."
        )


def _is_size(value: object) -> bool:
    """An int, or what stands for one while a graph is traced."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
