"""Runs a whole sweep: plan it, describe it, and run the missing cells."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from bench.execution.signals import ending_as_interrupt
from bench.store.records import Record
from bench.sweep.adaptive import Goal, run_until_decided
from bench.sweep.describe import describe, list_cells
from bench.sweep.execute import execute, executor_for
from bench.sweep.folder import held_from_the_start
from bench.sweep.grid import Grid
from bench.sweep.options import Options
from bench.sweep.plan import Sweep, plan


def run_sweep(
    grid: Grid,
    options: Options,
    console: Console,
    *,
    goal: Goal | None = None,
    on_plan: Callable[[Sweep], object] = lambda sweep: None,
) -> dict[str, Record]:
    """Run the cells of a grid that have neither a result nor diverged, then its process pairs. Each record is on disk
    as soon as its cell or pair ends.

    Args:
        grid: the cells to run, and how their speeds are compared.
        options: how to run them, and where to write.
        console: where the description of the sweep and its progress are printed.
        goal: add process pairs until it is reached; None times the grid's pairs.
        on_plan: called with the sweep before anything is written.

    Returns cell id → record of the grid's cells, old and new; for a dry run, only the old ones.

    Raises `UserError` for mistakes that the user can correct, and `KeyboardInterrupt` for Ctrl-C, SIGTERM or SIGHUP:
    finished cells are kept, and the same call continues from there.
    """
    with ending_as_interrupt(), held_from_the_start(options, console):
        executor = executor_for(options)
        sweep = plan(grid, options, executor, console)
        describe(sweep, console, inference=options.inference)
        on_plan(sweep)
        if options.dry_run:
            list_cells(sweep, console)
            return dict(sweep.done)
        if goal:
            return run_until_decided(sweep, grid, options, executor, console, goal)
        return execute(sweep, grid, options, executor, console)
