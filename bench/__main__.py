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
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(130)  # `bench.program` has the names of exit statuses
    except BaseException as error:  # such as a `sys.exit(1)` in a module that has the name of one of ours
        _tell(f"error: the suite can't be loaded: {_taken() or _raised(error)}")
        sys.exit(2)
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
    if here == OURS:
        return
    if sys.path[0] in ("", here) and not sys.flags.safe_path:
        del sys.path[0]
    # An empty entry of PYTHONPATH means the working folder too, as `PYTHONPATH=$PYTHONPATH:folder` often has it.
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if "" in named and here not in named:
        sys.path[:] = [place for place in sys.path if place not in ("", here)]


def _tell(line: str) -> None:
    """Print a line on standard error, which may be closed or full: that must not decide the exit status."""
    if sys.stderr is None:
        return
    try:  # noqa: SIM105 (nothing is imported yet)
        os.write(2, f"{' '.join(line.split())}\n".encode(errors="backslashreplace"))  # leaves nothing to be flushed
    except OSError:
        pass


def _taken() -> str:
    """Says that something else has the name of the suite's package `tl`; empty if nothing has."""
    file = getattr(sys.modules.get("tl"), "__file__", None) or ""
    if not file or os.path.realpath(os.path.dirname(os.path.dirname(file))) == os.path.realpath(OURS):
        return ""
    return f"{file} is imported as tl, which is a package of the suite; rename it, or take it off PYTHONPATH"


def _raised(error: BaseException) -> str:
    """The exception in one line, with the file that raised it, or that is damaged."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    frame = where.tb_frame if where else None
    file = frame and (frame.f_locals.get("bytecode_path") or frame.f_code.co_filename)
    return f"{type(error).__name__}: {error} (raised in {file})"


if __name__ == "__main__":
    _ignore_working_folder()
    main()
