"""The program around the commands. It starts them, and turns every error into one line and an exit status."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench.console import discard, tell
from tl.cache import cache_dir
from tl.errors import UserError

app = typer.Typer(
    name="bench",
    help="Which pretrained backbone should you use, fine-tuned or head-only, and what does it cost on this machine?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED, FAILED, USAGE = 130, 1, 2
"""Exit statuses. `bench.compare.gate` has those of a gate."""
READER_GONE = 141
"""Exit status if nobody reads the output any more: that of a program which SIGPIPE ends (128 + 13)."""

ClickError: Any = typer.BadParameter.__mro__[2]
"""The exception that typer raises for a wrong option or argument. Typer has no public name for it."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from tl.sources import package_version

        print(f"tl-bench {package_version('tl-bench')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Mistakes of the user and bugs of the suite end in one line and exit status 2.

    Python's own exit status for an exception is 1, which here means that a gate found a regression.
    """
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can't encode × shows \\xd7
    gc.set_threshold(50_000, 20, 100)  # records are many objects with little garbage: collect rarely
    # Matplotlib would otherwise write its list of fonts into the home folder.
    with contextlib.suppress(UserError):  # a command that needs the cache says so itself
        os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))
    called = "tl-bench" if Path(sys.argv[0]).stem == "tl-bench" else "python -m bench"
    try:
        _refuse_empty(sys.argv[1:])
        status = app(prog_name=called, standalone_mode=False)
        sys.stdout.flush()  # a full disk or a closed pipe must not be noticed only when Python ends
    except BrokenPipeError:
        _end(READER_GONE)  # without a word, as a reader such as `head` that has seen enough expects
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            _end(READER_GONE)  # typer makes exit status 1 of it, which would mean "regressed"
        raise
    except typer.Abort:  # Ctrl-C where a command doesn't say more about it
        tell("interrupted")
        _end(INTERRUPTED)
    except UserError as error:
        _fail(str(error))
    except ClickError as error:
        _fail(error.format_message() + _given(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}: this is a bug in the suite; please report the lines above")
    sys.exit(status if isinstance(status, int) else 0)


def without_output(lost: OSError) -> int:
    """The exit status of a command that did its work, but whose output was lost."""
    return READER_GONE if isinstance(lost, BrokenPipeError) else USAGE


def _end(status: int) -> NoReturn:
    """End. Python would otherwise write what is left, fail again, and choose the exit status itself."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard(sys.stdout)
    sys.exit(status)


def _replace_closed_streams() -> None:
    """Open the standard streams that the caller has closed, as `>&-` does.

    Otherwise one of our files would get the number of such a stream, and a cell's output would go into it. Standard
    output is opened for reading only: a command that has something to print fails, as it does on a full disk.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY), True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _refuse_empty(words: list[str]) -> None:
    """Raise `UserError` for an empty value: it would mean the current folder, or that nothing was given."""
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if (equals and not value and name.startswith("-")) or not word:
            named = name or (before if before.startswith("-") else "an argument")
            raise UserError(f"{named} is empty; give it a value, or leave it out")


def _fail(message: str) -> NoReturn:
    if message:
        tell(f"error: {' '.join(message.split())}")
    _end(USAGE)


def _given(error: Any) -> str:
    """The given value of the option that an error is about; typer's own message leaves it out."""
    options = getattr(getattr(error, "param", None), "opts", [])
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in options:
            return f" (given: {value if equals else following!r})"
    return ""
