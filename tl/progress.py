"""Says how far a pass over images is, every few seconds, to whoever listens.

A first epoch may take minutes, and a user who waits wants to see that something moves. Without a listener nothing is
called in a pass; with one, a clock is read after each batch. Loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Batch = TypeVar("Batch")
EVERY_SECONDS = 5.0
"""Least time between two reports of a pass, so that they disturb no measurement."""
EXTRACTING = "extracting features"
"""What a pass does that is part of no epoch."""


@dataclass(frozen=True, kw_only=True)
class PassProgress:
    """How far a pass over images is."""

    what: str
    """What the pass does, such as `training`."""
    done: int
    """Number of images that have gone through."""
    total: int
    """Number of images of the whole pass."""

    def __str__(self) -> str:
        return f"{self.what} {self.done / self.total:.0%}"


_tell: Callable[[PassProgress], None] | None = None


@contextmanager
def progress_to(tell: Callable[[PassProgress], None]) -> Iterator[None]:
    """Report the progress of passes in this block to `tell`. The block should not run in two threads."""
    global _tell
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


def counted(batches: Iterable[Batch], images: int, what: str) -> Iterable[Batch]:
    """The same batches, with a report after one of them every `EVERY_SECONDS`, if anybody listens.

    Args:
        batches: tensors of images `(B, …)`, or tuples and lists whose last part has one entry per image.
        images: number of images of the whole pass.
        what: what the pass does, in words.
    """
    return batches if _tell is None else _counted(batches, images, what, _tell)


def _counted(batches: Iterable[Any], images: int, what: str, tell: Callable[[PassProgress], None]) -> Iterator[Any]:
    done, last = 0, time.perf_counter()
    for batch in batches:
        yield batch
        done += len(batch[-1]) if isinstance(batch, tuple | list) else len(batch)
        if (now := time.perf_counter()) - last >= EVERY_SECONDS and done < images:
            tell(PassProgress(what=what, done=done, total=images))
            last = now
