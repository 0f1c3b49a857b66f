"""`python -m bench …`, or `tl-bench …`."""

from bench.program import end, guard


def main() -> None:
    """Run the command line. A library that is missing is an error like any other."""
    guard()
    end(_run)


def _run() -> int:
    from bench.cli.app import run_command_line  # importing any part of the command line adds all commands

    return run_command_line()


if __name__ == "__main__":
    main()
