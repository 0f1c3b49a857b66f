"""Prints lines on the terminal. Importing this module doesn't import rich, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tl.text import visible

if TYPE_CHECKING:
    from rich.console import Console


_SIZES = {"COLUMNS": range(20, 10_001), "LINES": range(1, 10_001)}
"""Sizes of terminals: tables of less than 20 columns have no room for words, and wide ones are filled with spaces."""


@contextlib.contextmanager
def without_impossible_sizes() -> Iterator[None]:
    """Remove `COLUMNS` and `LINES` from the environment where no terminal has such a size: it is unknown then.

    Rich would print nothing at all on a terminal of no columns. Afterwards the environment is as it was: a notebook's
    other libraries may need it.
    """
    removed = {}
    for name, possible in _SIZES.items():
        given = os.environ.get(name)
        if given is not None and not (given.isdecimal() and len(given) < 10 and int(given) in possible):
            removed[name] = os.environ.pop(name)
    try:
        yield
    finally:
        for name, given in removed.items():
            os.environ.setdefault(name, given)


def deleted_working_folder() -> str:
    """Say that the working folder has been deleted, and which it was; empty if it exists."""
    with contextlib.suppress(OSError):
        Path.cwd()
        return ""
    try:
        named = os.fspath(Path("/proc/self/cwd").readlink()).removesuffix(" (deleted)")
    except OSError:  # other systems than Linux: the shell's own word for it
        named = os.environ.get("PWD", "")
    return f"the working folder{f' {named}' if named else ''} has been deleted; change to one that exists"


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: nothing in it is taken for markup, long paths are not wrapped, and nothing is hidden."""
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)


def tell(text: str, stream: IO[str] | None = None) -> None:
    """Print a line on standard error, or another stream. What happens goes on if it can't be written."""
    stream = sys.stderr if stream is None else stream
    try:
        stream.write(f"{visible(text)}\n")
        stream.flush()
    except (OSError, ValueError, AttributeError):  # full, closed, or None in a program without a terminal
        discard(stream)


def discard(stream: Any) -> None:
    """Drop what a stream of this process still has to write, so that Python doesn't fail on it when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _NamedFile(io.FileIO):
    """A file whose errors have its name: the system gives none where it can't be written."""

    def __init__(self, stream: IO[str], name: str) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self._stream, self._called = stream, name  # the stream closes the file when nobody holds it

    def write(self, data: Any) -> int:
        """Write bytes; returns how many."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = self._called
            raise


def name_output() -> None:
    """Make an error of standard output say that it is one, as an error of a file does."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        try:
            file = _NamedFile(stream, "standard output")
        except io.UnsupportedOperation:  # it only keeps what is written, as a notebook's or a test's may
            return
        sys.stdout = io.TextIOWrapper(
            file if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(file),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )


class LastingOutput(io.TextIOBase):
    """Standard output of a sweep. If nobody reads it any more, or it can't be written, the sweep goes on without it."""

    def __init__(self, stream: IO[str], on_loss: Callable[[], object] = lambda: None) -> None:
        """`on_loss` is called once, after a line on standard error."""
        super().__init__()
        self._stream, self._on_loss = stream, on_loss
        self._errors = sys.stderr  # a live display replaces it by one that writes here
        self.lost: OSError | None = None
        """Why nothing is written any more; None while all is well."""

    def write(self, text: str) -> int:
        """Write text, with escapes for what the stream's encoding doesn't have."""
        known = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._try(lambda: self._stream.write(known))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """True for a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return (getattr(self._stream, "encoding", None) or "utf-8").lower()

    def _try(self, action: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except OSError as error:
            self._lose(error)
        except ValueError as error:  # it was closed
            self._lose(OSError(errno.EBADF, str(error)))

    def _lose(self, error: OSError) -> None:
        self.lost = error
        tell(
            f"standard output: {error.strerror}: nothing more is shown, but the sweep goes on and writes its files",
            self._errors,
        )
        self._on_loss()
