"""What a fusion method is: the class to derive from, and what its `forward` returns: the contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from mmm_fusion.masks import joint_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

CONTRACT = 1
"""The version of the contract that this package speaks."""


class FusionOutput(NamedTuple):
    """One sequence for the backbone, and where the text stands in it.

    Attributes:
        tokens: `(b, m, dim)`, in the dtype of the text. Values at padding are finite, and mean nothing.
        text: The slice of `m` where the text positions stand: the last `l` of them.
        mask: `(b, m)` bool, True for a real token; None: all are.
    """

    tokens: Float[Tensor, "b m dim"]
    text: slice
    mask: Bool[Tensor, "b m"] | None


class ImageMemory(NamedTuple):
    """What a method keeps of images: enough to fuse them with any text, as often as one likes.

    Attributes:
        prefix: `(b, k, dim)`, the image tokens that stand before every text; k is 0 where the method keeps none there.
        prefix_mask: `(b, k)` bool, True for a real token; None: all are.
        context: What `join` needs besides. Tensors have one row an image.
        past: What the text so far left behind, for the text that goes on; empty before its start. Tensors have one
            row a text.
    """

    prefix: Float[Tensor, "b k dim"]
    prefix_mask: Bool[Tensor, "b k"] | None = None
    context: tuple[Any, ...] = ()
    past: tuple[Any, ...] = ()

    def rows(self, index: Int[Tensor, " q"]) -> ImageMemory:
        """The memory of some of the images, in any order and as often as wanted.

        Args:
            index: Row numbers, `(q,)`: for q texts the image of each.
        Returns:
            A memory of q rows.
        """

        def pick(each: Any) -> Any:
            return each.index_select(0, index) if isinstance(each, torch.Tensor) else each

        return ImageMemory(
            pick(self.prefix), pick(self.prefix_mask), tuple(map(pick, self.context)), tuple(map(pick, self.past))
        )


class FusionMethod(nn.Module, ABC):
    """Brings image tokens and text tokens together in one sequence. Derive from it to write a method.

    The constructor is `(dim, image_dim, *, heads, dropout, **options)`, each option with a default. It sets
    `self.dim` and `self.image_dim`, which `check_inputs` reads. A method without attention ignores `heads`.

    What must hold, and `mmm_fusion.testing.FusionContract` checks:

    - The method projects `image_dim` to `dim` itself. The widths, and the lengths `l` and `p`, are free of each other.
    - Causal: the output at text position i depends on the image and on text up to i, and not on the text's length.
      Image tokens, where they stay in the sequence, come before the text.
    - A text in pieces, by `extend`, gives what it gives as a whole.
    - With `image=None` the result is the text's own positions. A row whose `image_mask` is all False behaves so too.
    - Padding changes nothing at real positions, whatever it holds, and wherever it stands.
    - The image changes what the text says, or stands before it. Rows of a batch do not mix.
    - Every parameter is registered and gets a gradient.
    """

    name: ClassVar[str]
    """What users type: lower case letters, digits and underscores."""

    contract: ClassVar[int] = 1
    """The contract the method is written for. Stays 1 here in every version: a class that says nothing was
    written for the first, whatever is installed."""

    tokenwise: ClassVar[bool] = False
    """Whether `join` takes each text token by itself: no other token of the text matters to it, nor its place."""

    dim: int
    image_dim: int

    @abstractmethod
    def forward(
        self,
        text: Float[Tensor, "b l dim"],
        image: Float[Tensor, "b p image_dim"] | None,
        *,
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> FusionOutput:
        """Fuse.

        Args:
            text: Text embeddings, `(b, l, dim)`.
            image: Tokens of the image encoder, `(b, p, image_dim)`, or None.
            text_mask: `(b, l)` bool, True for a real token. None: all are.
            image_mask: `(b, p)` bool, True for a real token. None: all are.
            image_grid: `(h, w)` with `h * w == p`, where the image tokens are a grid in raster order.
        Returns:
            The fused sequence.
        """

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Do the part of the work that is the same for every text, so that many texts share it.

        `join` does the rest: `read`, then `join`, gives what `forward` gives. As it stands it serves every method, but
        keeps the image itself and reads it again for each text. `ImageFirst` reads it once.

        Args:
            image: As in `forward`; so are the rest.
            image_mask: May be None.
            image_grid: May be None.
        Returns:
            The memory.
        """
        nothing = image.new_zeros(image.shape[0], 0, self.dim)
        prefix, _, mask = self(nothing, image, image_mask=image_mask, image_grid=image_grid)
        return ImageMemory(prefix, mask, (image, image_mask, image_grid))

    def join(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l dim"]:
        """Fuse texts with images that were read before.

        Args:
            text: As in `forward`.
            memory: What `read` returned, a row for each text: see `ImageMemory.rows`. Or what `extend` returned: the
                text then goes on from there.
            text_mask: As in `forward`.
        Returns:
            The tokens at the text's positions; `memory.prefix` stands before them.
        """
        if memory.past:
            return self.extend(text, memory, text_mask=text_mask)[0]
        image, image_mask, image_grid = memory.context
        fused: FusionOutput = self(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=image_grid)
        return fused.tokens[:, fused.text]

    def extend(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l dim"], ImageMemory]:
        """Join a piece of a text, and say with what the text goes on: what a generator of texts calls.

        However a text is cut in pieces, they give what `join` gives for the whole. As it stands it serves every
        method. If `tokenwise`, it is `join`; else it keeps the text so far and joins all of it anew, so that a piece
        costs more from call to call. A method that can do with less defines it: see `ImageFirst`.

        Args:
            text: The next tokens, `(b, l, dim)`; l may be 0.
            memory: What `read` returned, a row for each text, or what this returned for the piece before. It is left
                as it is: any number of texts may go on from it.
            text_mask: As in `forward`. A row whose piece is all padding goes on as if there had been none.
        Returns:
            The tokens at the text's positions, `(b, l, dim)`, and the memory with which the text goes on.
        """
        if self.tokenwise:
            return self.join(text, memory, text_mask=text_mask), memory
        before, before_mask = memory.past or (text[:, :0], None)
        mask = joint_mask(text, before.shape[1], text_mask=text_mask, image_mask=before_mask)
        so_far = torch.cat([before, text], dim=1)
        tokens = self.join(so_far, memory._replace(past=()), text_mask=mask)
        return tokens[:, before.shape[1] :], memory._replace(past=(so_far, mask))
