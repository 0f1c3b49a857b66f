"""`bench list`: list the choices for a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import RESULTS, PluginOption, ResultsOption

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2
"""Columns of the terminal after each column of a list."""
_LEAST_MEANING = 30
"""Columns of the terminal that a meaning needs to stand beside its name."""


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["grids", "backbones", "regimes", "tasks", "executions", "precisions", "datasets", "devices", "runs"]
        | None,
        typer.Argument(help="What to list.", show_default="the names of the lists"),
    ] = None,
    text: Annotated[str | None, typer.Argument(help="Only names that contain this text, in any case.")] = None,
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """List what to choose from. `list backbones TEXT` also says how large they are, and whether weights are here."""
    from rich.cells import cell_len
    from rich.console import Console

    from bench.sweep.choices import LISTS, choices
    from tl.text import visible

    found = LISTS if what is None else choices(what, text, results)
    rows = [(visible(name), visible(meaning)) for name, meaning in found.items()]
    console = Console()
    if console.is_terminal:
        print_list(rows, console)
        return
    longest = max(cell_len(name) for name, _ in rows)
    for name, meaning in rows:  # a line each, which other programs can search
        print(f"{name}{' ' * (longest - cell_len(name))}  {meaning}".rstrip())


def print_list(rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Print names and what they mean: beside each other, or below each other where the longest name leaves no room.

    No name is broken, so that it can be copied, unless it is longer than the terminal is wide.
    """
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    longest = max(cell_len(name) for name, _ in rows)
    room = console.width - longest - 2 * _GAP
    if room < _LEAST_MEANING:
        for name, meaning in rows:
            console.print(Text(name))
            if meaning:
                console.print(Padding(Text(meaning), (0, 0, 0, 2 * _GAP)))
        return
    table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0))
    table.add_column(width=longest)
    table.add_column(width=min(room, max(1, *(cell_len(meaning) for _, meaning in rows))), overflow="fold")
    for name, meaning in rows:
        table.add_row(Text(name), Text(meaning))
    console.print(table)
