"""How the layers read texts with images in them: fuse each piece of text with its image, put all in a row, and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmm_block.block import MultiModalMambaBlock
from mmm_block.layout import Pieces, Texts, pack_texts
from mmm_block.state import Group, ModelState
from mmm_core import MambaState

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from mmm_block.block import ImageTokens
    from mmm_block.stack import MambaStack
    from mmm_fusion import FusionMethod, ImageMemory

Groups = tuple[Group, ...]


def read_rows(
    backbone: MambaStack, tokens: Float[Tensor, "b l d"], images: ImageTokens | None, state: ModelState | None
) -> tuple[Float[Tensor, "b l d"], ModelState]:
    """Read texts of one length without padding, each with one image before it, or none.

    Args:
        backbone: The layers, and the fusion method where there are images.
        tokens: Embeddings.
        images: One a row.
        state: What came before.
    Returns:
        The tokens after the last layer, and what the texts left behind.
    """
    length = tokens.shape[1]
    groups: Groups = state.groups if state else ()
    if isinstance(backbone, MultiModalMambaBlock):
        if images is None:
            tokens, groups = go_on(backbone.fusion, tokens, groups or _without_image(backbone, tokens, tokens.shape[0]))
        else:
            memory = backbone.fusion.read(images.tokens, image_grid=images.grid)
            tokens, after = backbone.fusion.extend(tokens, memory)
            tokens = torch.cat([memory.prefix.to(tokens.dtype), tokens], dim=1)
            groups = (Group(None, _behind_prefix(after)),)
    hidden, layers = backbone.run(tokens, state.layers if state else ())
    read = torch.full((tokens.shape[0],), length, device=tokens.device)
    read = read if state is None else state.length + read
    return hidden[:, -length:], ModelState(layers, groups, read, backbone.fusion_form)


def read_packed(
    backbone: MambaStack,
    texts: Texts,
    tokens: Float[Tensor, "t d"],
    images: ImageTokens | None,
    state: ModelState | None,
) -> tuple[Float[Tensor, "t d"], ModelState | None]:
    """Read texts of any lengths, with images anywhere in them.

    Args:
        backbone: The layers, and the fusion method where there are images.
        texts: Where the texts begin and end, and where the images stand.
        tokens: Embeddings of all texts, one behind the other.
        images: All images, in the order of their marks.
        state: What came before.
    Returns:
        The tokens after the last layer, and what the texts left behind: None where that is compiled.
    """
    prefix, prefix_mask = tokens.new_zeros(0, 0, tokens.shape[1]), torch.ones(0, 0, dtype=torch.bool)
    groups: Groups | None = ()
    if isinstance(backbone, MultiModalMambaBlock):
        tokens, memory, groups = _fuse(backbone, texts, tokens, images, state.groups if state else ())
        if memory is not None:
            prefix = memory.prefix.to(tokens.dtype)
            real = prefix.new_ones(prefix.shape[:2], dtype=torch.bool)
            prefix_mask = real if memory.prefix_mask is None else memory.prefix_mask
    packing = pack_texts(texts, prefix_mask.to(tokens.device))
    places, bounds = torch.cat([packing.text, packing.prefix.flatten()]), packing.bounds
    packed = (
        torch.zeros_like(tokens[:1])
        .expand(places.shape[0], -1)
        .index_copy(0, places, torch.cat([tokens, prefix.flatten(0, 1)]))
    )
    before = state.layers if state else ()
    place = packing.text
    if torch.compiler.is_compiling():  # the padding is one more text
        before = tuple(MambaState(*(torch.cat([x, torch.zeros_like(x[:1])]) for x in layer)) for layer in before)
    else:
        bounds = bounds[:-1]
        packed, place = packed[: int(bounds[-1])], place.clamp(max=int(bounds[-1]) - 1)
    hidden, layers = backbone.run(packed[None], before, cu_seqlens=bounds)
    if groups is None:
        return hidden[0, place], None
    length = texts.real_before[texts.bounds[1:]] - texts.real_before[texts.bounds[:-1]]
    layers = tuple(MambaState(conv[: texts.rows], ssm[: texts.rows]) for conv, ssm in layers)
    length = length if state is None else state.length + length
    return hidden[0, place], ModelState(layers, groups, length, backbone.fusion_form)


def go_on(
    fusion: FusionMethod,
    tokens: Float[Tensor, "b l d"],
    groups: Groups,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Groups]:
    """Fuse what follows in each row with the image that the row is about.

    Args:
        fusion: The method.
        tokens: What follows.
        groups: What it keeps of the images and the texts so far.
        mask: True for a real token; None: all are.
    Returns:
        The fused tokens, and what the method keeps now.
    """
    if tokens.shape[1] == 0:
        return tokens, groups
    fused, after = tokens, []
    for rows, memory in groups:
        if rows is None:
            fused, memory = fusion.extend(tokens, memory, text_mask=mask)
        else:
            piece, memory = fusion.extend(tokens[rows], memory, text_mask=None if mask is None else mask[rows])
            fused = fused.index_copy(0, rows, piece.to(fused.dtype))
        after.append(Group(rows, memory))
    return fused, tuple(after)


def _fuse(
    backbone: MultiModalMambaBlock,
    texts: Texts,
    tokens: Float[Tensor, "t d"],
    images: ImageTokens | None,
    groups: Groups,
) -> tuple[Float[Tensor, "t d"], ImageMemory | None, Groups | None]:
    """The fused text tokens, what was read of the images, and what the method keeps now."""
    opening = texts.opening()
    if not groups and (images is None or opening.token.shape[1] or bool((texts.last_image < 0).any())):
        groups = _without_image(backbone, tokens, texts.rows)
    opened, groups = go_on(backbone.fusion, tokens[opening.token], groups, opening.mask)
    if images is None:
        return _in_order(opened, opening), None, groups
    memory = backbone.fusion.read(images.tokens, image_grid=images.grid)
    about = texts.about_images()
    told, after = backbone.fusion.extend(tokens[about.token], memory, text_mask=about.mask)
    fused = torch.where(texts.image[:, None] < 0, _in_order(opened, opening), _in_order(told, about))
    if torch.compiler.is_compiling():  # which rows have an image now is not known
        return fused, memory, None
    return fused, memory, _with_images(groups, _behind_prefix(after), texts.last_image)


def _in_order(pieces: Float[Tensor, "s m d"], where: Pieces) -> Float[Tensor, "t d"]:
    """For each text token its own of the pieces; zeros for one that is in none."""
    return torch.cat([pieces.flatten(0, 1), pieces.new_zeros(1, pieces.shape[2])])[where.slot]


def _without_image(backbone: MultiModalMambaBlock, like: Float[Tensor, "*t d"], rows: int) -> Groups:
    """What the method keeps for rows that have seen no image, in the dtype of the tokens."""
    nothing = like.new_zeros(1, 1, backbone.encoder_dim)
    memory = backbone.fusion.read(nothing, image_mask=nothing.new_zeros(1, 1, dtype=torch.bool))
    everywhere = torch.zeros(rows, dtype=torch.long, device=like.device)
    return (Group(None, _behind_prefix(memory).rows(everywhere)),)


def _with_images(groups: Groups, memory: ImageMemory, last_image: Int[Tensor, " b"]) -> Groups:
    """The groups after some rows have come to a new image."""
    new = (last_image >= 0).nonzero()[:, 0]
    if len(new) == last_image.shape[0]:
        return (Group(None, memory.rows(last_image)),)
    kept = []
    for rows, old in groups:
        rows = torch.arange(last_image.shape[0], device=last_image.device) if rows is None else rows
        same = (last_image[rows] < 0).nonzero()[:, 0]
        if len(same):
            kept.append(Group(rows[same], old.rows(same)))
    return (*kept, Group(new, memory.rows(last_image[new])))


def _behind_prefix(memory: ImageMemory) -> ImageMemory:
    """The memory once the layers have read what stands before the text."""
    b, _, dim = memory.prefix.shape
    return memory._replace(prefix=memory.prefix.new_zeros(b, 0, dim), prefix_mask=None)  # a slice would keep it all
