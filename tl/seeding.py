"""Derives random seeds from a purpose and from the values that the random numbers may depend on.

All random numbers of a cell come from `seed_for(purpose, *axes)`. Two cells share them exactly if they give the same
purpose and axes. For crops and the order of images the axes are seed and epoch, but not regime or device, so two
regimes of a backbone train on the same images.
"""

from __future__ import annotations

import hashlib


def seed_for(purpose: str, *axes: str | int) -> int:
    """Return a seed in [0, 2**63) for a purpose and the values that it may depend on.

    The seed is stable across processes, platforms and Python versions (SHA-256, not `hash`).
    """
    text = "\x1f".join([purpose, *map(str, axes)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
