"""Ctrl-C as a wish that the training looks at between two steps; a second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmm_train.errors import Interrupted


class StopWish:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.wished = False

    def heed(self) -> None:
        """Raise `Interrupted` if someone asked."""
        if self.wished:
            raise Interrupted("stopped as asked.")


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """While it lasts, the first SIGINT (Ctrl-C) or SIGTERM is noted; the next acts as before.

    Yields:
        The wish.
    """
    wish, before = StopWish(), dict[int, Any]()

    def note(number: int, frame: FrameType | None) -> None:
        wish.wished = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield wish
    finally:
        restore()
