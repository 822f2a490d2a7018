"""Which implementation runs a call, and why the others cannot.

The backends stand in `NAMES`, fastest first. `choose` takes the first that can run a call; a backend that is forced,
by argument or by the environment variable `MMM_CORE_BACKEND`, runs or raises, and nothing falls back silently.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import torch

from mmm_core import native_library
from mmm_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("triton", "mamba_ssm", "native", "chunked", "reference")


class Verdict(NamedTuple):
    """Whether a backend can run a call: `reason` is None where it can, else says why not."""

    backend: str
    reason: str | None


class Explanation(tuple[Verdict, ...]):
    """The verdict on every backend, fastest first; `str()` makes a table of it."""

    __slots__ = ()

    @property
    def chosen(self) -> str:
        """The backend that runs where none is forced."""
        return next(verdict.backend for verdict in self if verdict.reason is None)

    def __str__(self) -> str:
        width = max(len(name) for name in NAMES)
        lines = []
        for name, reason in self:
            status = "chosen" if name == self.chosen else "can run" if reason is None else f"cannot run: {reason}"
            lines.append(f"{name:<{width}}  {status}")
        return "\n".join(lines)


def why_not(backend: str, name: str, device: torch.device) -> str | None:
    """Why `backend` cannot run a call whose tensor `name` is on `device`, or None where it can."""
    if backend == "native":
        return native_library.WHY_NOT
    if backend in ("triton", "mamba_ssm"):
        if device.type != "cuda":
            return f"`{name}` is on {device.type}"
        return "this version of mmm-core has no GPU kernels"
    return None


def explain(*tensors: Tensor) -> Explanation:
    """Say which backends can run a call here, and why not the others.

    Args:
        *tensors: The tensors of the call; only the first one's device matters. None: the CPU.
    Returns:
        One verdict a backend, fastest first. `print(explain())` shows a table.
    """
    device = tensors[0].device if tensors else torch.device("cpu")
    return Explanation(Verdict(backend, why_not(backend, "u", device)) for backend in NAMES)


def choose(where: str, forced: str | None, name: str, device: torch.device) -> str:
    """Say which backend runs a call.

    Args:
        where: The function that calls, for the error's text.
        forced: A backend's name, or None to take `MMM_CORE_BACKEND` or the first that can run.
        name: The call's first tensor.
        device: Where it is.
    Returns:
        One of `NAMES`.
    Raises:
        BackendUnavailable: The forced backend cannot run the call.
        ValueError: No backend has that name.
    """
    asked_by = "backend"
    if forced is None:
        forced, asked_by = os.environ.get("MMM_CORE_BACKEND") or None, "MMM_CORE_BACKEND"
    if forced is None:
        return next(backend for backend in NAMES if why_not(backend, name, device) is None)
    if forced not in NAMES:
        raise ValueError(f"{where}: {asked_by} must be one of {', '.join(NAMES)}, got {forced!r}.")
    reason = why_not(forced, name, device)
    if reason is not None:
        can = ", ".join(backend for backend in NAMES if why_not(backend, name, device) is None)
        raise BackendUnavailable(f"{where}: backend {forced!r} cannot run: {reason}. Can run here: {can}.")
    return forced
