"""The program around the commands: it starts them. `bench.program` turns every error into an exit status."""

from __future__ import annotations

import atexit
import contextlib
import gc
import inspect
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from bench.console import name_output, tell, without_impossible_sizes
from bench.program import INTERRUPTED, READER_GONE, USAGE, end
from tl.cache import cache_dir, check_cache
from tl.errors import UserError
from tl.sealed import cache_warnings_to


class _EndOfFile(Exception):
    """Carries an `EOFError` past typer, which takes it for the end of an answer's input. We ask nothing."""


@contextlib.contextmanager
def _not_left_to_typer() -> Iterator[None]:
    """Handle what typer would make a mere exit status of: say that Ctrl-C was pressed where a command doesn't."""
    try:
        yield
    except KeyboardInterrupt:
        tell("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except EOFError as error:
        raise _EndOfFile from error


class _Commands(typer.core.TyperGroup):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        for command in self.commands.values():
            paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
            # The terminal wraps them: line breaks of the source, which typer would keep, make lines of many lengths.
            command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)

    def make_context(self, *given: Any, **named: Any) -> Any:
        with _not_left_to_typer():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        with _not_left_to_typer():
            return super().invoke(ctx)


app = typer.Typer(
    name="bench",
    cls=_Commands,
    help="Which pretrained backbone should you use, fine-tuned or head-only, and what does it cost on this machine?",
    # A shell completes a program's name, so `python -m bench` has no completion to install.
    add_completion=Path((sys.argv or [""])[0]).stem == "tl-bench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
FAILED = 1
"""Exit status of a sweep with cells that failed. `bench.program` has those of errors, `bench.compare.gate` a gate's."""

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
    """Run the command line, and end the process with its exit status; see `bench.program`."""
    end(run_command_line)


@without_impossible_sizes()
def run_command_line() -> int:
    """Run the command that the process was called with. Returns its exit status; raises if it can't do its work."""
    _replace_closed_streams()
    name_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can't encode × shows \\xd7
    gc.set_threshold(50_000, 20, 100)  # records are many objects with little garbage: collect rarely
    if "MPLCONFIGDIR" not in os.environ:
        with contextlib.suppress(OSError):  # without any folder that can be written, matplotlib has to say so
            os.environ["MPLCONFIGDIR"] = str(_folder_for_fonts())
    called = "tl-bench" if Path(sys.argv[0]).stem == "tl-bench" else "python -m bench"
    _refuse_empty(sys.argv[1:])
    try:
        with cache_warnings_to(lambda text: tell(f"WARNING: {text}")):
            status = app(prog_name=called, standalone_mode=False)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None  # typer makes exit status 1 of it, which would mean "regressed"
        raise
    except _EndOfFile as kept:
        raise kept.__cause__ or kept from None
    except ClickError as error:
        raise UserError(error.format_message().replace("Value error, ", "") + _given(error)) from error
    return status if isinstance(status, int) else 0


def without_output(lost: OSError) -> int:
    """The exit status of a command that did its work, but whose output was lost."""
    return READER_GONE if isinstance(lost, BrokenPipeError) else USAGE


def _folder_for_fonts() -> Path:
    """Return a folder for matplotlib's list of fonts, which it would otherwise write into the home folder.

    It is in the cache. Where that can't be used, a temporary folder keeps matplotlib from printing lines about it; a
    command that needs the cache says so itself.
    """
    with contextlib.suppress(UserError):
        if not check_cache():
            return cache_dir() / "matplotlib"
    folder = tempfile.mkdtemp(prefix="tl-bench-fonts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


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


def _given(error: Any) -> str:
    """The given value of the option that an error is about; typer's own message leaves it out."""
    options = getattr(getattr(error, "param", None), "opts", [])
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in options:
            return f" (given: {value if equals else following!r})"
    return ""
