"""Logs of cells. Each attempt appends to its cell's log; the beginning and the end of a long output are kept."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LOG_BYTES = 1 << 20
"""Most bytes kept per attempt: the first half of them from its beginning, the second half from its end."""
_TAIL_BYTES = 4_000
"""Bytes from the end of an attempt's output that go into its record if its process died."""


def log_size(log: Path | None) -> int:
    """Bytes that earlier attempts have written to a log; 0 if there is none."""
    return log.stat().st_size if log and log.is_file() else 0


def open_log(log: Path) -> int:
    """Open a log to append to it, and return its descriptor. Raises `OSError` for a pipe, which could block for ever.

    Functions of this module take anything but a regular file for no log at all.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(log))
    return descriptor


def tail(log: Path | None, before: int) -> str:
    """The end of what was appended to a log that had `before` bytes."""
    if log is None or not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(before, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def shorten(log: Path, before: int = 0) -> None:
    """Keep at most `LOG_BYTES` of what was appended to a log that had `before` bytes; delete the log if it is empty."""
    if not log.is_file():
        return
    size = log.stat().st_size
    if size == 0:
        log.unlink()
    elif size - before > LOG_BYTES:
        half = LOG_BYTES // 2
        with log.open("r+b") as file:
            file.seek(size - half)
            last = file.read()
            file.seek(before + half)
            file.write(f"\n… {size - before - 2 * half} bytes left out …\n".encode() + last)
            file.truncate()
