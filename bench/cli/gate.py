"""`bench gate`: fail on a regression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    expanded,
)
from bench.cli.compare import put
from tl.errors import ConfigError


@app.command()
def gate(
    sides: SidesArgument,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="A rule for what counts as worse, such as 'epoch_seconds: factor=1.1, cells=*frozen*' (repeatable); "
            "the rules of --config hold too.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=expanded,
            help=r"A TOML file with rules, each a table [\[tool.bench.gate.rule]] as in docs/compare.md.",
            show_default="pyproject.toml",
        ),
    ] = None,
    metric: MetricOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """Fail on a regression. Exit status: 0 passed, 1 regressed, 2 error, 3 incomplete, 4 not comparable."""
    from bench.compare.changes import compare as compare_sides
    from bench.compare.gate import GATE_LEVEL, decide, read_rules
    from bench.compare.sides import inputs_of, read_sides
    from bench.store.runs import check_target

    if len(sides) != 2:
        raise ConfigError(f"{' '.join(sides)}: a gate has two sides, BASE and NEW, not {len(sides)}")
    found = read_sides(sides, results=results)
    check_target(output, [*inputs_of(sides, results=results), config or Path("pyproject.toml"), *(plugin or ())])
    repeats = {cell.repeats for side in found for cell in side.cells.values()}
    rules = read_rules(config, rule or [], repeats=repeats, metrics=metric or ())
    comparison = compare_sides(found, metrics=metric or (), rules=rules, level=GATE_LEVEL)
    decision = decide(comparison)
    from bench.compare.notes import notes, warnings
    from tl.text import visible

    title = f"{found[1].name} against {found[0].name}"
    outcome: Any = {"headline": decision.headline, "findings": decision.reasons, "status": decision.status}
    put(comparison, output, format, title=title, **outcome)
    if output:
        print(visible(decision.headline))
        for line in (*decision.reasons, *warnings(comparison), *notes(comparison)):
            print(visible(f"  {line}"))
    raise typer.Exit(decision.status)
