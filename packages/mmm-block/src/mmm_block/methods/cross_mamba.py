"""`cross_mamba`: two scans, one over the image and one over the text, each read out by the other's C.

Wan et al., Sigma: Siamese Mamba Network for Multi-Modal Semantic Segmentation, arXiv:2404.04256 §3.3 (cross Mamba
block). There the two are pictures of one size, read position by position. Here a text must not wait for its end, nor
have the image's length: the image is read to its end, and every word reads the state that it left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mmm_block.padding import pack, pack_states, unpack
from mmm_core import causal_conv1d, init_ssm, selective_scan
from mmm_fusion import ImageFirst, ImageMemory, check_arguments, check_counts, check_image, check_text

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class CrossMamba(ImageFirst):
    """The text, plus what its C reads from the image's state and what the image's C reads from the text's.

    Args:
        dim: Width of the text.
        image_dim: Width of the image tokens.
        heads: Not used.
        dropout: On the projected image tokens and on what is added to the text.
        d_state: State size of both scans, for each inner channel.
        d_conv: Taps of their convolutions.
        expand: Their inner width, over `dim`.
    Source:
        arXiv:2404.04256 §3.3.
    """

    name = "cross_mamba"
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
        inner = expand * dim
        self.proj = nn.Linear(image_dim, dim)
        self.image_side = Side(dim, inner, d_state, d_conv)
        self.text_side = Side(dim, inner, d_state, d_conv)
        self.D = nn.Parameter(torch.ones(inner))
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.z_proj = nn.Linear(dim, inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def read(
        self,
        image: Float[Tensor, "b p image_dim"],
        *,
        image_mask: Bool[Tensor, "b p"] | None = None,
        image_grid: tuple[int, int] | None = None,
    ) -> ImageMemory:
        """Scan the image; its last state and the mean of its C stay for the text. See `FusionMethod.read`."""
        image = check_image(self, image, image_mask=image_mask, image_grid=image_grid)
        x = self.image_side.norm(self.dropout(self.proj(image)).to(image.dtype))
        packed, bounds = pack(x, image_mask)
        _, C, (_, state) = self.image_side(packed, cu_seqlens=bounds)
        real = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask  # (b, p)
        count = real.sum(dim=1, keepdim=True).clamp(min=1)  # (b, 1)
        C = unpack(C, image_mask).masked_fill(~real[..., None], 0)
        mean = (wide(C).sum(dim=1) / count).to(C.dtype)  # (b, n)
        return ImageMemory(image.new_zeros(image.shape[0], 0, self.dim), context=(state[: image.shape[0]], mean))

    def extend(
        self, text: Float[Tensor, "b l dim"], memory: ImageMemory, *, text_mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l dim"], ImageMemory]:
        """Scan the text and read both states, each with the C of the other. Of the text its own state is kept.

        See `FusionMethod.extend`.
        """
        text = check_text(self, text, memory=memory, text_mask=text_mask)
        state, mean = memory.context
        x = self.text_side.norm(text)
        packed, bounds = pack(x, text_mask)
        other, _ = pack(mean[:, None].expand(*text.shape[:2], -1), text_mask)
        past = pack_states(memory.past, text_mask)
        y, C, past = self.text_side(packed, other, self.D, past, cu_seqlens=bounds)
        y, C = unpack(y, text_mask), unpack(C, text_mask)  # (b, l, e), (b, l, n)
        y = (y + C @ state.mT.to(C.dtype)) * F.silu(self.z_proj(x))
        text = text + self.dropout(self.out_proj(y))
        return text, memory._replace(past=tuple(each[: text.shape[0]] for each in past))


class Side(nn.Module):
    """What one of the two selects by: the way into a Mamba layer, up to its scan."""

    def __init__(self, dim: int, inner: int, d_state: int, d_conv: int) -> None:
        super().__init__()
        rank = math.ceil(dim / 16)
        self.sizes = [rank, d_state, d_state]
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        init_ssm(self.A_log, self.dt_proj)
        for parameter in (self.A_log, self.dt_proj.bias):  # an optimiser that looks leaves these undecayed
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def A(self) -> Float[Tensor, "e n"]:
        """The transition, below zero."""
        return -wide(self.A_log).exp()

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        read_by: Float[Tensor, "b l n"] | None = None,
        D: Float[Tensor, " e"] | None = None,
        states: tuple[Tensor, ...] = (),
        *,
        cu_seqlens: Int[Tensor, " bounds"] | None = None,
    ) -> tuple[Float[Tensor, "b l e"], Float[Tensor, "b l n"], tuple[Tensor, Tensor]]:
        """Scan normed tokens.

        Args:
            x: Tokens, `(b, l, dim)`.
            read_by: The C that reads the states; None: its own.
            D: Weight of the scan's input in its output.
            states: Of convolution and scan, to go on from; empty: none.
            cu_seqlens: As `selective_scan` takes them.
        Returns:
            What was read, `(b, l, e)`; its own C, `(b, l, n)`; and the states behind the last token.
        """
        conv, ssm = states or (None, None)
        u, conv = causal_conv1d(
            self.in_proj(x),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state=conv,
            return_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        y, ssm = selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            self.A(),
            B,
            C if read_by is None else read_by,
            D,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=ssm,
            return_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        return y, C, (conv, ssm)


def wide(x: Tensor) -> Tensor:
    """In float32, or wider where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
