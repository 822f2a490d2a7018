"""What a fusion method is: the class to derive from, and what its `forward` returns: the contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
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


class FusionMethod(nn.Module, ABC):
    """Brings image tokens and text tokens together in one sequence. Derive from it to write a method.

    The constructor is `(dim, image_dim, *, heads, dropout, **options)`, each option with a default. It sets
    `self.dim` and `self.image_dim`, which `check_inputs` reads. A method without attention ignores `heads`.

    What must hold, and `mmm_fusion.testing.FusionContract` checks:

    - The method projects `image_dim` to `dim` itself. The widths, and the lengths `l` and `p`, are free of each other.
    - Causal: the output at text position i depends on the image and on text up to i. Image tokens, where they stay
      in the sequence, come before the text.
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
