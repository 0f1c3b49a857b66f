"""Seeds that name what they depend on.

Everything random in a cell draws from `seed_for(purpose, *axes)`. Two cells share a draw exactly when
they name the same purpose and axes: the crops and the order of images name the seed and the epoch, never
the regime or the device, so that two regimes of one backbone see the same images.
"""

from __future__ import annotations

import hashlib


def seed_for(purpose: str, *axes: str | int) -> int:
    """A seed in [0, 2**63) from a purpose and the values that it may depend on.

    Stable across processes, platforms and Python versions (SHA-256, not `hash`).
    """
    text = "\x1f".join([purpose, *map(str, axes)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
