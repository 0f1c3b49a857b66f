"""`bench compare`: show what changed between runs, or between the values of one axis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import (
    RESULTS,
    FormatOption,
    MetricOption,
    OutputOption,
    PluginOption,
    ResultsOption,
    SidesArgument,
    text_or_markdown,
)
from tl.errors import ConfigError

if TYPE_CHECKING:
    from bench.compare.changes import Comparison


@app.command()
def compare(
    sides: SidesArgument,
    by: Annotated[
        Literal["run", "regime", "device", "backbone", "precision", "execution", "seed"],
        typer.Option(help="What to compare: runs, or the regimes, devices and so on of one run."),
    ] = "run",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE",
            help="What the others are compared with, such as a regime for --by regime.",
            show_default="the first",
        ),
    ] = None,
    metric: MetricOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """Compare runs, or the regimes, devices, … of one run: worse, better, the same or undecided."""
    from bench.compare.changes import compare as compare_sides
    from bench.compare.sides import inputs_of, read_sides
    from bench.store.runs import check_target

    found = read_sides(sides, by=by, base=base, results=results)
    check_target(output, [*inputs_of(sides, by=by, results=results), *(plugin or ())])
    comparison = compare_sides(found, metrics=metric or ())
    first, *others = (side.name for side in found)
    put(comparison, output, format, title=f"{', '.join(others)} against {first}")


def put(
    comparison: Comparison,
    output: Path | None,
    format: str | None,
    *,
    title: str,
    status: int | None = None,
    **more: Any,
) -> None:
    """Write a comparison in the wanted format to a file or to standard output. Raises `ConfigError` for another format.

    `more` is what comes first: `headline` and `findings`. `status` is a gate's exit status.
    """
    from bench.compare.render import show
    from tl.cache import write_output
    from tl.text import visible_json

    suffix = output.suffix[1:] if output and not format else text_or_markdown(format)
    if output is not None and suffix not in ("md", "html", "json"):
        if format:
            raise ConfigError(f"--format {format} is for the terminal: --output {output} needs md, html or json")
        raise ConfigError(f"--output {output} must end in .md, .html or .json; or give --format")
    if suffix == "text":
        from rich.console import Console

        from bench.compare.terminal import print_comparison

        print_comparison(comparison, Console(), title=title, **more)
        return
    text = show(comparison, suffix, title=title, status=status, **more)  # type: ignore[arg-type]  # checked above
    text = visible_json(text) if suffix == "json" else text
    if output is None:
        print(text, end="")
    else:
        write_output(output, text)
