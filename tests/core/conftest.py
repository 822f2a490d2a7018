"""What the tests of the native kernels share: the threads they may use, and a pool that sees the library run."""

import ctypes
from collections.abc import Iterator

import pytest
import torch

from mmm_core import native_library

Work = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
ParallelFor = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


class Pool:
    """Stands in for torch's pool: notes every call of the library that is worth threads, and runs it piece by piece."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, int]]] = []
        self.piece: int | None = None  # the most tasks in a piece; None: all in one
        self.fails = False
        self.function = ParallelFor(self._run)

    def _run(self, begin: int, end: int, grain: int, work: int, context: int) -> int:
        piece = self.piece or end - begin
        pieces = [(start, min(start + piece, end)) for start in range(begin, end, piece)]
        self.calls.append(pieces)
        if self.fails:
            return 1
        for start, stop in reversed(pieces):
            Work(work)(start, stop, context)
        return 0


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A `Pool` in the place of torch's, for one test."""
    stand_in = Pool()
    native_library.LIBRARY.mmm_core_set_parallel_for(ctypes.cast(stand_in.function, ctypes.c_void_p))
    yield stand_in
    native_library._lend_threads()


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of torch's threads, as it was before the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def instruction_set() -> Iterator[None]:
    """The instruction set of the environment, as it was before the test; ask for it before `monkeypatch`."""
    yield
    native_library.follow_environment()
