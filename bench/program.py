"""Ends the process of a program with its exit status.

Python ends with status 1 for any exception, and 1 means that a gate found a regression. So every program of the suite
is started by `end`, and only a status that the program returns can be 1. Neither this module nor what it imports needs
a library, so that it works where one is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn

from bench.console import deleted_working_folder, discard, tell
from tl.text import shortened

INTERRUPTED, USAGE = 130, 2
"""Exit statuses: Ctrl-C or SIGTERM, and an error, be it a mistake of the user or a bug of the suite."""
READER_GONE = 141
"""Exit status if nobody reads the output any more: that of a program which SIGPIPE ends (128 + 13)."""


def guard() -> None:
    """Make an uncaught exception end this process with `USAGE` instead of 1.

    A program calls it before it imports libraries, since one of them may be missing. `end` handles everything later.
    """
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> NoReturn:
    if issubclass(kind, KeyboardInterrupt):
        tell("interrupted")
        raise SystemExit(INTERRUPTED)
    with contextlib.suppress(BaseException):  # the message may fail too, and must not decide anything
        if not _is_about_files(error):
            traceback.print_exception(kind, error, where)
        _print_error(_words(error))
    raise SystemExit(USAGE)


def end(program: Callable[[], int]) -> NoReturn:
    """Run a program and end this process with the exit status that it returns.

    Mistakes of the user end in one line and `USAGE`; so does any other exception, after its traceback.
    """
    try:
        status = _status(program)
    except BaseException:  # such as a second interrupt, or no memory for the message
        status = USAGE
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        # Python would otherwise write what is left when it ends, fail again, and choose the exit status itself.
        discard(sys.stdout)
    sys.exit(status)


def _status(program: Callable[[], int]) -> int:
    try:
        status = program()
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk or a closed pipe must not be noticed only when Python ends
        return status
    except BrokenPipeError:  # without a word, as a reader such as `head` that has seen enough expects
        return READER_GONE
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except SystemExit as stop:
        return _status_of(stop)
    except BaseException as error:  # some libraries raise exceptions that aren't an `Exception`
        try:
            if not _is_mistake(error) and not _is_about_files(error):
                with contextlib.suppress(OSError, ValueError):
                    traceback.print_exc()
            _print_error(_words(error), getattr(error, "details", ()))
        except KeyboardInterrupt:
            return INTERRUPTED
        return USAGE


def _status_of(stop: SystemExit) -> int:
    """The status of a `sys.exit`. Argparse ends with 0 or 2; a status of 1 or a text is not the program's decision."""
    if stop.code is None or (isinstance(stop.code, int) and stop.code != 1):
        return stop.code or 0
    _print_error(f"a library called sys.exit({stop.code!r}), so the command ended without a result")
    return USAGE


def _is_mistake(error: BaseException) -> bool:
    """True for an error whose message is enough: the user or the machine caused it."""
    try:
        from tl.errors import UserError
    except Exception:  # the suite itself can't be imported
        return isinstance(error, OSError)
    return isinstance(error, UserError | OSError | subprocess.CalledProcessError)


def _words(error: BaseException) -> str:
    if _is_mistake(error):
        words = _about(error) if isinstance(error, OSError) else str(getattr(error, "headline", error))
        gone = deleted_working_folder()
        return words if not gone or gone in words else f"{words} ({gone})"
    if isinstance(error, ImportError):
        return f"{error}: is everything installed that the suite needs?"
    if damage := damaged_module(error):
        return damage
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {error}: this is a bug in the suite; please report the lines above"


def _about(error: OSError) -> str:
    """An error of the operating system, with what it is about where it knows that."""
    if error.filename:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        return f"{shortened(name)}: {error.strerror}"
    return deleted_working_folder() or str(error)


def _is_about_files(error: BaseException) -> bool:
    """True for an error whose cause is a file of an installed module, so that a traceback would not help."""
    return isinstance(error, ImportError) or bool(damaged_module(error))


def damaged_module(error: BaseException) -> str:
    """Say which file of an installed module is damaged, if that is why it can't be imported; empty otherwise."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames:
        return ""
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.lineno else ""
        file = f"{error.filename}{line}" if error.filename else f"a module that {frames[-1].f_code.co_filename} imports"
    elif "importlib" in frames[-1].f_code.co_filename:
        file = str(frames[-1].f_locals.get("bytecode_path") or "")
    else:
        file = ""
    return f"{file}: damaged: {getattr(error, 'msg', error)}; install it again" if file else ""


_LONGEST = 4000
"""Most characters of an error. Names from files have no bound, and a terminal should still show what they are about."""


def _bounded(line: str) -> str:
    """Return a line without its middle if it is too long: it begins with what is wrong, and ends with advice."""
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def _print_error(message: str, details: Sequence[str] = ()) -> None:
    """Print an error in one line, and each of its details (see `tl.errors.UserError`) in a line below it."""
    if message:
        tell(f"error: {_bounded(' '.join(message.split()))}{':' if details else ''}")
    for detail in details:
        tell(f"  {detail}")
