"""The settings of torch, and the generators of random numbers, that hold for the whole process or thread."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

Access = tuple[Callable[[], Any], Callable[[Any], Any]]


def _attribute(owner: object, name: str) -> Access:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(device: str) -> dict[str, Access]:
    enabled = (lambda: torch.is_autocast_enabled(device), lambda value: torch.set_autocast_enabled(device, value))
    dtype = (lambda: torch.get_autocast_dtype(device), lambda value: torch.set_autocast_dtype(device, value))
    return {f"autocast on {device}": enabled, f"the dtype of autocast on {device}": dtype}


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say, once another part of its settings has been set beside this one
        return "something that torch cannot name"


def _flushes_denormals() -> bool:
    return bool(torch.tensor(1e-310, dtype=torch.float64, device="cpu").mul(0.5) == 0)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


_backends = torch.backends
SETTINGS: dict[str, Access] = {
    # First: a mode in which what follows may fail.
    "the default device": (torch.get_default_device, _set_default_device),
    "the inference mode": (torch.is_inference_mode_enabled, lambda _: None),  # `settings_kept` ends it
    "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the flushing of denormal numbers": (_flushes_denormals, torch.set_flush_denormal),
    "the deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    **_autocast("cpu"),
    **_autocast("cuda"),
    "autocast's cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    # To set this one sets the three after it, so it is written before them.
    "the float32 matmul precision": (_matmul_precision, torch.set_float32_matmul_precision),
    "the float32 precision of cuBLAS": _attribute(_backends.cuda.matmul, "fp32_precision"),
    "the float32 precision of cuDNN": _attribute(_backends.cudnn.conv, "fp32_precision"),  # type: ignore[attr-defined]
    "the float32 precision of mkldnn": _attribute(_backends.mkldnn.matmul, "fp32_precision"),  # type: ignore[attr-defined]
    "cudnn.enabled": _attribute(_backends.cudnn, "enabled"),
    "cudnn.benchmark": _attribute(_backends.cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(_backends.cudnn, "deterministic"),
    "mkldnn.enabled": _attribute(_backends.mkldnn, "enabled"),
    "flash attention": (_backends.cuda.flash_sdp_enabled, _backends.cuda.enable_flash_sdp),
    "memory-efficient attention": (_backends.cuda.mem_efficient_sdp_enabled, _backends.cuda.enable_mem_efficient_sdp),
    "attention by plain operations": (_backends.cuda.math_sdp_enabled, _backends.cuda.enable_math_sdp),
    "cuDNN's attention": (_backends.cuda.cudnn_sdp_enabled, _backends.cuda.enable_cudnn_sdp),
}
"""How to read and to write each setting of torch."""


def settings() -> dict[str, Any]:
    """The settings as they are now."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back the settings that were changed inside."""
    before = settings()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        for name, (read, write) in SETTINGS.items():
            if read() != before[name]:
                write(before[name])


def generators() -> dict[str, Any]:
    """The states of the global generators, each one that can be compared."""
    states: dict[str, Any] = {"torch": tuple(torch.get_rng_state().tolist()), "random": random.getstate()}
    if numpy := sys.modules.get("numpy"):  # it need not be installed
        kind, keys, *rest = numpy.random.get_state()
        states["numpy"] = (kind, tuple(keys.tolist()), *rest)
    return states


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Put back the states of the global generators."""
    before = generators()
    try:
        yield
    finally:
        torch.set_rng_state(torch.tensor(before["torch"], dtype=torch.uint8, device="cpu"))
        random.setstate(before["random"])
        if "numpy" in before:
            sys.modules["numpy"].random.set_state(before["numpy"])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global generators of this seed; those before come back."""
    with generators_kept():
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed)
        yield
