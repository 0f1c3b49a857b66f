"""`python -m bench …`, or `tl-bench …`."""

import os
import sys

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder of the packages `bench` and `tl`."""


def main() -> None:
    """Run the command line. A library that is missing is an error like any other."""
    try:
        from bench.program import end, guard

        if _taken():
            raise ImportError  # two packages of one name
    except BaseException as error:  # such as a `sys.exit(1)` in a module that has the name of one of ours
        sys.stderr.write(f"error: the suite can't be loaded: {_taken() or _raised(error)}\n")
        sys.exit(2)  # `bench.program` has the names of exit statuses
    guard()
    end(_run)


def _run() -> int:
    from bench.cli.app import run_command_line  # importing any part of the command line adds all commands

    return run_command_line()


def _ignore_working_folder() -> None:
    """Import nothing from the working folder, where `python -m` looks first, unless the suite itself is there.

    A `json.py` or `tl.py` of the user's would otherwise replace the module of that name.
    """
    try:
        here = os.getcwd()
    except OSError:  # it has been deleted
        here = ""
    if here != OURS and sys.path[0] in ("", here) and not sys.flags.safe_path:
        del sys.path[0]


def _taken() -> str:
    """Says that something else has the name of the suite's package `tl`; empty if nothing has."""
    file = getattr(sys.modules.get("tl"), "__file__", None) or ""
    if not file or os.path.realpath(os.path.dirname(os.path.dirname(file))) == os.path.realpath(OURS):
        return ""
    return f"{file} is imported as tl, which is a package of the suite; rename it, or take it off PYTHONPATH"


def _raised(error: BaseException) -> str:
    """The exception in one line, with the file that raised it."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    file = where.tb_frame.f_code.co_filename if where else "?"
    return f"{type(error).__name__}: {error} (raised in {file})"


if __name__ == "__main__":
    _ignore_working_folder()
    main()
