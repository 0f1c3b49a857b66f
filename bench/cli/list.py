"""`bench list`: list the choices for a sweep."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import RESULTS, PluginOption, ResultsOption


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
    from rich.table import Table
    from rich.text import Text

    from bench.sweep.choices import LISTS, choices
    from tl.text import visible

    found = LISTS if what is None else choices(what, text, results)
    rows = [(visible(name), visible(meaning)) for name, meaning in found.items()]
    console = Console()
    if not console.is_terminal:  # a line each, which other programs can search
        longest = max(cell_len(name) for name, _ in rows)
        for name, meaning in rows:
            print(f"{name}{' ' * (longest - cell_len(name))}  {meaning}".rstrip())
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")  # a name can be copied whole
    table.add_column(overflow="fold")
    for name, meaning in rows:
        table.add_row(Text(name), Text(meaning))
    console.print(table)
