"""Runs the missing cells of a sweep, and writes each record the moment its cell ends."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench.console import say
from bench.execution.base import Executor, Job, Limits
from bench.execution.executors import EXECUTORS, make_executor
from bench.execution.failure import readable
from bench.execution.monitor import busy_warning
from bench.execution.signals import signals_deferred, stop_between_cells
from bench.store.environment import Environment, environment
from bench.store.pairs import PairRecord
from bench.store.records import Cell, DatasetIdentity, Invocation, Manifest, PlannedPair, Record, by_policy
from bench.sweep.folder import held, tidy
from bench.sweep.grid import Grid
from bench.sweep.options import Options
from bench.sweep.pairs import PairRecorder, pair_jobs
from bench.sweep.plan import Sweep, done_records
from bench.sweep.progress import make_reporter
from bench.sweep.recorder import Recorder
from bench.sweep.ways import choose_ways
from bench.sweep.weights import locate
from tl import plugins
from tl.errors import ConfigError, UserError, not_one_of
from tl.folds import evaluated_images, origin
from tl.survey import class_counts
from tl.tasks import TASKS

_PROBE_BYTES = 50
"""The most bytes that a training image takes in a record's probe: its class, and the one that is predicted."""
STOPPING = "stopping: the running cell or pair ends first, and no new one starts; Ctrl-C again ends it at once"


def execute(
    sweep: Sweep,
    grid: Grid,
    options: Options,
    executor: Executor,
    console: Console,
    *,
    first_order: int = 0,
    first_pair: int = 0,
) -> dict[str, Record]:
    """Run the missing cells, then the missing pairs; each record is on disk the moment its cell or pair ends.

    `first_order` and `first_pair` are the positions of the first ones among those of the whole command. Returns the
    records of this command's cells, old and new; those of pairs are on disk. After one Ctrl-C it raises
    `KeyboardInterrupt` when the running cells or pair have ended, after the second one at once. Records of what has
    ended are kept, and the same command continues from there.
    Raises `UserError` if a record can't be written.
    """
    to_do, pairs = sweep.missing, sweep.missing_pairs
    if not to_do and not pairs and not sweep.damaged and _knows_claims(sweep, grid):
        with contextlib.suppress(UserError, OSError):  # another command may be running other cells of this run
            tidy(sweep.run, options)
        return dict(sweep.done)
    paired = {cell.repeats for pair in pairs.values() for cell in pair.cells}
    needed = {cell_id: cell for cell_id, cell in sweep.cells.items() if cell_id in to_do or cell.repeats in paired}
    located = locate({cell_id: sweep.weights[cell_id] for cell_id in needed}, needed, options, executor)
    if needed:
        executor.prepare()
    with held(sweep.run, options, console):
        if (sweep.run.manifest() if sweep.run.exists() else None) != sweep.previous:
            raise UserError(f"{sweep.run.folder}: another command has changed this run meanwhile; try again")
        runs_here = executor.runs_here
        if needed and runs_here and (busy := busy_warning(sweep.counters)):
            say(console, f"WARNING: {busy}", style="yellow")
        machine = environment()
        _write_manifest(sweep, grid, options, machine, console, runs_here=runs_here)
        records = done_records(sweep.run, sweep.cells)[0]
        missing = {cell_id: cell for cell_id, cell in to_do.items() if cell_id not in records}
        timed = sweep.run.survey_pairs()[0] if pairs else {}
        pairs = {key: pair for key, pair in pairs.items() if key not in timed or not timed[key].settled}
        found = [(cell, located[cell_id]) for cell_id, cell in needed.items()]
        known = [(cell, weights) for cell, weights in found if not isinstance(weights, str)]
        limits = Limits(seconds=options.timeout, memory_bytes=options.memory_bytes)
        choose_ways(known, sweep.splits, executor, console, limits)
        with (
            sweep.run.reserved(_prediction_bytes(sweep)),
            make_reporter(
                console,
                list(missing.values()),
                len(pairs),
                before=list(records.values()),
                pairs_before=[timed[key] for key in sweep.pairs if key in timed and key not in pairs],
            ) as reporter,
            stop_between_cells(lambda: say(console, STOPPING, style="yellow")) as stop_requested,
        ):
            recorder = Recorder(sweep, options, reporter, records, located, machine, first_order)
            with signals_deferred():
                executor.run_jobs(_jobs(sweep, options, missing, recorder), recorder, stop_requested)
                if pairs and not stop_requested():
                    _time_pairs(sweep, pairs, timed, options, executor, recorder, first_pair, stop_requested)
    if stop_requested():
        raise KeyboardInterrupt
    return records


def _prediction_bytes(sweep: Sweep) -> int:
    """The most bytes that predictions take in a record: of the best and the last epoch, and of a probe."""
    splits, cell = sweep.splits, next(iter(sweep.cells.values()))  # all cells have one protocol
    each = TASKS[splits.task].prediction_bytes(len(splits.classes))
    return 2 * each * len(evaluated_images(cell.config, splits)) + _PROBE_BYTES * len(splits.train)


def _jobs(sweep: Sweep, options: Options, missing: dict[str, Cell], recorder: Recorder) -> Iterator[Job]:
    """Yield the jobs to run, without the cells that the recorder skips, and those that are left for later."""
    for cell_id, cell in missing.items():
        _make_folder(sweep.run.logs, sweep)
        answer = recorder.located[cell_id]
        if recorder.skip(cell) or isinstance(answer, str) or (options.admit and not options.admit(cell)):
            continue
        yield Job(
            cell=cell,
            splits=sweep.splits,
            weights=answer,
            log=sweep.run.log(cell_id),
            timeout_seconds=None if options.timeout is None else options.timeout * cell.config.trainings,
            memory_bytes=options.memory_bytes,
            inference=options.inference,
        )


def _time_pairs(
    sweep: Sweep,
    missing: Mapping[str, PlannedPair],
    earlier: Mapping[str, PairRecord],
    options: Options,
    executor: Executor,
    recorder: Recorder,
    first_pair: int,
    stop: Callable[[], bool],
) -> None:
    """Time the missing pairs. Cells that have ended say how much memory each of a pair needs.

    `earlier` has the records of pairs from before this command.
    """

    def ended(record: PairRecord) -> None:
        recorder.reporter.pair_ended(record)
        if options.on_record:
            options.on_record(sweep.run)

    _make_folder(sweep.run.logs, sweep)
    pairs = PairRecorder(
        run=sweep.run,
        splits=sweep.splits,
        on_start=recorder.reporter.pair_started,
        on_warning=recorder.reporter.warned,
        on_end=ended,
        order=first_pair,
        earlier=earlier,
    )
    weights = {sweep.cells[cell_id].repeats: answer for cell_id, answer in recorder.located.items()}
    jobs = pair_jobs(
        missing.values(),
        weights,
        list(recorder.records.values()),
        sweep.splits,
        pairs,
        recorder.machine,
        timeout=options.timeout,
        memory_bytes=options.memory_bytes,
    )
    executor.run_pairs(jobs, pairs, stop)


def _make_folder(folder: Path, sweep: Sweep) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{sweep.run.folder}: can't be written: {error.strerror or error}") from error


def _knows_claims(sweep: Sweep, grid: Grid) -> bool:
    """True if the run's manifest has this grid's claims. Otherwise it must be written even if no cell is missing."""
    claims = grid.model_dump(mode="json")["claims"]
    return sweep.previous is not None and sweep.previous.invocations[-1].grid.get("claims", []) == claims


def _write_manifest(
    sweep: Sweep, grid: Grid, options: Options, machine: Environment, console: Console, *, runs_here: bool
) -> None:
    """Write the manifest with earlier plans and what this command adds, and set damaged records aside."""
    splits, previous = sweep.splits, sweep.previous
    for path, reason in sweep.damaged.items():
        if path.exists():
            kept = sweep.run.set_aside(path)
            again = ", and its cell runs again" if path.stem in sweep.cells else ""
            again = ", and its pair is timed again" if path.stem in sweep.pairs else again
            say(console, f"WARNING: {reason}; kept as {kept}{again}", style="yellow")
    before = [record.environment for some in (sweep.done, sweep.done_pairs) for record in some.values()]
    changed = {name for other in before for name in machine.differences(other)}
    if changed and runs_here:
        text = f"note: {', '.join(sorted(changed))} changed since earlier cells ran: times are not comparable"
        say(console, text, style="yellow")
    planned = {**(previous.cells if previous else {}), **sweep.cells}
    pairs = {**(previous.pairs if previous else {}), **sweep.pairs}
    # A cell that failed because it had no weights has another id than the same cell with weights, which replaces it.
    replaced = {cell.replace(weights_digest="").id for cell in sweep.cells.values()}
    gone = replaced - sweep.cells.keys()
    # Cells of a pair have seed 0, whichever seeds this command has.
    lost = {cell.replace(weights_digest="").repeats for cell in sweep.cells.values()}
    lost -= {cell.repeats for cell in sweep.cells.values()}
    gone_pairs = {pair_id for pair_id, pair in pairs.items() if any(cell.repeats in lost for cell in pair.cells)}
    for work_id in gone | gone_pairs:
        planned.pop(work_id, None)
        pairs.pop(work_id, None)
        sweep.run.retire(work_id)
    evaluated = evaluated_images(next(iter(sweep.cells.values())).config, splits)
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
        protocol=grid.shared_settings,
        dataset=DatasetIdentity(
            name=splits.name,
            digest=splits.digest,
            classes=splits.classes,
            train_images=len(splits.train),
            val_files=evaluated.files,
            task=splits.task,
            val_labels=evaluated.labels,
            val_targets=evaluated.targets or None,
            val_objects=evaluated.objects or None,
            fallback=splits.fallback,
            left_out=splits.left_out,
            duplicates=(*splits.duplicates, *sweep.survey.near_duplicates),
            origin=origin(next(iter(sweep.cells.values())).config, splits),
            train_counts=class_counts(splits.train, splits.classes),
        ),
        weights=by_policy((previous.resolved if previous else {}) | sweep.resolved),
        cells=planned,
        pairs=pairs,
        invocations=(*(previous.invocations if previous else ()), invocation),
    )
    sweep.run.write_manifest(manifest)


def executor_for(options: Options) -> Executor:
    """The executor that the options ask for. Raises `ConfigError`."""
    if options.executor not in EXECUTORS:
        raise ConfigError(not_one_of("executor", options.executor, EXECUTORS))
    if options.address is not None and options.executor != "ray":
        raise ConfigError(f"--ray-address {options.address!r} needs --executor ray; executor is {options.executor!r}")
    if options.timeout is not None and not 0 < options.timeout < math.inf:
        raise ConfigError(f"--timeout {options.timeout:g} must be a number of seconds above 0")
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
        raise ConfigError("--memory-limit works on Linux only; leave it out")
    return executor
