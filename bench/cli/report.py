"""`bench report`: write the report of one run or of several."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.app import app
from bench.cli.arguments import (
    REPORTS,
    RESULTS,
    HiddenOut,
    ImagesOption,
    PluginOption,
    ReportsOption,
    ResultsOption,
    renamed,
)
from tl.errors import ConfigError


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN…]", autocompletion=completion.runs, help="Names of runs below --results, or folders."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The report's name.", show_default="the runs' names")] = None,
    results: ResultsOption = RESULTS,
    reports: ReportsOption = REPORTS,
    out: HiddenOut = None,
    images: ImagesOption = True,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write each figure as a PDF file too, for a paper.")] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH|NAME", help="The images, for the pictures.", show_default="as recorded"),
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Write index.html instead, a list of all runs (or of the named ones).")
    ] = False,
    collect: Annotated[
        bool,
        typer.Option("--collect", help="Write only the page of an unfinished run, without figures; this is quick."),
    ] = False,
    plugin: PluginOption = None,
) -> None:
    """Write NAME.md and one self-contained NAME.html. An incomplete run is reported as far as it got."""
    from bench.store.runs import all_runs, find_runs
    from bench.sweep.folder import check_name, check_output
    from tl.text import visible

    reports = renamed("--reports", reports, REPORTS, out)
    if index:
        for option, given in {"--collect": collect, "--name": name is not None, "--pdf": pdf}.items():
            if given:
                raise ConfigError(f"--index lists runs and takes no {option}")
        from bench.report.index import write_index

        print(visible(f"index: {write_index(find_runs(runs, results) if runs else all_runs(results), reports)}"))
        return
    if not runs:
        raise ConfigError(f"report needs a run: name one below {results}/, or a folder; --index lists all")
    found = find_runs(runs, results)
    if collect and (name is not None or len(found) > 1):
        raise ConfigError("--collect shows one run under its own name; leave out --name and other runs")
    if collect and pdf:
        raise ConfigError("--collect draws no figures; leave out --pdf")
    name = name or "-".join(run.folder.resolve().name for run in found)
    check_name("--name", name)
    check_output(reports)
    if collect:
        from bench.report.write import write_live

        print(visible(f"report: {write_live(found[0], reports, ended=True)}"))
        return
    # Imported only now, since matplotlib takes seconds to load and mistakes should be reported at once.
    from bench.report.pictures import LEFT_OUT, images_or_reason
    from bench.report.summary import summarise
    from bench.report.write import write_report

    summary = summarise(found, name)
    for path in write_report(summary, reports, images_or_reason(summary, data) if images else LEFT_OUT, pdf=pdf):
        print(visible(f"report: {path}"))
    if pdf:
        print(visible(f"figures: {reports / name} ({len([*(reports / name).glob('*.pdf')])} PDF)"))
