"""`ModelState`: all that a `MultiModalMamba` remembers of the texts and images that it has read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mmm_block.errors import InputError
from mmm_block.state_file import read_state, write_state, wrong
from mmm_core import MambaState
from mmm_fusion import ImageMemory

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from jaxtyping import Int
    from torch import Tensor


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

    `forward` reads a state and makes a new one, so an earlier one is there to go back to for as long as it is kept.
    `step` alone writes: give it a `clone` of what is to be kept. Only a fusion method whose words look at all words
    before them makes a state grow; see `FusionMethod.extend`.

    Attributes:
        layers: The state of each Mamba layer.
        groups: What fusion needs of the last image of each row; empty in a model without images.
        length: Number of tokens read, marks included, `(b,)`.
        fusion: The fusion method that made the groups, and its options; None in a model without images.
    """

    layers: tuple[MambaState, ...]
    groups: tuple[Group, ...]
    length: Int[Tensor, " b"]
    fusion: str | None

    def clone(self) -> ModelState:
        """A state of its own memory: what happens to one leaves the other as it is."""
        layers = tuple(MambaState(conv.clone(), ssm.clone()) for conv, ssm in self.layers)
        return ModelState(layers, self.groups, self.length.clone(), self.fusion)  # what fusion keeps is never written

    def rows(self, index: Int[Tensor, " q"]) -> ModelState:
        """The state of some of the rows, in any order and as often as wanted.

        Args:
            index: Row numbers, `(q,)`.
        Returns:
            A state of q rows, of its own memory.
        Raises:
            InputError: The numbers are no tensor of ints.
        """
        if not isinstance(index, torch.Tensor) or index.dtype not in (torch.int64, torch.int32) or index.ndim != 1:
            raise InputError(
                f"ModelState.rows: `index` must be a tensor of row numbers, (q,), got {index!r}. "
                "torch.tensor([0]) picks the first."
            )
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
            if len(here):
                groups.append(Group(None if len(here) == len(index) else here, memory.rows(chosen[here])))
        return ModelState(layers, tuple(groups), length, self.fusion)

    @classmethod
    def cat(cls, states: Iterable[ModelState]) -> ModelState:
        """The rows of several states of one model in one state, so that they go on as one batch.

        Args:
            states: The states, at least one.
        Returns:
            A state of all their rows, one behind the other, of its own memory.
        Raises:
            InputError: There are none, or they are of several fusion methods.
        """
        states = tuple(states)
        if not states:
            raise InputError("ModelState.cat: `states` must be one state at least, got none. Leave the call out.")
        if len(methods := dict.fromkeys(state.fusion for state in states)) > 1:
            raise InputError(
                f"ModelState.cat: `states` must be of one fusion method and its options, "
                f"got {', '.join(map(str, methods))}. Join those of one model."
            )
        each_layer = zip(*(state.layers for state in states), strict=True)
        layers = tuple(MambaState(*map(torch.cat, zip(*layer, strict=True))) for layer in each_layer)
        length = torch.cat([state.length for state in states])
        parts, start = [], 0
        for state in states:
            here = torch.arange(start, start := start + len(state.length), device=length.device)
            if len(here):
                parts += [(here if rows is None else here[rows], memory) for rows, memory in state.groups]
        return cls(layers, _gathered(parts, len(length)), length, states[0].fusion)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file of safetensors, whole or not at all.

        Args:
            path: The file, replaced if it exists.
        Raises:
            InputError: The fusion method keeps something that is neither a tensor nor a plain value.
        """
        tree = {"layers": self.layers, "groups": self.groups, "length": self.length, "fusion": self.fusion}
        write_state(path, tree)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> ModelState:
        """Read what `save` wrote.

        Args:
            path: The file.
            device: Where the tensors go.
        Returns:
            The state.
        Raises:
            CheckpointError: There is no such file, or it is not what `save` wrote.
        """
        tree = read_state(path, device)
        if missing := sorted({"layers", "groups", "length", "fusion"} - tree.keys()):
            raise wrong(path, f"a file without {', '.join(missing)}")
        try:
            layers = tuple(MambaState(*each) for each in tree["layers"])
            groups = tuple(Group(rows, ImageMemory(*memory)) for rows, memory in tree["groups"])
        except (TypeError, ValueError) as error:
            raise wrong(path, f"another tree: {error}") from error
        return cls(layers, groups, tree["length"], tree["fusion"])


def _gathered(parts: Iterable[tuple[Tensor, ImageMemory]], count: int) -> tuple[Group, ...]:
    """Groups of the numbered rows, those of one form in one: fusion is then called as seldom as it can be."""
    forms: list[tuple[Tensor, ImageMemory]] = []
    for part in parts:
        for place, form in enumerate(forms):
            if _alike(form[1], part[1]):
                forms[place] = _cat(form, part)
                break
        else:
            forms.append(part)
    if len(forms) == 1 and len(forms[0][0]) == count:
        ((rows, memory),) = forms
        return (Group(None, memory.rows(rows.argsort())),)
    return tuple(Group(rows, memory) for rows, memory in forms)


def _alike(a: Any, b: Any) -> bool:
    """Whether two memories differ in their number of rows, and in what tensors hold, alone."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (a.shape[1:], a.dtype) == (b.shape[1:], b.dtype)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return type(a) is type(b) and bool(a == b)


def _cat(a: Any, b: Any) -> Any:
    if isinstance(a, torch.Tensor):
        return torch.cat([a, b])
    if isinstance(a, tuple):
        parts = map(_cat, a, b)
        return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)
    return a
