"""`ModelState`: all that a `MultiModalMamba` remembers of the texts and images that it has read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from mmm_core import MambaState

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from mmm_fusion import ImageMemory


class Group(NamedTuple):
    """Rows of a batch whose texts go on beside images of one form.

    Attributes:
        rows: Their numbers, `(q,)`; None: all rows, in order.
        memory: What the fusion method keeps for them, a row for each.
    """

    rows: Int[Tensor, " q"] | None
    memory: ImageMemory


@dataclass
class ModelState:
    """What the tokens so far left behind: it goes on from there, for any number of tokens, and does not grow.

    Only a fusion method whose words look at all words before them makes it grow; see `FusionMethod.extend`.

    Attributes:
        layers: The state of each Mamba layer.
        groups: What fusion needs of the last image of each row; empty in a model without images.
        length: Number of tokens read, marks included, `(b,)`.
    """

    layers: tuple[MambaState, ...]
    groups: tuple[Group, ...]
    length: Int[Tensor, " b"]

    def clone(self) -> ModelState:
        """A state of its own memory: what happens to one leaves the other as it is."""
        layers = tuple(MambaState(conv.clone(), ssm.clone()) for conv, ssm in self.layers)
        return ModelState(layers, self.groups, self.length.clone())  # what fusion keeps is never written

    def rows(self, index: Int[Tensor, " q"]) -> ModelState:
        """The state of some of the rows, in any order and as often as wanted.

        Args:
            index: Row numbers, `(q,)`.
        Returns:
            A state of q rows, of its own memory.
        """
        layers = tuple(MambaState(*(each.index_select(0, index) for each in state)) for state in self.layers)
        length = self.length.index_select(0, index)
        groups = []
        for rows, memory in self.groups:
            if rows is None:
                groups.append(Group(None, memory.rows(index)))
                continue
            place = torch.full_like(self.length, -1).scatter(0, rows, torch.arange(len(rows), device=rows.device))
            chosen = place[index]
            here = (chosen >= 0).nonzero()[:, 0]
            groups.append(Group(here, memory.rows(chosen[here])))
        return ModelState(layers, tuple(groups), length)
