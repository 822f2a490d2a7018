"""Finds the compiled library that the wheel carries, loads it, and says what is in it.

The library has a plain C ABI and is loaded by ctypes, so that one wheel serves every torch and every Python.
"""

from __future__ import annotations

import ctypes
import sys
from importlib import resources

ABI = 1
_NAMES = {"win32": "mmm_core_native.dll", "darwin": "libmmm_core_native.dylib"}
NAME = _NAMES.get(sys.platform, "libmmm_core_native.so")


def _load() -> ctypes.CDLL | str:
    """The library, or a sentence that says why there is none."""
    path = resources.files("mmm_core").joinpath(NAME)  # an editable install keeps it apart from the sources
    if not path.is_file():
        return f"{NAME} was not built; reinstall mmm-core where a C++17 compiler is at hand"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{NAME} does not load ({error}); reinstall mmm-core on this machine"
    library.mmm_core_isa.restype = ctypes.c_char_p
    abi = library.mmm_core_abi()
    if abi != ABI:
        return f"{NAME} has ABI {abi}, this mmm_core needs {ABI}; reinstall mmm-core"
    return library


def _why_not(library: ctypes.CDLL | str) -> str:
    if isinstance(library, str):
        return library
    isa = library.mmm_core_isa().decode()
    return f"the library is built (ABI {ABI}, this CPU has {isa}), but this version holds no kernels in it yet"


WHY_NOT = _why_not(_load())
"""Why the native kernels cannot run. Found at import, since torch.compile cannot look into files."""
