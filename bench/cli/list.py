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
    text: Annotated[str | None, typer.Argument(help="Only names that contain this text.")] = None,
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """List what to choose from. `list backbones TEXT` also says how large they are, and whether weights are here."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bench.sweep.choices import LISTS, choices
    from tl.text import visible

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")  # a name can be copied whole
    table.add_column()
    for name, meaning in (LISTS if what is None else choices(what, text, results)).items():
        table.add_row(Text(visible(name)), Text(visible(meaning)))
    Console().print(table)
