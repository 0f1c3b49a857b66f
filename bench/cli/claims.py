"""`bench claims`: print the verdict of runs on each claim."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import RESULTS, PluginOption, ResultsOption, RunsArgument


@app.command()
def claims(
    runs: RunsArgument,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """Print each claim with its measured and predicted value and its verdict."""
    from bench.report.claims_text import print_claims
    from bench.report.summary import summarise
    from bench.store.runs import find_runs

    print_claims(summarise(find_runs(runs, results), "claims"), format)
