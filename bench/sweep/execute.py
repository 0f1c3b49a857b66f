"""Runs the missing cells of a sweep, and writes each record the moment its cell ends."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console

from bench.console import say
from bench.execution.base import Executor, Job
from bench.execution.executors import EXECUTORS, make_executor
from bench.execution.failure import readable
from bench.execution.monitor import busy_warning
from bench.execution.signals import signals_deferred, stop_between_cells
from bench.store.environment import Environment, environment
from bench.store.records import Cell, DatasetIdentity, Invocation, Manifest, Record, by_policy
from bench.sweep.folder import held, tidy
from bench.sweep.grid import Grid
from bench.sweep.options import Options
from bench.sweep.plan import Sweep, done_records
from bench.sweep.progress import make_reporter
from bench.sweep.recorder import Recorder
from bench.sweep.weights import locate
from tl import plugins
from tl.errors import ConfigError, UserError, not_one_of
from tl.folds import judged_images

STOPPING = "stopping: the running cell ends first, and no new one starts; Ctrl-C again ends it at once"


def execute(
    sweep: Sweep, grid: Grid, options: Options, executor: Executor, console: Console, *, first_order: int = 0
) -> dict[str, Record]:
    """Run the missing cells; each record is on disk the moment its cell ends. `first_order` is the first one's place.

    Returns the records of this command's cells, old and new. Ctrl-C once raises `KeyboardInterrupt` when what runs has
    ended, twice at once: what has ended is kept, and the same command goes on from there. Raises `UserError` when a
    record can't be written, with those before it kept.
    """
    left = sweep.missing
    if not left and not sweep.damaged and _knows_claims(sweep, grid):
        with contextlib.suppress(UserError, OSError):  # another command may be at work there, on other cells
            tidy(sweep.run, options)
        return dict(sweep.done)
    located = locate({cell_id: sweep.weights[cell_id] for cell_id in left}, left, options, executor)
    if left:
        executor.prepare()
    with held(sweep.run, options, console):
        if (sweep.run.manifest() if sweep.run.exists() else None) != sweep.previous:
            raise UserError(f"{sweep.run.folder}: another command has changed this run meanwhile; try again")
        here = executor.runs_here
        if left and here and (busy := busy_warning()):
            say(console, f"WARNING: {busy}", style="yellow")
        machine = environment()
        _begin(sweep, grid, options, machine, console, here=here)
        records = done_records(sweep.run, sweep.cells)[0]
        missing = {cell_id: cell for cell_id, cell in left.items() if cell_id not in records}
        passes = sum(cell.config.passes * cell.config.trainings for cell in missing.values())
        with (
            sweep.run.reserved(len(sweep.splits.train) + len(sweep.splits.val)),
            make_reporter(console, len(missing), passes) as reporter,
            stop_between_cells(lambda: say(console, STOPPING, style="yellow")) as asked,
        ):
            recorder = Recorder(sweep, options, reporter, records, located, machine, first_order)
            with signals_deferred():
                executor.run_jobs(_jobs(sweep, options, missing, recorder), recorder, asked)
    if asked():
        raise KeyboardInterrupt
    return records


def _jobs(sweep: Sweep, options: Options, missing: dict[str, Cell], recorder: Recorder) -> Iterator[Job]:
    """What is to be run, one after the other."""
    for cell_id, cell in missing.items():
        try:
            sweep.run.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{sweep.run.folder}: can't be written: {error.strerror or error}") from error
        answer = recorder.located[cell_id]
        if recorder.skip(cell) or isinstance(answer, str):
            continue
        yield Job(
            cell=cell,
            splits=sweep.splits,
            weights=answer,
            log=sweep.run.log(cell_id),
            timeout_seconds=None if options.timeout is None else options.timeout * cell.config.trainings,
            memory_bytes=options.memory_bytes,
        )


def _knows_claims(sweep: Sweep, grid: Grid) -> bool:
    """Whether the run's manifest has this grid's claims: else it is written though there is nothing to run."""
    asked = grid.model_dump(mode="json")["claims"]
    return sweep.previous is not None and sweep.previous.invocations[-1].grid.get("claims", []) == asked


def _begin(sweep: Sweep, grid: Grid, options: Options, machine: Environment, console: Console, *, here: bool) -> None:
    """Write the manifest: what was planned before, and what this command adds. `here`: cells run on this machine."""
    splits, previous = sweep.splits, sweep.previous
    for path, reason in sweep.damaged.items():
        if path.exists():
            kept = sweep.run.set_aside(path)
            again = ", and its cell runs again" if path.stem in sweep.cells else ""
            say(console, f"WARNING: {reason}; kept as {kept}{again}", style="yellow")
    changed = {name for record in sweep.done.values() for name in machine.differences(record.environment)}
    if changed and here:
        text = f"note: other {', '.join(sorted(changed))} than for the cells done before: their times don't compare"
        say(console, text, style="yellow")
    planned = {**(previous.cells if previous else {}), **sweep.cells}
    # A cell that failed for want of weights has an id of its own: with weights at hand it is planned anew.
    made_good = {cell.replace(weights_digest="").id for cell in sweep.cells.values()}
    for cell_id in made_good - sweep.cells.keys():
        planned.pop(cell_id, None)
        sweep.run.retire(cell_id)
    judged = judged_images(next(iter(sweep.cells.values())).config, splits)
    invocation = Invocation(
        command=options.command,
        data=options.data,
        started=datetime.now(UTC),
        environment=machine,
        grid=grid.model_dump(mode="json"),
        cell_ids=tuple(sweep.cells),
    )
    manifest = Manifest(
        name=sweep.run.folder.name,
        protocol=grid.protocol,
        dataset=DatasetIdentity(
            name=splits.name,
            digest=splits.digest,
            classes=splits.classes,
            train_images=len(splits.train),
            val_files=judged.files,
            val_labels=judged.labels,
            stand_in=splits.stand_in,
        ),
        weights=by_policy((previous.resolved if previous else {}) | sweep.settled),
        cells=planned,
        invocations=(*(previous.invocations if previous else ()), invocation),
    )
    sweep.run.write_manifest(manifest)


def executor_for(options: Options) -> Executor:
    """The executor that the options ask for. Raises `ConfigError`."""
    if options.executor not in EXECUTORS:
        raise ConfigError(not_one_of("executor", options.executor, EXECUTORS))
    if options.address is not None and options.executor != "ray":
        raise ConfigError(f"--ray-address {options.address!r}: is for --executor ray, and this is {options.executor!r}")
    if options.timeout is not None and not 0 < options.timeout < math.inf:
        raise ConfigError(f"--timeout {options.timeout:g}: must be a number of seconds above 0")
    if options.executor == "ray" and (scripts := plugins.scripts()):
        raise ConfigError(
            f"--plugin {scripts[0]}: nodes of a cluster don't have this file; install it there as a package with entry "
            "points"
        )
    executor = make_executor(options.executor, options.address)
    if not executor.has_limits:
        limits = {"--timeout": options.timeout, "--memory-limit": options.memory_bytes}
        for option, value in limits.items():
            if value is not None:
                shown = f"{value:g}" if isinstance(value, float) else readable(value)
                raise ConfigError(f"{option} {shown}: executor {options.executor!r} can't end a cell; leave it out")
    if options.memory_bytes is not None and sys.platform != "linux":
        raise ConfigError("--memory-limit: only Linux holds a process to one; leave it out")
    return executor
