"""`bench export`: write results for other programs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import (
    REPORTS,
    RESULTS,
    SEVERAL,
    OutputOption,
    PluginOption,
    ReportsOption,
    ResultsOption,
    RunsArgument,
    each,
)
from tl.errors import ConfigError

_BY_ENDING = {".parquet": "parquet", ".json": "json", ".tex": "latex"}
"""Ending of a file → the format that it is written in unless another one is asked for."""


@app.command()
def export(
    runs: RunsArgument,
    format: Annotated[
        Literal["csv", "parquet", "json", "latex"] | None,
        typer.Option(
            help="csv, parquet, json, or latex (the report's table).", show_default="by --output's ending, else csv"
        ),
    ] = None,
    output: OutputOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="One row per epoch, and per turn of paired timing, with raw figures.")
    ] = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Only these columns {SEVERAL}; for latex, name them by its headings.",
            show_default="all; for latex what fits a page",
        ),
    ] = None,
    to: Annotated[
        Literal["tensorboard", "mlflow"] | None,
        typer.Option(help="Write all cells as files of an experiment tracker instead, to --output or below --reports."),
    ] = None,
    results: ResultsOption = RESULTS,
    reports: ReportsOption = REPORTS,
    plugin: PluginOption = None,
) -> None:
    """Print one row per cell; results/README.md describes the columns."""
    from bench.store.runs import check_target, find_runs

    found = find_runs(runs, results)
    check_target(output, [*(run.folder for run in found), *(plugin or ())])
    if to:
        from bench.export.trackers import export_to
        from tl.text import visible

        if format or raw or columns:
            option = "format" if format else "raw" if raw else "columns"
            raise ConfigError(f"--to {to} has a format of its own; leave out --{option}")
        print(visible(export_to(to, found, output, reports)))
        return
    from bench.export.formats import export_runs

    export_runs(
        found,
        format or _BY_ENDING.get(output.suffix.lower() if output else "", "csv"),
        output,
        raw=raw,
        columns=each(columns) or (),
    )
