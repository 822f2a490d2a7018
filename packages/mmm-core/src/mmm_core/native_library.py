"""Finds the compiled library that the wheel carries, loads it, and calls it.

The library has a plain C ABI and is loaded by ctypes, so that one wheel serves every torch and every Python. A call is
one block of 64-bit words, laid out as the structures of `native/abi.h`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import resources
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, Any

import torch

from mmm_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ABI = 6
VARIABLE = "MMM_CORE_ISA"
_NAMES = {"win32": "mmm_core_native.dll", "darwin": "libmmm_core_native.dylib"}
NAME = _NAMES.get(sys.platform, "libmmm_core_native.so")
_TORCH_NAMES = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}
TORCH_NAME = _TORCH_NAMES.get(sys.platform, "libtorch_cpu.so")
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_ABSENT = (0,) * 6
_ZEROS = tuple((0,) * count for count in range(5))


def _load() -> ctypes.CDLL | str:
    """The library, or a sentence that says why there is none."""
    path = resources.files("mmm_core").joinpath(NAME)  # an editable install keeps it apart from the sources
    if not path.is_file():
        return f"{NAME} was not built; reinstall mmm-core where GCC 12 or newer, or Clang, is at hand"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{NAME} does not load ({error}); reinstall mmm-core on this machine"
    abi = library.mmm_core_abi()
    if abi != ABI:
        return f"{NAME} has ABI {abi}, this mmm_core needs {ABI}; reinstall mmm-core"
    library.mmm_core_available.restype = ctypes.c_char_p
    library.mmm_core_isa.restype = ctypes.c_char_p
    library.mmm_core_exponentials.argtypes = [ctypes.c_int64]
    library.mmm_core_exponentials.restype = ctypes.c_double
    library.mmm_core_set_parallel_for.argtypes = [ctypes.c_void_p]
    return library


def _torch_parallel_for() -> int | None:
    """The address of torch's C function that runs work on its threads; None where this torch has none."""
    for name in (str(Path(torch.__file__).parent / "lib" / TORCH_NAME), TORCH_NAME):
        try:
            function = ctypes.CDLL(name).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _available(library: ctypes.CDLL) -> tuple[str, ...]:
    """The instruction sets that the library holds and this CPU has, widest first."""
    names: list[str] = []
    while name := library.mmm_core_available(len(names)):
        names.append(name.decode())
    return tuple(names)


_loaded = _load()
LIBRARY: Any = None if isinstance(_loaded, str) else _loaded
"""The library, found at import, since torch.compile cannot look into files; None where there is none."""
MISSING: str | None = _loaded if isinstance(_loaded, str) else None
"""Why there is no library; None where there is one."""
AVAILABLE: tuple[str, ...] = () if LIBRARY is None else _available(LIBRARY)
"""The instruction sets that can be used here, widest first."""
SCAN_CHUNK: int = 1 if LIBRARY is None else LIBRARY.mmm_core_scan_chunk()
"""Positions between two checkpoints of a scan."""
FORCED: str | None = None
"""The instruction set that `MMM_CORE_ISA` forced when it was last looked at."""
ISA: str | None = None
"""The instruction set in use, as the library names it."""
WHY_NOT: str | None = MISSING
"""Why the native kernels cannot run; None where they can."""
THREADS = "no thread"
"""What the kernels run on."""


def follow_environment() -> None:
    """Use the instruction set that `MMM_CORE_ISA` names now, or the widest where it names none."""
    global FORCED, ISA, WHY_NOT
    forced = os.environ.get(VARIABLE) or None
    if forced == FORCED and ISA is not None:
        return
    FORCED = forced
    if LIBRARY is None:
        return
    wanted = FORCED or AVAILABLE[0]
    WHY_NOT = None
    if LIBRARY.mmm_core_use(wanted.encode()) != 0:
        LIBRARY.mmm_core_use(AVAILABLE[0].encode())
        WHY_NOT = f"{VARIABLE} is {FORCED!r}, and this CPU has {', '.join(AVAILABLE)}"
    ISA = LIBRARY.mmm_core_isa().decode()


def wrong_isa() -> str | None:
    """Why the instruction set that the environment forces cannot be used, and what to do; None where it can."""
    if FORCED is None or WHY_NOT is None:
        return None
    if MISSING is None:
        return f"{WHY_NOT}. Unset it, or set it to one of these."
    return f"{VARIABLE} is {FORCED!r}, and {MISSING}. Or unset it."


def _lend_threads() -> None:
    """Hand torch's thread pool to the library."""
    global THREADS
    if LIBRARY is not None:
        address = _torch_parallel_for()
        THREADS = "one thread: this torch lends no pool" if address is None else "torch's threads"
        LIBRARY.mmm_core_set_parallel_for(address)


def _take_threads_back() -> None:
    """In a forked child: its parent's threads are not there, and GNU OpenMP would wait for them for ever."""
    global THREADS
    if LIBRARY is not None:
        THREADS = "one thread: this process was forked"
        LIBRARY.mmm_core_set_parallel_for(None)


follow_environment()
_lend_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_take_threads_back)


def array(x: Tensor | None) -> tuple[int, ...]:
    """A tensor as the library takes it: its address, dtype and four strides; zeros where it is absent."""
    if x is None:
        return _ABSENT
    return (_address(x), _DTYPES[x.dtype], *x.stride(), *_ZEROS[4 - x.ndim])


def token(x: Tensor | None, axes: int = 3) -> tuple[int, ...]:
    """A tensor of one position, (b, ...), as the library takes one with an axis `l` and `axes` in all.

    The other axes that are missing, as that of the groups where there is one, come next to `l`.
    """
    if x is None:
        return _ABSENT
    stride = x.stride()
    return (_address(x), _DTYPES[x.dtype], stride[0], *_ZEROS[axes - len(stride)], *stride[1:], *_ZEROS[4 - axes])


def _address(x: Tensor) -> int:
    """Where a tensor's numbers stand; null, which means absent, only where it has none."""
    address = x.data_ptr()
    if address == 0 and x.numel() > 0:
        raise ValueError(f"mmm_core: a tensor of shape {tuple(x.shape)} has no memory. Pass a clone of it.")
    return address


def sequences(rows: int, length: int, bounds: Tensor | None, reverse: bool) -> tuple[int, ...]:
    """Where sequences begin and end, as the library takes it: `rows` of one length, or packed between `bounds`."""
    if bounds is None:
        return (rows, length, 0, reverse)
    return (bounds.shape[0] - 1, length, bounds.data_ptr(), reverse)


def call(operation: str, words: Sequence[int]) -> None:
    """Call an operation of the library, which is there: `choose` said so, if only when the call was compiled.

    Raises:
        BackendUnavailable: Since then, `MMM_CORE_ISA` has been set to what this CPU lacks.
        MemoryError: The kernel found no memory for its scratch.
        RuntimeError: Torch's thread pool failed.
    """
    follow_environment()
    if WHY_NOT is not None:
        raise BackendUnavailable(f"mmm_core: {wrong_isa()}")
    failed = getattr(LIBRARY, operation)(pack(f"{len(words)}q", *words))
    if failed == 1:
        raise MemoryError("mmm_core: the native kernel found no memory for its scratch. Use a smaller batch.")
    if failed:
        raise RuntimeError("mmm_core: torch's threads could not run the native kernel. Try torch.set_num_threads(1).")
