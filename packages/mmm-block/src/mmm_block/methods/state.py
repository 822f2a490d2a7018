"""`state`: a Mamba layer reads the image, and goes on from there to read the text.

The final state of the image's scan is the initial state of the text's. No image token stays in the sequence: what a
text costs does not depend on the size of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmm_block.padding import pack, pack_states, unpack
from mmm_core import Mamba, MambaState
from mmm_fusion import ImageFirst, ImageMemory, check_arguments, check_counts, check_image, check_text

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class State(ImageFirst):
    """The text, through a Mamba layer that has read the image before.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected image tokens and on the layer's branch.
        d_state: State size of the layer, for each inner channel.
        d_conv: Taps of its convolution.
        expand: Its inner width, over `dim`.
    Source:
        The state as memory of the tokens before: arXiv:2312.00752 §2.
    """

    name = "state"
    contract = 1

    def __init__(
        self,
        dim: int,
        image_dim: int,
        *,
        heads: int,
        dropout: float,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
    ) -> None:
        super().__init__()
        check_arguments(self, dim, image_dim, heads=heads, dropout=dropout)
        check_counts(self, d_state=d_state, d_conv=d_conv, expand=expand)
        self.dim, self.image_dim = dim, image_dim
        self.proj = nn.Linear(image_dim, dim)
        self.norm_image = nn.RMSNorm(dim, eps=1e-5)
        self.norm_text = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba(dim, d_state=d_state, d_conv=d_conv, expand=expand)
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Scan the image; the state behind its last token stays. See `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        # Autocast would leave the norm an input in half precision beside its weight in full.
        image = self.norm_image(self.dropout(self.proj(image)).to(image.dtype))  # (b, p, dim)
        packed, bounds = pack(image, image_mask)
        _, state = self.mixer(packed, return_state=True, cu_seqlens=bounds)
        conv, ssm = (each[: image.shape[0]] for each in state)
        return ImageMemory(image[:, :0], context=(conv, ssm))

    def extend(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l dim"], ImageMemory]:
        """Scan the text from that state on, and add it to the text. The state behind it is all that is kept of both.

        See `FusionMethod.extend`.
        """
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        packed, bounds = pack(self.norm_text(text), text_mask)
        state = MambaState(*pack_states(memory.past or memory.context, text_mask))
        branch, state = self.mixer(packed, state, return_state=True, cu_seqlens=bounds)
        text = text + self.dropout(unpack(branch, text_mask))
        return text, memory._replace(past=tuple(each[: text.shape[0]] for each in state))
