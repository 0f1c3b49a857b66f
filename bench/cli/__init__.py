"""The command line: `python -m bench COMMAND`, or `tl-bench COMMAND`. Each command is a file in this package.

A command parses its options, calls the suite and prints. It imports the suite only when it runs, so that `--help`
answers at once.
"""

from bench.cli.app import app, main

# Importing a command adds it to the app; `--help` lists them in this order.
from bench.cli import (  # isort: skip
    pick,
    run,
    data,
    train,
    predict,
    time,
    report,
    show,
    claims,
    compare,
    gate,
    export,
    list,  # noqa: A004
    new_grid,
    doctor,
)

__all__ = [
    "app",
    "claims",
    "compare",
    "data",
    "doctor",
    "export",
    "gate",
    "list",
    "main",
    "new_grid",
    "pick",
    "predict",
    "report",
    "run",
    "show",
    "time",
    "train",
]
