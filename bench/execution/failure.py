"""What an exception means for a cell: told in one line, with its traceback beside it."""

from __future__ import annotations

import re
import traceback
from typing import Literal

from tl.errors import NotApplicable, UserError

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
_ASKED = re.compile(r"allocate (\d[\d.]*) ?(bytes\b|[KMGT]i?B\b)")
"""How torch on a CPU and on a GPU, and numpy, tell how much was asked for."""


def describe(error: BaseException) -> tuple[Literal["failed", "oom", "skipped"], str, str]:
    """Status, reason, traceback. A `UserError` keeps its own words, another error is named by its class.

    What is not applicable is no failure: it is skipped, and has no traceback.
    """
    if isinstance(error, NotApplicable):
        return "skipped", str(error), ""
    text = _text(error)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    memory = memory or (isinstance(error, RuntimeError | OSError) and any(words in text for words in _OUT_OF_MEMORY))
    first_line = text.strip().splitlines()[0] if text.strip() else ""
    reason = first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}".rstrip(": ")
    if memory:
        asked = _ASKED.search(text)
        size = asked and (
            readable(int(asked[1])) if asked[2] == "bytes" and asked[1].isdigit() else " ".join(asked.groups())
        )
        reason = f"out of memory: asked for {size}" if size else f"out of memory: {reason}"
    return ("oom" if memory else "failed"), reason, _trace(error)


def readable(size: int) -> str:
    """Bytes in the unit that people would choose: `512 MiB`, `2.5 GiB`."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def _text(error: BaseException) -> str:
    """What an exception says; one of somebody else's may fail at that."""
    try:
        return str(error)
    except Exception:
        return ""


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as failure:
        return f"its traceback can't be told: {type(failure).__name__}"
