"""`bench claims`: print the verdict of runs on each claim."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import RESULTS, TEXT_OR_MD, PluginOption, ResultsOption, RunsArgument, text_or_markdown


@app.command()
def claims(
    runs: RunsArgument,
    format: Annotated[
        Literal["text", "md", "json"] | None, typer.Option(help="text, md or json.", show_default=TEXT_OR_MD)
    ] = None,
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """Print the verdict on each claim, and what was measured and predicted."""
    from bench.report.claims_text import print_claims
    from bench.report.summary import summarise
    from bench.store.runs import find_runs

    print_claims(summarise(find_runs(runs, results), "claims"), text_or_markdown(format))
