"""Which implementation runs a call, and why the others cannot.

The backends stand in `NAMES`, fastest first. `choose` takes the first that can run a call; a backend that is forced,
by argument or by the environment variable `MMM_CORE_BACKEND`, runs or raises, and nothing falls back silently. The
same holds of an instruction set that `MMM_CORE_ISA` forces. What a backend imports is looked for here, and imported
when it first runs.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from mmm_core import native_library
from mmm_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

VARIABLE = "MMM_CORE_BACKEND"
NAMES = ("triton", "mamba_ssm", "native", "chunked", "reference")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own variable: its kernels run in Python, anywhere
_NEEDS = {"triton": "cuda", "mamba_ssm": "cuda", "native": "cpu"}  # the kind of device; ROCm's is "cuda" too
_MODULES = {"triton": "triton", "mamba_ssm": "selective_scan_cuda"}  # the latter is mamba_ssm's compiled extension
_MISSING = frozenset(backend for backend, module in _MODULES.items() if find_spec(module) is None)

_Backend = TypeVar("_Backend")


class Modules(dict[str, _Backend]):
    """The modules of an operation's backends by name; those of GPUs are imported when they are first asked for.

    Args:
        package: The package that they stand in.
        modules: Those that are there from the start.
    """

    def __init__(self, package: str, modules: dict[str, _Backend]) -> None:
        super().__init__(modules)
        self._package = package

    def __missing__(self, backend: str) -> _Backend:
        module: _Backend = import_module(f"{self._package}.{backend}_gpu")  # type: ignore[assignment]
        self[backend] = module
        return module


class Verdict(NamedTuple):
    """Whether a backend can run a call: `reason` is None where it can, else says why not."""

    backend: str
    reason: str | None


class Explanation(tuple[Verdict, ...]):
    """The verdict on every backend, fastest first; `str()` makes a table of it."""

    __slots__ = ()

    @property
    def chosen(self) -> str:
        """The backend that a call gets, or asks for: that of the environment, else the first that can run."""
        asked = self._asked()
        return asked[0] if asked else next(verdict.backend for verdict in self if verdict.reason is None)

    def __str__(self) -> str:
        width = max(len(name) for name in NAMES)
        return "\n".join(f"{verdict.backend:<{width}}  {self._status(verdict)}" for verdict in self)

    def _status(self, verdict: Verdict) -> str:
        status = "can run" if verdict.reason is None else f"cannot run: {verdict.reason}"
        if verdict.backend == self.chosen:
            asked = self._asked()
            status = f"{status}, asked for by {asked[1]}" if asked else "chosen"
        if verdict.backend == "native" and verdict.reason is None:
            status += f" ({native_library.ISA}, {native_library.THREADS})"
        return status

    def _asked(self) -> tuple[str, str] | None:
        """The backend that the environment asks for, and the variable that does."""
        if forced := _forced():
            return forced, VARIABLE
        wrong_isa = native_library.wrong_isa() is not None and Verdict("native", native_library.WHY_NOT) in self
        return ("native", native_library.VARIABLE) if wrong_isa else None


def why_not(
    backend: str, name: str, device: torch.device, misfit: Callable[[], str | None] | None = None
) -> str | None:
    """Why `backend` cannot run a call, or None where it can.

    Args:
        backend: One of `NAMES`.
        name: The call's first tensor.
        device: Where it is.
        misfit: Says why the call does not fit mamba_ssm, the one backend that takes only some. None: it does fit.
    """
    kind = device.type
    if _NEEDS.get(backend, kind) != kind and not (backend == "triton" and INTERPRETED):
        return f"`{name}` is on {kind}"
    if backend == "native":  # what is compiled looks for its instruction set when it runs
        return native_library.MISSING if torch.compiler.is_compiling() else native_library.WHY_NOT
    if backend in _MISSING:
        return f"the module {_MODULES[backend]} is not installed"
    return misfit() if backend == "mamba_ssm" and misfit is not None else None


def explain(u: Tensor | None = None) -> Explanation:
    """Say which backends can run a call here, and why not the others.

    Args:
        u: The first tensor of the call; its device is what counts. None: one on the CPU.
    Returns:
        One verdict a backend, fastest first. `print(explain())` shows a table.
    """
    _follow_environment()
    device = torch.device("cpu") if u is None else u.device
    return Explanation(Verdict(backend, why_not(backend, "u", device)) for backend in _order())


def choose(
    where: str, forced: str | None, name: str, device: torch.device, misfit: Callable[[], str | None] | None = None
) -> str:
    """Say which backend runs a call.

    Args:
        where: The function that calls, for the error's text.
        forced: A backend's name, or None to take `MMM_CORE_BACKEND` or the first that can run.
        name: The call's first tensor.
        device: Where it is.
        misfit: As of `why_not`.
    Returns:
        One of `NAMES`.
    Raises:
        BackendUnavailable: The forced backend cannot run the call.
        ValueError: No backend has that name.
    """
    asked_by = "backend"
    if forced is None:
        forced, asked_by = _forced(), VARIABLE
    _follow_environment()
    if forced is None:
        wrong_isa = None if torch.compiler.is_compiling() else native_library.wrong_isa()
        if wrong_isa is not None and device.type == "cpu":
            raise BackendUnavailable(f"{where}: {wrong_isa}")
        return next(backend for backend in _order() if why_not(backend, name, device, misfit) is None)
    if forced not in NAMES:
        raise ValueError(f"{where}: {asked_by} must be one of {', '.join(NAMES)}, got {forced!r}.")
    reason = why_not(forced, name, device, misfit)
    if reason is not None:
        able = (backend for backend in _order() if why_not(backend, name, device, misfit) is None)
        can = ", ".join(map(_with_isa, able))
        raise BackendUnavailable(f"{where}: backend {forced!r} cannot run: {reason}. Can run here: {can}.")
    return forced


def _order() -> tuple[str, ...]:
    """`NAMES`; but an interpreter of kernels is slower than all others, and runs where it is asked for."""
    return (*NAMES[1:], NAMES[0]) if INTERPRETED else NAMES


def _with_isa(backend: str) -> str:
    return f"native ({native_library.ISA})" if backend == "native" else backend


def _follow_environment() -> None:
    """`MMM_CORE_ISA` counts as it stands now, as `MMM_CORE_BACKEND` does."""
    if not torch.compiler.is_compiling():
        native_library.follow_environment()


def _forced() -> str | None:
    return os.environ.get(VARIABLE) or None
