"""`bench run`: run a sweep and write its report; the exit status says how it ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer
import typer.core

from bench.cli import completion
from bench.cli.app import FAILED, app, without_output
from bench.cli.arguments import (
    REPORTS,
    RESULTS,
    SEVERAL,
    ExecutorOption,
    HiddenOut,
    ImagesOption,
    MemoryLimitOption,
    PluginOption,
    RayAddressOption,
    ReportsOption,
    ResultsOption,
    TaskOption,
    TimeoutOption,
    TrustOption,
    WaitOption,
    each,
    expanded,
    renamed,
)
from bench.console import LastingOutput, discard, say, tell
from bench.program import INTERRUPTED
from tl.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.report.without import Without
    from bench.sweep.plan import Sweep


UNTIL_DECIDED = (
    "Add process pairs until every speed-up has a verdict or is known to within --within. This assumes that pairs are "
    "independent: from five pairs on, a clear correlation of neighbouring pairs widens the intervals."
)

INFERENCE = (
    "After each training, measure the trained network's latency and throughput, and the size of its file. Cells that "
    "are done don't run again for it, so they have no such figures; --fresh starts over."
)


GROUPS = {
    "What to run": ("grid", "backbone", "regime", "device", "execution", "precision", "seeds"),
    "How to train": ("epochs", "batch_size", "set", "task", "protocol"),
    "Images and weights": ("data", "weights", "weights_dir", "plugin", "trust"),
    "Results and the report": ("name", "results", "reports", "out", "report", "live", "images"),
    "Comparing speeds in turns": ("pairs", "paired", "until_decided", "within", "max_pairs", "max_seeds", "budget"),
    "Running cells": (
        *("timeout", "memory_limit", "skip_larger_after_oom", "executor", "ray_address", "inference", "wait"),
        *("dry_run", "fresh"),
    ),
}
"""Heading in the help → the options below it."""


class _Grouped(typer.core.TyperCommand):
    """A command whose help has its options in groups."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        heading = {option: name for name, options in GROUPS.items() for option in options}
        for param in self.params:
            if isinstance(param, typer.core.TyperOption) and param.name in heading:
                param.rich_help_panel = heading[param.name]


@app.command(cls=_Grouped)
def run(
    grid: Annotated[
        str, typer.Option(autocompletion=completion.grids, help="A shipped grid's name, or the path of a TOML file.")
    ] = "default",
    backbone: Annotated[list[str] | None, typer.Option(help=f"Only this backbone {SEVERAL}.")] = None,
    regime: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.values("regime", "all"), help=f"Only this regime, or all for every one {SEVERAL}."
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help=f"cpu, cuda[:i], mps, auto (the best) or all {SEVERAL}.")
    ] = None,
    execution: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.values("execution"), help=f"fast, or plain: the tutorial's own loop {SEVERAL}."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.values("precision"),
            help=f"fp32, tf32, bf16, fp16, or auto, the fastest here {SEVERAL}.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; they are 0, 1, 2, …")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per training step.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another setting of training, such as fold=true (repeatable)."),
    ] = None,
    task: TaskOption = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.values("protocol"), help="fixed, tuned or kfold, in place of the grid's."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH|NAME", help="A folder of images by class, a table of them, or a data set's name."),
    ] = None,
    weights: Annotated[str, typer.Option(help="auto, pretrained or random.")] = "auto",
    weights_dir: Annotated[
        Path | None, typer.Option(callback=expanded, help="A folder of weight files to search first.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's folder below --results.", show_default="from the grid's name")
    ] = None,
    results: ResultsOption = RESULTS,
    reports: ReportsOption = REPORTS,
    out: HiddenOut = None,
    pairs: Annotated[
        int | None,
        typer.Option(help="Process pairs per comparison of speeds, 3 or more.", show_default="the grid's"),
    ] = None,
    paired: Annotated[
        bool, typer.Option(" /--no-paired", help="Compare no speeds in turns.", show_default=False)
    ] = True,
    until_decided: Annotated[bool, typer.Option("--until-decided", help=UNTIL_DECIDED)] = False,
    within: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Half-width that the 95% intervals must reach.", show_default="5"),
    ] = None,
    max_pairs: Annotated[
        int | None,
        typer.Option(help="Maximum number of pairs for --until-decided.", show_default="20 without --budget"),
    ] = None,
    max_seeds: Annotated[int | None, typer.Option(hidden=True)] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time for --until-decided, such as 90s, 10m or 2h; no pair is added that would overrun it.",
        ),
    ] = None,
    timeout: TimeoutOption = None,
    memory_limit: MemoryLimitOption = None,
    skip_larger_after_oom: Annotated[
        bool,
        typer.Option("--skip-larger-after-oom", help="If a cell runs out of memory, skip it with larger batches."),
    ] = False,
    executor: ExecutorOption = "process",
    ray_address: RayAddressOption = None,
    inference: Annotated[bool, typer.Option("--inference", help=INFERENCE)] = False,
    wait: WaitOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder; nothing is deleted.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    live: Annotated[
        bool, typer.Option("--live", help="Update the report's page whenever a cell ends; the page reloads itself.")
    ] = False,
    images: ImagesOption = True,
    plugin: PluginOption = None,
    trust: TrustOption = None,
) -> None:
    """Run the cells of a grid that have no result yet, time its process pairs, and write the report.

    Cells and pairs that failed before are tried again, and so are pairs of which one process failed. Cells that
    diverged are not tried again, since they would diverge again: change a setting, or start over with --fresh.

    Exit status: 0 all done, 1 a cell, a pair or one process of a pair failed or diverged, 2 usage error, 130
    interrupted. If standard output is lost, the sweep goes on. It then ends with 141 for a closed pipe and with 2 for
    any other loss, unless the status is 1 or 130.
    """
    from bench.execution.executors import start_early

    if not dry_run:
        start_early(executor)
    from rich.console import Console

    from bench.execution.signals import ending_as_interrupt
    from bench.report.live import LivePage
    from bench.report.written import check_report
    from bench.sweep.adaptive import make_goal, refuse_max_seeds
    from bench.sweep.folder import check_output
    from bench.sweep.options import make_options
    from bench.sweep.plan import choose_grid, run_name
    from bench.sweep.run import run_sweep
    from bench.sweep.settings import settings_of

    # A dry run only prints: without a reader it ends as every such command does.
    output = None if dry_run else LastingOutput(sys.stdout, lambda: discard(sys.stdout))
    console = Console(file=cast("IO[str] | None", output))
    if live and not report:
        raise ConfigError("--live needs a report; leave out --no-report")
    settings = settings_of(set or (), {"epochs": epochs, "batch_size": batch_size, "protocol": protocol, "task": task})
    chosen = choose_grid(
        grid,
        {
            "backbones": each(backbone),
            "regimes": each(regime),
            "devices": each(device),
            "execution": each(execution),
            "precision": each(precision),
            "seeds": seeds,
        },
        settings,
        pairs=pairs,
        paired=paired,
    )
    page = LivePage(reports, tell)
    options = make_options(
        data=data,
        weights=weights,
        weights_dir=weights_dir,
        name=run_name(chosen, data, weights, settings) if name is None else name,
        results=renamed("--results", results, RESULTS, out),
        timeout=timeout,
        memory_limit=memory_limit,
        skip_larger_after_oom=skip_larger_after_oom,
        executor=executor,
        address=ray_address,
        wait=wait,
        inference=inference,
        dry_run=dry_run,
        fresh=fresh,
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        on_record=page.write if live else None,
    )
    refuse_max_seeds("--max-seeds", max_seeds)
    goal = make_goal(chosen, until_decided=until_decided, within=within, max_pairs=max_pairs, budget=budget)
    if report:
        check_output(reports)
    sweeps: list[Sweep] = []

    def planned(sweep: Sweep) -> None:
        if report:  # before hours of training
            check_report(reports, sweep.run.folder.name, sweep.run.folder)
        sweeps.append(sweep)

    with ending_as_interrupt():  # until the live page has ended too
        try:
            records = run_sweep(chosen, options, console, goal=goal, on_plan=planned)
        except BaseException as error:
            for sweep in sweeps:
                page.end(sweep.run)
            if not isinstance(error, KeyboardInterrupt) or not sweeps:
                raise
            _say_interrupted(sweeps[0], console, fresh=fresh, later=goal is not None)
            raise typer.Exit(INTERRUPTED) from None
    if dry_run:
        return
    say(console, _counted(sweeps[0], later=goal is not None))
    failed = _say_without_result(records, console)
    failed = _say_untimed(sweeps[0], console, later=goal is not None) or failed
    if report:
        _report(sweeps[0], reports, page, console, images=images)
    if failed:
        raise typer.Exit(FAILED)
    if output and output.lost:
        raise typer.Exit(without_output(output.lost))


def _say_interrupted(sweep: Sweep, console: Console, *, fresh: bool, later: bool) -> None:
    """Print how many cells and pairs are done, and how to continue."""
    again = f"`--name {sweep.run.folder.name}` without --fresh continues" if fresh else "the same command continues"
    say(console, f"interrupted: {_counted(sweep, later=later)}; {again} from there")


def _counted(sweep: Sweep, *, later: bool) -> str:
    """How many cells and pairs of a command are done, by what is on disk."""
    from bench.analysis.tally import tally_of

    exists = sweep.run.exists()
    cells = tally_of(sweep.cells, sweep.run.survey()[0] if exists else {})
    pairs = tally_of(_pairs(sweep, later=later), sweep.run.survey_pairs()[0] if exists else {}, noun="process pair")
    return "; ".join(str(count) for count in (cells, pairs) if count.planned)


def _pairs(sweep: Sweep, *, later: bool) -> list[str]:
    """Ids of the process pairs of a command; with `later`, those that were added to the grid's are among them."""
    if not later or not sweep.run.exists():
        return list(sweep.pairs)
    keys = {(pair.pairing, pair.seconds) for pair in sweep.pairs.values()}
    return [key for key, pair in sweep.run.manifest().pairs.items() if (pair.pairing, pair.seconds) in keys]


def _say_without_result(records: Any, console: Console) -> bool:
    """Print a line for all cells that ended alike without a result; true if any of them failed or diverged."""
    from bench.report.without import lost

    return _say_lost(lost(records.values()), console)


def _say_untimed(sweep: Sweep, console: Console, *, later: bool) -> bool:
    """Print a line for all process pairs that lost a side alike; true if any of them failed. See `_pairs`."""
    from bench.report.without import lost

    found, wanted = sweep.run.pairs() if sweep.pairs else {}, {*_pairs(sweep, later=later)}
    timed = [one for key, one in found.items() if key in wanted]
    failed = [record for record in timed if any(status != "skipped" for status, _ in record.lost)]
    if failed:
        say(console, f"{len(failed)} of {len(timed)} process pairs have no result, or none of one cell:")
    return _say_lost(lost(timed), console)


def _say_lost(found: Sequence[Without], console: Console) -> bool:
    """Print a line each; true if one should have had a result."""
    for one in found:
        say(console, f"  {one}", style="red" if one.bad else "yellow")
    return any(one.bad for one in found)


def _report(sweep: Sweep, reports: Path, page: Any, console: Console, *, images: bool) -> None:
    """Write the report and print the answers."""
    from bench.report.answers import answers
    from bench.report.pictures import LEFT_OUT
    from bench.report.summary import summarise
    from bench.report.write import write_report

    try:
        summary = summarise([sweep.run], sweep.run.folder.name)
        paths = write_report(summary, reports, sweep.splits if images else LEFT_OUT)
    except BaseException:
        page.end(sweep.run)
        raise
    for answer in answers(summary):
        say(console, answer, style="bold")
    for path in paths:
        say(console, f"report: {path}")
