"""What transformers' `generate` carries from token to token: our state in its place for a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from mmm_block.state import ModelState


class MultiModalMambaCache:
    """A `ModelState` where transformers looks for a cache; the model fills it, and writes it as it reads on.

    Args:
        state: What earlier tokens left behind; None: nothing yet.
        columns: How many columns of tokens they were, padding included.

    Attributes:
        state: What the tokens so far left behind.
    """

    is_compileable = False
    is_croppable = False
    # A cache of linear layers alone takes all tokens that it is given for new; this one knows how many it has read.
    is_linear = (False,)

    def __init__(self, state: ModelState | None = None, columns: int = 0) -> None:
        self.state = state
        self._columns = columns

    def get_seq_length(self) -> int:
        """How many columns of tokens were read, padding included."""
        return self._columns

    def update(self, state: ModelState, columns: int) -> None:
        """Take the state behind some more columns of tokens.

        Args:
            state: The state behind them.
            columns: How many they were.
        """
        self.state = state
        self._columns += columns

    def clone(self) -> MultiModalMambaCache:
        """A cache of its own memory: what is read on one leaves the other as it is."""
        return MultiModalMambaCache(self.state and self.state.clone(), self._columns)

    def reorder_cache(self, beam_idx: Int[Tensor, " q"]) -> None:
        """Go on with some of the rows, in any order and as often as wanted, as the search for the best beams asks.

        Args:
            beam_idx: Row numbers, `(q,)`.
        """
        if self.state is not None:
            self.state = self.state.rows(beam_idx.to(self.state.length.device))
