"""What an exception means for a cell: told in one line, with its traceback beside it."""

from __future__ import annotations

import traceback
from typing import Literal

from tl.errors import NotApplicable, UserError

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def describe(error: BaseException) -> tuple[Literal["failed", "oom", "skipped"], str, str]:
    """Status, reason, traceback. A `UserError` keeps its own words, another error is named by its class.

    What is not applicable is no failure: it is skipped, and has no traceback.
    """
    if isinstance(error, NotApplicable):
        return "skipped", str(error), ""
    text = str(error)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    memory = memory or (isinstance(error, RuntimeError | OSError) and any(words in text for words in _OUT_OF_MEMORY))
    first_line = text.strip().splitlines()[0] if text.strip() else ""
    reason = first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}".rstrip(": ")
    return ("oom" if memory else "failed"), reason, "".join(traceback.format_exception(error))
