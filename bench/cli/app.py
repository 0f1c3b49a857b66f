"""The program around the commands: how it starts, and how every mistake ends in one line."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tl.cache import cache_dir
from tl.errors import UserError

app = typer.Typer(
    name="bench",
    help="Which pretrained backbone, fine-tuned or only its head, at what cost on this machine?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED, FAILED, USAGE = 130, 1, 2
"""Exit statuses; those of a gate are in `bench.compare.gate`."""

ClickError: Any = typer.BadParameter.__mro__[2]
"""What typer raises for a wrong option or argument; typer has no public name for it."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from bench.store.environment import package_version

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
    """Run the command line. A user's mistake ends in one line and exit status 2, and so does a mistake of ours.

    Python's own status for an exception is 1, which here means that a gate found a regression.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without × shows \\xd7
    gc.set_threshold(50_000, 20, 100)  # records are many objects and little of that is garbage: collect seldom
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))  # its list of fonts, else in the home folder
    called = "tl-bench" if Path(sys.argv[0]).stem == "tl-bench" else "python -m bench"
    try:
        status = app(prog_name=called, standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except ClickError as error:
        _fail(error.format_message() + _given(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}: this is a mistake in the suite; please report the lines above")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    if message:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USAGE)


def _given(error: Any) -> str:
    """The value of the option that an error is about: typer's own message leaves it out."""
    options = getattr(getattr(error, "param", None), "opts", [])
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in options:
            return f" (given: {value if equals else following!r})"
    return ""
