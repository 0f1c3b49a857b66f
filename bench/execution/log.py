"""What cells write: a file that attempts add to, of which the beginning and the end are kept."""

from __future__ import annotations

from pathlib import Path

LOG_BYTES = 1 << 20
"""That are kept of what an attempt wrote: the first half and the last."""
_TAIL_BYTES = 4_000
"""Of what an attempt wrote, where its process died: its last words."""


def log_size(log: Path | None) -> int:
    """Bytes that are in a log already, of earlier attempts."""
    return log.stat().st_size if log and log.exists() else 0


def last_words(log: Path | None, before: int) -> str:
    """The end of what was added to a log of `before` bytes."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(before, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def shorten(log: Path, before: int = 0) -> None:
    """Leave at most `LOG_BYTES` of what was added to a log of `before` bytes; an empty log goes."""
    if not log.exists():
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
