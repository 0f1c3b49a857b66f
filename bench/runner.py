"""A sweep: plan what is missing, run it cell by cell, write each record the moment the cell ends."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import filelock
from rich.console import Console

from bench import catalog
from bench.environment import Environment, environment
from bench.executors import EXECUTORS, Executor, Outcome, make_executor
from bench.grid import Grid, expand
from bench.options import Options
from bench.order import arrange
from bench.progress import make_reporter
from bench.records import Cell, DatasetIdentity, Invocation, Manifest, Record, Run
from bench.settle import KEPT, Answer, locate, settle, settle_key
from bench.terminal import say
from bench.watch import MachineState, Watch, look
from tl.datasets import Splits, load_splits
from tl.errors import ConfigError, StandInWarning, UserError, not_one_of
from tl.folds import check_protocol, images_an_epoch, judged_images
from tl.images import open_store
from tl.machine import usable_cores
from tl.results import EpochResult
from tl.specs import canonical
from tl.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a command amounts to: the cells, and which of them are done."""

    run: Run
    splits: Splits
    cells: dict[str, Cell]
    weights: dict[str, Answer]
    """By cell."""
    settled: dict[str, Weights]
    """By policy and backbone, for the manifest."""
    done: dict[str, Record]
    previous: Manifest | None

    @property
    def missing(self) -> dict[str, Cell]:
        """Cells without a finished record, in the order in which they are to run."""
        left = {cell_id: cell for cell_id, cell in self.cells.items() if cell_id not in self.done}
        return arrange(left, self.run.folder.name, seeds={cell.config.seed for cell in self.cells.values()})


def run_name(grid: Grid, data: str | None, weights: str, epochs: int | None, batch_size: int | None) -> str:
    """The folder's name where none is given: the grid's, with what the command line changes about the protocol.

    Any protocol but `fixed` is named in any case.
    """
    parts = [grid.name]
    parts += [grid.protocol["protocol"]] if grid.protocol["protocol"] != "fixed" else []
    if data and data not in ("auto", grid.dataset, "hymenoptera"):
        parts.append(Path(data).resolve().name or "data")
    parts += [f"epochs{epochs}"] if epochs is not None else []
    parts += [f"batch{batch_size}"] if batch_size is not None else []
    parts += [weights] if weights != "auto" else []
    return "-".join(parts)


def plan(grid: Grid, options: Options, executor: Executor, console: Console) -> Sweep:
    """Check everything that can be checked before anything is written, and decide what is to be done.

    Raises `UserError` for whatever the user can mend.
    """
    if options.weights_dir and not options.weights_dir.is_dir():
        raise ConfigError(f"--weights-dir {os.fspath(options.weights_dir)!r}: no such folder")
    names: dict[str, list[str]] = {}

    def spec(given: str) -> str:
        if not names:
            names.update(catalog.backbone_names(executor))
        return canonical(given, names)

    planned = expand(grid, weights=options.weights, spec=spec, devices=lambda: catalog.devices(executor))
    run = Run(_folder(options))
    previous = run.manifest() if run.exists() else None
    splits = _dataset(grid, options, previous)
    open_store(splits)
    for item in planned:
        check_protocol(item.config, splits)
    if previous:
        _same_run(run, previous, grid, splits)
    answers = settle(planned, options, previous.weights if previous else {}, executor, console)
    cells: dict[str, Cell] = {}
    weights: dict[str, Answer] = {}
    for item in planned:
        found = answers[settle_key(item)]
        kind, digest = (found.kind, found.digest) if isinstance(found, Weights) else ("pretrained", "")
        config = item.config.replace(weights=kind)
        cell = Cell(config=config, weights_digest=digest, dataset_digest=splits.digest, device=item.device)
        cells[cell.id], weights[cell.id] = cell, found
    return Sweep(
        run=run,
        splits=splits,
        cells=cells,
        weights=weights,
        settled={key: answer for key, answer in answers.items() if isinstance(answer, Weights)},
        done=_done(run, cells) if previous else {},
        previous=previous,
    )


def execute(
    sweep: Sweep, grid: Grid, options: Options, executor: Executor, console: Console, *, first_order: int = 0
) -> dict[str, Record]:
    """Run the missing cells; each record is on disk the moment its cell ends. `first_order` is the first one's place.

    Returns the records of this command's cells, old and new. `KeyboardInterrupt` passes through: what has
    ended is kept, and the same command goes on from there.
    """
    left = sweep.missing
    if not left and _knows_claims(sweep, grid):
        return dict(sweep.done)
    located = locate({cell_id: sweep.weights[cell_id] for cell_id in left}, left, options, executor)
    if left:
        executor.call("bench.job:get_ready")
    with _alone(sweep.run, fresh=options.fresh):
        if (sweep.run.manifest() if sweep.run.exists() else None) != sweep.previous:
            raise UserError(f"{sweep.run.folder}: another command has changed this run meanwhile; try again")
        if left and (busy := look()):
            say(console, f"WARNING: {busy}", style="yellow")
        machine = environment()
        _begin(sweep, grid, options, machine, console)
        records = _done(sweep.run, sweep.cells)
        missing = {cell_id: cell for cell_id, cell in left.items() if cell_id not in records}
        passes = sum(cell.config.passes * cell.config.trainings for cell in missing.values())
        with make_reporter(console, len(missing), passes) as reporter:
            blocks = sorted({cell.config.seed for cell in sweep.cells.values()})
            for order, (cell_id, cell) in enumerate(missing.items(), first_order):
                reporter.started(cell)
                started = datetime.now(UTC)
                watch, around = Watch(reporter.warned), None

                def on_event(told: EpochResult | MachineState | str, cell: Cell = cell, watch: Watch = watch) -> None:
                    if isinstance(told, MachineState):
                        watch.hear(told)
                    elif isinstance(told, str):
                        reporter.stage(cell, told)
                    else:
                        reporter.epoch(cell, told)

                answer = located[cell_id]
                weights = answer if isinstance(answer, Weights) else None
                if isinstance(answer, str):
                    outcome = Outcome(status="failed", reason=answer, wall_seconds=0.0)
                else:
                    arguments = (cell, sweep.splits, answer, usable_cores())
                    limit = None if options.timeout is None else options.timeout * cell.config.trainings
                    outcome = executor.call("bench.job:run_cell", *arguments, timeout=limit, on_event=on_event)
                    around = watch.end()
                block = blocks.index(cell.config.seed)
                records[cell_id] = _record(sweep, cell, weights, outcome, started, machine, around, block, order)
                sweep.run.write_record(records[cell_id])
                reporter.ended(records[cell_id])
                if options.on_record:
                    options.on_record(sweep.run)
    return records


def _knows_claims(sweep: Sweep, grid: Grid) -> bool:
    """Whether the run's manifest has this grid's claims: else it is written though there is nothing to run."""
    asked = grid.model_dump(mode="json")["claims"]
    return sweep.previous is not None and sweep.previous.invocations[-1].grid.get("claims", []) == asked


def check_output(folder: Path) -> None:
    """Raise `UserError` when files can't be written below `folder`. Leaves nothing behind."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{folder}: can't be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: can't be written: no permission for {existing}")


def check_name(option: str, name: str) -> None:
    """Raise `ConfigError` for a name that would not be a file or folder of its own right there."""
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"{option} {name!r}: must be a plain name, without folders")
    if name.lower() == "index":
        raise ConfigError(f"{option} {name!r}: is what the list of all reports is called; choose another")


def executor_for(options: Options) -> Executor:
    """The executor that the options ask for. Raises `ConfigError`."""
    if options.executor not in EXECUTORS:
        raise ConfigError(not_one_of("executor", options.executor, EXECUTORS))
    executor = make_executor(options.executor)
    if options.timeout is not None and not 0 < options.timeout < math.inf:
        raise ConfigError(f"--timeout {options.timeout:g}: must be a number of seconds above 0")
    if options.timeout is not None and not executor.has_timeout:
        raise ConfigError(
            f"--timeout {options.timeout:g}: executor {options.executor!r} can't end a cell; leave it out"
        )
    return executor


def _folder(options: Options) -> Path:
    check_name("--name", options.name)
    folder = options.results / options.name
    number = 2
    while options.fresh and folder.exists():
        folder = options.results / f"{options.name}-{number}"
        number += 1
    check_output(folder)
    check_output(folder / "cells")
    # A command that was ended before it wrote anything leaves its lock behind.
    foreign = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
    if foreign and not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: exists and is not a run (no manifest.json); choose another --name")
    return folder


def _dataset(grid: Grid, options: Options, previous: Manifest | None) -> Splits:
    """The images; a run that has begun under `auto` goes on with those that it began with."""
    wanted = options.data or grid.dataset
    if wanted == "auto" and previous and previous.dataset.stand_in:
        stand_in = f"{previous.dataset.stand_in.removesuffix(KEPT)}{KEPT}"
        return replace(load_splits(previous.dataset.name), stand_in=stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StandInWarning)  # told on the terminal, in records and in reports
        return load_splits(wanted, download=not options.dry_run)


def _same_run(run: Run, previous: Manifest, grid: Grid, splits: Splits) -> None:
    """Raise `ConfigError` where this command would mix two data sets or protocols in one folder."""
    way_out = "give this command a --name of its own, or --fresh"
    if previous.dataset.digest != splits.digest:
        raise ConfigError(
            f"{run.folder} holds a run on {previous.dataset.name} ({previous.dataset.digest[:8]}), "
            f"and this command would use {splits.name} ({splits.digest[:8]}): {way_out}"
        )
    for key, value in grid.protocol.items():
        if previous.protocol.get(key) != value:
            raise ConfigError(
                f"{run.folder} holds a run with {key}={previous.protocol.get(key)!r}, "
                f"and this command has {key}={value!r}: {way_out}"
            )


def _done(run: Run, cells: dict[str, Cell]) -> dict[str, Record]:
    """Finished records of some cells."""
    found = run.records()
    return {cell_id: found[cell_id] for cell_id in cells if cell_id in found and found[cell_id].status == "done"}


@contextlib.contextmanager
def _alone(run: Run, *, fresh: bool) -> Iterator[None]:
    """Keep others out of a run's folder: two at once would disturb each other's times. Raises `UserError`."""
    try:
        run.folder.mkdir(parents=True, exist_ok=not fresh)
    except FileExistsError as error:
        raise UserError(f"{run.folder}: another command has just made it; try again") from error
    lock = filelock.FileLock(run.folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{run.folder}: another `bench run` is at work there; wait for it, or give a --name") from error
    try:
        yield
    finally:
        lock.release()


def _record(
    sweep: Sweep,
    cell: Cell,
    weights: Weights | None,
    outcome: Outcome,
    started: datetime,
    machine: Environment,
    around: MachineState | None,
    block: int,
    order: int,
) -> Record:
    result, allocator = outcome.value if outcome.status == "done" else (None, "")
    return Record(
        cell_id=cell.id,
        cell=cell,
        dataset=sweep.splits.name,
        train_images=images_an_epoch(cell.config, sweep.splits),
        stand_in=sweep.splits.stand_in,
        weights=weights,
        status=outcome.status,
        reason=outcome.reason,
        traceback=outcome.traceback,
        started=started,
        block=block,
        order=order,
        wall_seconds=outcome.wall_seconds,
        allocator=allocator,
        environment=machine,
        machine=around,
        result=result,
    )


def _begin(sweep: Sweep, grid: Grid, options: Options, machine: Environment, console: Console) -> None:
    """Write the manifest: what was planned before, and what this command adds."""
    splits, previous = sweep.splits, sweep.previous
    changed = {name for record in sweep.done.values() for name in machine.differences(record.environment)}
    if changed:
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
        weights=(previous.weights if previous else {}) | sweep.settled,
        cells=planned,
        invocations=(*(previous.invocations if previous else ()), invocation),
    )
    sweep.run.write_manifest(manifest)
