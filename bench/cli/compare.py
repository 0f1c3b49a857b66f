"""`bench compare`: show what changed between runs, or between the values of one axis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

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
)
from tl.errors import ConfigError


@app.command()
def compare(
    sides: SidesArgument,
    by: Annotated[
        Literal["run", "regime", "device", "backbone", "precision", "execution", "seed"],
        typer.Option(help="What to compare; values other than run need only one run."),
    ] = "run",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="The value to compare with, for --by regime and so on.", show_default="the first"
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
    from bench.compare.render import show

    first, *others = (side.name for side in found)
    title = f"{', '.join(others)} against {first}"
    put(output, format, lambda suffix: show(comparison, suffix, title=title))


def put(output: Path | None, format: str | None, make: Callable[[Literal["md", "html", "json"]], str]) -> None:
    """Write text in the wanted format to a file or to standard output. Raises `ConfigError` for an unknown format."""
    from tl.cache import write_output
    from tl.text import visible_json

    ending = output.suffix[1:] if output else "md"
    suffix = format or ending
    if suffix not in ("md", "html", "json"):
        raise ConfigError(f"--output {output} must end in .md, .html or .json; or give --format")
    text = make(suffix)  # type: ignore[arg-type]  # checked above
    text = visible_json(text) if suffix == "json" else text
    if output is None:
        print(text, end="")
    else:
        write_output(output, text)
