"""Everything random comes from a seed and a place in the training, so nothing need be saved to repeat it."""

from __future__ import annotations

import hashlib


def derive(seed: int, *place: int | str) -> int:
    """A seed of its own for one place, such as ("order", epoch)."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1  # torch takes 63 bits
