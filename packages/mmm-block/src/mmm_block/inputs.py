"""What a `MultiModalMamba` is given, checked: tokens, masks, images and labels.

Compiled calls check shapes alone: the numbers are not known there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from mmm_block.block import ImageTokens
from mmm_block.errors import InputError
from mmm_block.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from mmm_block.config import MultiModalMambaConfig
    from mmm_block.stack import MambaStack

WHERE = "MultiModalMamba"


def _expect_tensor(value: object, name: str, what: str, where: str = WHERE) -> None:
    """Raise `InputError` unless a value is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{where}: `{name}` must be {what}, got {type(value).__name__}. Pass a tensor.")


def check_tokens(input_ids: Int[Tensor, "b l"], vocab_size: int, name: str = "input_ids") -> None:
    """Refuse what is no batch of tokens of the vocabulary.

    Raises:
        InputError: Of another shape, dtype or range, or empty.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
        got = input_ids.dtype if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise InputError(f"{WHERE}: `{name}` must be int64 tokens (b, l), got {got}. Pass tokens of a tokenizer.")
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise InputError(
            f"{WHERE}: `{name}` must be (b, l) with at least one token, got {tuple(input_ids.shape)}. "
            "Begin an empty text with a token that begins texts."
        )
    if torch.compiler.is_compiling():
        return
    low, high = (int(x) for x in input_ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"{WHERE}: `{name}` must be from 0 to below vocab_size = {vocab_size}, got {low if low < 0 else high}. "
            "Use the tokenizer of this model."
        )


def check_next(input_ids: Int[Tensor, " b"], config: MultiModalMambaConfig) -> None:
    """Refuse what is not one token for each row, or is the mark of an image.

    Raises:
        InputError: Of another shape, dtype or range, or a mark.
    """
    _expect_tensor(input_ids, "input_ids", "one token a row, (b,)", f"{WHERE}.step")
    check_tokens(input_ids[:, None] if input_ids.ndim == 1 else input_ids, config.vocab_size)
    if input_ids.ndim != 1:
        raise InputError(
            f"{WHERE}.step: `input_ids` must be one token a row, (b,), got {tuple(input_ids.shape)}. "
            "Call the model itself for several."
        )
    if torch.compiler.is_compiling() or config.image_token_id is None:
        return
    if bool((input_ids == config.image_token_id).any()):
        raise InputError(
            f"{WHERE}.step: `input_ids` must be text, got the mark of an image (token {config.image_token_id}). "
            "Call the model itself with the image."
        )


def check_mask(mask: Bool[Tensor, "b l"], input_ids: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """The mask as bool.

    Raises:
        InputError: It is not of the shape of the tokens, holds other numbers than 0 and 1, or nothing but 0.
    """
    _expect_tensor(mask, "attention_mask", f"(b, l) = {tuple(input_ids.shape)} as `input_ids`")
    if mask.shape != input_ids.shape:
        raise InputError(
            f"{WHERE}: `attention_mask` must be (b, l) = {tuple(input_ids.shape)} as `input_ids`, "
            f"got {tuple(mask.shape)}. It has a 1 or True for each real token."
        )
    if mask.dtype != torch.bool and not torch.compiler.is_compiling() and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            f"{WHERE}: `attention_mask` must hold True or 1 for a real token and else 0, got others. "
            "A mask that is added to scores is none."
        )
    if not torch.compiler.is_compiling() and not bool(mask.any()):
        raise InputError(
            f"{WHERE}: `attention_mask` must leave at least one real token in the batch, got none. "
            "Leave the call out: there is nothing to read."
        )
    return mask.to(torch.bool)


def check_bounds(
    bounds: Int[Tensor, " s"], input_ids: Int[Tensor, "b l"], mask: Tensor | None, *, illustrated: bool
) -> None:
    """Refuse boundaries that are none of packed texts.

    Args:
        bounds: Where the texts begin and end.
        input_ids: Tokens.
        mask: Must be None.
        illustrated: Whether each text has an image before it, which stands with the first of its tokens.
    Raises:
        InputError: They do not rise from 0 to l, there is more than one row, a mask besides, or no token where an image
            stands.
    """
    b, l = input_ids.shape
    if b != 1 or mask is not None:
        raise InputError(
            f"{WHERE}: with `cu_seqlens`, `input_ids` must be (1, l) and `attention_mask` None, got b = {b}"
            f"{'' if mask is None else ' and a mask'}. Pack all texts into one row, without padding."
        )
    _expect_tensor(bounds, "cu_seqlens", f"ints that rise from 0 to l = {l}")
    flat = bounds.ndim == 1 and len(bounds) >= 2 and bounds.dtype in (torch.int64, torch.int32)
    if not flat or (
        not torch.compiler.is_compiling()
        and not (int(bounds[0]) == 0 and int(bounds[-1]) == l and bool((bounds.diff() >= 0).all()))
    ):
        raise InputError(
            f"{WHERE}: `cu_seqlens` must be ints that rise from 0 to l = {l}, got {bounds.tolist()}. "
            "They are where each text begins, and the end of the last."
        )
    if illustrated and not torch.compiler.is_compiling() and not bool(bounds.diff().all()):
        raise InputError(
            f"{WHERE}: `cu_seqlens` must give each text with an image at least one token, got {bounds.tolist()}. "
            "Leave empty texts and their images out."
        )


def check_pixels(
    images: Float[Tensor, "n c y x"] | Sequence[Float[Tensor, "c y x"]] | ImageTokens,
) -> Float[Tensor, "n c y x"] | ImageTokens | None:
    """Images as one tensor; None where there are none.

    Raises:
        InputError: They are of several sizes, or of another shape or dtype.
    """
    if isinstance(images, ImageTokens):
        return images if images.tokens.shape[0] else None
    if not isinstance(images, torch.Tensor):
        pixels = list(images) if isinstance(images, Iterable) else [images]
        for each in pixels:
            _expect_tensor(each, "images", "a tensor (n, c, y, x), or a list of tensors (c, y, x)")
        if not pixels:
            return None
        sizes = {tuple(each.shape) for each in pixels}
        if len(sizes) != 1 or any(each.ndim != 3 for each in pixels):
            shapes = ", ".join(map(str, sorted(sizes)))
            raise InputError(
                f"{WHERE}: `images` must be (c, y, x) of one size each, got {shapes}. Resize or crop them to one."
            )
        images = torch.stack(pixels)
    if images.ndim != 4:
        raise InputError(
            f"{WHERE}: `images` must be (n, c, y, x), got {tuple(images.shape)}. Pass images[None] for a single one."
        )
    if not images.is_floating_point():
        raise InputError(
            f"{WHERE}: `images` must be floating, got {images.dtype}. "
            "Scale them as those that the model was trained on."
        )
    return images if images.shape[0] else None


def check_images(count: int, rows: int, marked: Bool[Tensor, " t"] | None, token: int | None) -> None:
    """Refuse another number of images than the texts have room for.

    Args:
        count: Number of images.
        rows: Number of texts.
        marked: True for each token that marks the place of an image; None: each text has room for one.
        token: What marks one.
    Raises:
        InputError: There are more or fewer.
    """
    if marked is None:
        if count not in (0, rows):
            raise InputError(
                f"{WHERE}: `images` must be n = {rows}, one for each row, got {count}. "
                "A config with image_token_id lets a row have any number."
            )
        return
    if torch.compiler.is_compiling():
        return
    marks = int(marked.sum())
    if marks != count:
        raise InputError(
            f"{WHERE}: `images` must be n = {marks}, one for each mark (token {token}) in `input_ids`, got {count}. "
            "Put the mark where an image stands, unmasked, and pass the images in the order of their marks."
        )


def check_labels(labels: Int[Tensor, "b l"], input_ids: Int[Tensor, "b l"], vocab_size: int, ignore: int) -> None:
    """Refuse labels that do not stand beside the tokens.

    Raises:
        InputError: They are of another dtype, shape or range.
    """
    _expect_tensor(labels, "labels", "int64 tokens (b, l)")
    if labels.dtype != torch.int64:
        raise InputError(f"{WHERE}: `labels` must be int64 tokens (b, l), got {labels.dtype}. Pass tokens.")
    if labels.shape != input_ids.shape:
        raise InputError(
            f"{WHERE}: `labels` must be (b, l) = {tuple(input_ids.shape)} as `input_ids`, got {tuple(labels.shape)}. "
            "Each label stands at its own token; the model moves them."
        )
    if not torch.compiler.is_compiling() and bool(((labels != ignore) & ((labels < 0) | (labels >= vocab_size))).any()):
        raise InputError(
            f"{WHERE}: `labels` must be {ignore} or from 0 to below vocab_size = {vocab_size}, got others. "
            f"Put {ignore} where nothing is asked."
        )


def check_state(state: ModelState, rows: int, backbone: MambaStack) -> None:
    """Refuse a state that the rows cannot go on from.

    Raises:
        InputError: It has other rows, or another model made it.
    """
    if not isinstance(state, ModelState):
        raise InputError(
            f"{WHERE}: `state` must be a ModelState, got {type(state).__name__}. Take it from the output of a call "
            "with return_state=True."
        )
    if state.length.shape[0] != rows:
        raise InputError(
            f"{WHERE}: `state` must have b = {rows} rows as `input_ids`, got {state.length.shape[0]}. "
            "state.rows(index) picks rows, and ModelState.cat joins those of several states."
        )
    mixer: Any = backbone.layers[0].mixer  # the others are of its sizes
    conv, ssm = (rows, len(mixer.A_log), mixer.conv1d.kernel_size[0] - 1), (rows, *mixer.A_log.shape)
    depth = len(backbone.layers)
    if len(state.layers) != depth or any(each.conv.shape != conv or each.ssm.shape != ssm for each in state.layers):
        got = dict.fromkeys(f"{tuple(each.conv.shape)} and {tuple(each.ssm.shape)}" for each in state.layers)
        raise InputError(
            f"{WHERE}: `state` must have {depth} layers of conv (b, e, k-1) and ssm (b, e, n) = {conv} and {ssm}, "
            f"got {len(state.layers)} of {', '.join(got)}. It is another model's."
        )
    if state.fusion != backbone.fusion_form:
        raise InputError(
            f"{WHERE}: `state` must be that of a model {_with_method(backbone.fusion_form)}, "
            f"got one {_with_method(state.fusion)}. It is another model's."
        )


def _with_method(form: str | None) -> str:
    return "without a fusion method" if form is None else f"with the fusion method {form}"
