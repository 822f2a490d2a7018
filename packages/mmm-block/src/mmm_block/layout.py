"""Which piece of a text is about which image, and where everything stands once all texts of a batch are one row.

An image's mark begins a piece of text: the mark and all that follows it, up to the next mark of the row. A piece is
what the fusion method joins to the image. The tokens that it puts before a text stand before the mark.

    text          a  b  <image>  c  d        pieces: [a b], [<image> c d]
    packed        a  b  i  i  i  <image>  c  d

Sizes depend on shapes alone and not on where tokens stand, so that all of it can be compiled and exported (`shape[0]`,
where `len` would fix the size of the example); eager calls leave out what is padding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """The texts of a batch as one list of t tokens, row after row.

    Attributes:
        real: True for a real token, `(t,)`.
        row: The row of each token, `(t,)`.
        bounds: Where the rows begin and end, `(rows + 1,)`.
        mark: For each image the token that its piece begins with, `(n,)`.
        image: For each token the image that its piece is about, `(t,)`; -1: the piece that opens its row.
        place: The place of a real token in its piece, `(t,)`.
        real_before: Real tokens before each token, and in all, `(t + 1,)`.
        images_before: Images that begin before each token, and in all, `(t + 1,)`.
    """

    real: Bool[Tensor, " t"]
    row: Int[Tensor, " t"]
    bounds: Int[Tensor, " bounds"]
    mark: Int[Tensor, " n"]
    image: Int[Tensor, " t"]
    place: Int[Tensor, " t"]
    real_before: Int[Tensor, " t+1"]
    images_before: Int[Tensor, " t+1"]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.bounds.shape[0] - 1

    @property
    def last_image(self) -> Int[Tensor, " rows"]:
        """The last image of each row; -1 for none."""
        first, behind = self.images_before[self.bounds[:-1]], self.images_before[self.bounds[1:]]
        return torch.where(behind > first, behind - 1, -1)

    @property
    def last_token(self) -> Int[Tensor, " rows"]:
        """The last real token of each row; any where it has none."""
        behind = self.real_before[self.bounds[1:]]
        return _tokens(self.real, self.real_before[:-1], self.real.shape[0])[(behind - 1).clamp(min=0)]

    def opening(self) -> Pieces:
        """The pieces that open the rows, which go on with what came before: one a row."""
        return _pieces(torch.where(self.real & (self.image < 0), self.row, -1), self.place, self.rows)

    def about_images(self) -> Pieces:
        """The pieces about the images, one each."""
        return _pieces(torch.where(self.real, self.image, -1), self.place, self.mark.shape[0])


def find_texts(
    real: Bool[Tensor, " t"], bounds: Int[Tensor, " bounds"], marked: Bool[Tensor, " t"] | None, images: int
) -> Texts:
    """Find the pieces.

    Args:
        real: True for a real token.
        bounds: Where the rows begin and end in the list of tokens.
        marked: True for a real mark of an image; None: the first token of each row is one, if there are images at all.
        images: Number of images: of marks, or of rows.
    Returns:
        The texts.
    """
    at = torch.arange(real.shape[0], device=real.device)
    behind = bounds[1:].to(torch.int64)
    row = behind.new_zeros(at.shape[0] + 1).scatter_add(0, behind, torch.ones_like(behind)).cumsum(0)[:-1]
    real_before = F.pad(real.cumsum(0), (1, 0))
    if marked is None:
        seen = row + 1 if images else torch.zeros_like(row)
        mark = bounds[:images]
    else:
        seen = marked.cumsum(0)
        mark = _tokens(marked, seen - 1, images)
    images_before = F.pad(seen, (1, 0))
    image = torch.where(seen > images_before[bounds[row]], seen - 1, -1)
    start = torch.cat([bounds[:-1], mark])[torch.where(image < 0, row, bounds.shape[0] - 1 + image)]
    place = real_before[:-1] - real_before[start]
    return Texts(real, row, bounds, mark, image, place, real_before, images_before)


def _tokens(chosen: Bool[Tensor, " t"], number: Int[Tensor, " t"], count: int) -> Int[Tensor, " count"]:
    """The token of each number, where the chosen ones are numbered; 0 where none has it."""
    at = torch.arange(chosen.shape[0], device=chosen.device)
    return at.new_zeros(count + 1).scatter(0, torch.where(chosen, number, count), at)[:-1]


class Pieces(NamedTuple):
    """Pieces of texts, one a row, left-aligned to the longest.

    Attributes:
        token: The token at each place, `(s, m)`; at padding any.
        mask: True for a real token, `(s, m)`; None: all are.
        slot: For each text token its place in the flattened pieces; s * m for one that is in none, `(t,)`.
    """

    token: Int[Tensor, "s m"]
    mask: Bool[Tensor, "s m"] | None
    slot: Int[Tensor, " t"]


def _pieces(piece: Int[Tensor, " t"], place: Int[Tensor, " t"], count: int) -> Pieces:
    nowhere = torch.where(piece < 0, count, piece)
    lengths = piece.new_zeros(count + 1).index_add(0, nowhere, torch.ones_like(piece))[:count]
    longest = piece.shape[0] if torch.compiler.is_compiling() else int(lengths.max()) if count else 0
    slot = torch.where(piece < 0, count * longest, piece * longest + place)
    token = piece.new_zeros(count * longest + 1).scatter(0, slot, torch.arange(piece.shape[0], device=piece.device))
    mask = torch.arange(longest, device=piece.device) < lengths[:, None]
    full = not torch.compiler.is_compiling() and bool(mask.all())
    return Pieces(token[:-1].view(count, longest), None if full else mask, slot)


class Packing(NamedTuple):
    """All texts in one row, with the image tokens that stand before them, and padding behind.

    Attributes:
        text: The place of each text token, `(t,)`.
        prefix: The place of each image token, `(n, k)`.
        bounds: Where the texts end there, from 0 on, and the padding, `(rows + 2,)`.
    """

    text: Int[Tensor, " t"]
    prefix: Int[Tensor, "n k"]
    bounds: Int[Tensor, " rows+2"]


def pack_texts(texts: Texts, prefix_mask: Bool[Tensor, "n k"]) -> Packing:
    """Find the place of everything.

    Args:
        texts: The texts.
        prefix_mask: True for a real image token.
    Returns:
        The places.
    """
    prefix_before = F.pad(prefix_mask.sum(1).cumsum(0), (1, 0))  # (n + 1,)
    ends = texts.real_before[texts.bounds[1:]] + prefix_before[texts.images_before[texts.bounds[1:]]]
    text = texts.real_before[:-1] + prefix_before[texts.images_before[1:]]
    rank = prefix_mask.cumsum(1) - 1
    prefix = (texts.real_before[texts.mark] + prefix_before[:-1])[:, None] + rank
    # Padding comes behind the last text: first that of the texts, then that before them.
    padding = torch.cat([~texts.real, ~prefix_mask.flatten()])
    behind = ends[-1] + padding.cumsum(0) - 1
    text = torch.where(texts.real, text, behind[: text.shape[0]])
    prefix = torch.where(prefix_mask, prefix, behind[text.shape[0] :].view(prefix.shape))
    slots = ends.new_full((1,), padding.shape[0])
    return Packing(text, prefix, torch.cat([ends.new_zeros(1), ends, slots]))


def next_tokens(texts: Texts, labels: Int[Tensor, " t"], wanted: Bool[Tensor, " t"], ignore: int) -> Int[Tensor, " t"]:
    """For each token the label of the real token after it in its row.

    Args:
        texts: The texts.
        labels: The label of each token.
        wanted: False for a token that nothing is to be asked of.
        ignore: What stands where there is none.
    Returns:
        The labels, moved.
    """
    order = (~texts.real).to(torch.uint8).argsort(stable=True)
    here, there = order[:-1], order[1:]
    asked = (texts.row[here] == texts.row[there]) & (texts.real & wanted)[there]
    targets = torch.where(asked, labels[there], ignore)
    return labels.new_full(labels.shape, ignore).scatter(0, here, targets)
