"""Files that begin with the SHA-256 of their rest, so that a damaged cache is noticed before it is used.

Every file of the cache that we derive from something else is either sealed here, or has its digest in a sealed file.
Whoever opens one calls `warn_rebuilt` if it is damaged, and makes it again: a wrong cache costs time, and never a
wrong number or a run. A digest detects damage. It doesn't protect against forgery.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from tl.cache import read_bounded, write_atomic
from tl.errors import CacheWarning

_DIGEST_LENGTH = 64


class CacheDamage(Exception):
    """A file of the cache is not what was written. `str(error)` is one line with its path and what is wrong."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(" ".join(f"{path}: damaged: {what}".split()))


def read_sealed(path: Path) -> bytes | None:
    """Return the content of a sealed file, or None if there is no such file.

    Raises `CacheDamage` if the content isn't that of its digest, or if the file can't be read.
    """
    whole = read_regular(path)
    if whole is None:
        return None
    digest, content = whole[:_DIGEST_LENGTH], whole[_DIGEST_LENGTH + 1 :]
    if whole[_DIGEST_LENGTH : _DIGEST_LENGTH + 1] != b"\n" or digest != _digest(content):
        raise CacheDamage(path, "its content doesn't have the digest in its first line")
    return content


def read_or_warn(path: Path) -> bytes | None:
    """Return the content of a sealed file, or None if the caller must rebuild it. Warns if it is damaged."""
    try:
        return read_sealed(path)
    except CacheDamage as damage:
        warn_rebuilt(damage)
        return None


def write_sealed(path: Path, content: bytes) -> None:
    """Write a sealed file atomically. It replaces whatever has its name, even a folder. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or not path.is_file():  # `write_atomic` follows links, and leaves pipes and devices alone
        path.unlink(missing_ok=True)
    write_atomic(path, _digest(content) + b"\n" + content)


def read_regular(path: Path) -> bytes | None:
    """Return the bytes of a file, or None if there is no such file.

    Raises `CacheDamage` if it can't be read, or if it is no regular file: reading a FIFO could wait forever.
    """
    try:
        return read_bounded(path, sys.maxsize)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CacheDamage(path, f"it can't be read: {error.strerror or error}") from error


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def warn_rebuilt(damage: CacheDamage) -> None:
    """Warn with `CacheWarning` that a damaged part of the cache is rebuilt."""
    warnings.warn(f"{damage}; it is rebuilt", CacheWarning, stacklevel=3)


@contextlib.contextmanager
def cache_warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass the text of each `CacheWarning` in this block to `tell`, whatever the filters are.

    Other warnings are shown as usual. Filters belong to the whole process, so the block should not run in two threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", CacheWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, CacheWarning):
                tell(str(message))
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
