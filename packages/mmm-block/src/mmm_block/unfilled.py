"""Models whose parameters are about to be overwritten: drawing their start takes most of the time of loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LAWS = ("uniform_", "normal_")
DRAWN = {f"{scale}{law}" for scale in ("", "kaiming_", "xavier_") for law in LAWS}


class Unfilled(TorchFunctionMode):
    """Inside, parameters are not drawn at random: what they hold means nothing. Buffers and other tensors are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or leave its parameter as it is."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in DRAWN:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)
