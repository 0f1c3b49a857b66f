"""`bench show`: print the answer on the terminal."""

from __future__ import annotations

from bench.cli.app import app
from bench.cli.arguments import RESULTS, PluginOption, ResultsOption, RunsArgument


@app.command()
def show(runs: RunsArgument, results: ResultsOption = RESULTS, plugin: PluginOption = None) -> None:
    """Print the answer, the claims and the table."""
    from rich.console import Console

    from bench.report.summary import summarise
    from bench.report.terminal import print_summary
    from bench.store.runs import find_runs

    print_summary(summarise(find_runs(runs, results), "show"), Console())
