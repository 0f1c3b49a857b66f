"""Turns an exception of a cell into an outcome: a status, a reason in one line, and a traceback."""

from __future__ import annotations

import re
import traceback
from typing import Literal

from bench.execution.base import Outcome
from bench.program import damaged_module
from tl.errors import DivergedError, NotApplicable, UserError

_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory"),
    "is killed by signal: Killed",  # torch, of a worker process of a loader; see `_died` in bench.execution.process
)
_REQUESTED = re.compile(r"allocate (\d[\d.]*) ?(bytes\b|[KMGT]i?B\b)")
"""Finds the requested size in the out-of-memory messages of torch (CPU and GPU) and numpy."""


def ended_by(error: BaseException, wall_seconds: float = 0.0) -> Outcome:
    """The outcome of a call that raised `error`."""
    status, reason, trace = describe(error)
    value = error.epochs if isinstance(error, DivergedError) else None
    return Outcome(status=status, value=value, reason=reason, traceback=trace, wall_seconds=wall_seconds)


def describe(error: BaseException) -> tuple[Literal["failed", "oom", "skipped", "diverged"], str, str]:
    """Status, reason and traceback of a cell that raised `error`.

    The reason is the message of a `UserError`; for other errors the class name comes before the message.
    `NotApplicable` is not a failure: the status is `skipped`. `DivergedError` is what a sound program finds out, so its
    status is `diverged`. Neither has a traceback.
    """
    if isinstance(error, NotApplicable):
        return "skipped", str(error), ""
    if isinstance(error, DivergedError):
        return "diverged", str(error), ""
    text = _text(error)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    memory = memory or (isinstance(error, RuntimeError | OSError) and any(words in text for words in _OUT_OF_MEMORY))
    first_line = text.strip().splitlines()[0] if text.strip() else ""
    if damage := damaged_module(error):
        return "failed", damage, ""
    reason = first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}".rstrip(": ")
    if memory:
        found = _REQUESTED.search(text)
        size = found and (
            readable(int(found[1])) if found[2] == "bytes" and found[1].isdigit() else " ".join(found.groups())
        )
        reason = f"out of memory: asked for {size}" if size else f"out of memory: {reason}"
    return ("oom" if memory else "failed"), reason, _trace(error)


def readable(size: int) -> str:
    """A number of bytes in a readable unit: `512 MiB`, `2.5 GiB`."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def _text(error: BaseException) -> str:
    """The exception's message; empty if its `__str__` raises, as a third-party class may."""
    try:
        return str(error)
    except Exception:
        return ""


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as failure:
        return f"the traceback can't be formatted: {type(failure).__name__}"
