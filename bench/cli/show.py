"""`bench show`: print the answer on the terminal."""

from __future__ import annotations

from bench.cli.app import app
from bench.cli.arguments import RESULTS, PluginOption, ResultsOption, RunsArgument, TextOption, text_or_markdown


@app.command()
def show(
    runs: RunsArgument, format: TextOption = None, results: ResultsOption = RESULTS, plugin: PluginOption = None
) -> None:
    """Print the answer, the claims and the table."""
    from rich.console import Console

    from bench.report.summary import summarise
    from bench.report.terminal import print_summary, summary_markdown
    from bench.store.runs import find_runs

    summary = summarise(find_runs(runs, results), "show")
    if text_or_markdown(format) == "md":
        print(summary_markdown(summary), end="")
    else:
        print_summary(summary, Console())
