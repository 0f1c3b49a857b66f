"""A sweep: plan what is missing, run it cell by cell, write each record the moment the cell ends."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from bench.console import say
from bench.execution import discovery
from bench.execution.attempt import Ended, Work
from bench.execution.base import EXECUTORS, Executor, Outcome, make_executor
from bench.execution.failure import readable
from bench.execution.monitor import look
from bench.execution.signals import gentle, held_back, let_through
from bench.store.environment import Environment, environment
from bench.store.lock import turn
from bench.store.records import Cell, DatasetIdentity, Invocation, Manifest, Record, WeightsKey, by_policy
from bench.store.runs import Run
from bench.sweep.grid import Grid, expand
from bench.sweep.options import Options
from bench.sweep.order import arrange
from bench.sweep.progress import Reporter, make_reporter
from bench.sweep.weights import Answer, locate, settle, settle_key
from tl.datasets import Splits, load_splits
from tl.errors import ConfigError, StandInWarning, UserError, not_one_of
from tl.folds import check_protocol, images_an_epoch, judged_images
from tl.images import open_store
from tl.results import EpochResult
from tl.specs import canonical
from tl.weights import Weights

STOPPING = "stopping: nothing new begins, and what runs ends first; Ctrl-C again ends it at once"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a command amounts to: the cells, and which of them are done."""

    run: Run
    splits: Splits
    cells: dict[str, Cell]
    weights: dict[str, Answer]
    """By cell."""
    settled: dict[WeightsKey, Weights]
    """For the manifest."""
    done: dict[str, Record]
    damaged: dict[Path, str]
    """Records that can't be read as what this suite wrote, and why: they are set aside, and their cells run."""
    previous: Manifest | None
    keeps_images: bool = False
    """It goes on with the drawn images that the run began with, without looking for real ones again."""

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
            names.update(discovery.backbone_names(executor))
        return canonical(given, names)

    planned = expand(grid, weights=options.weights, spec=spec, devices=lambda: discovery.devices(executor))
    run = Run(_folder(options))
    previous = run.manifest() if run.exists() else None
    kept = _kept_images(grid, options, previous)
    splits = _dataset(grid, options, kept)
    open_store(splits)
    for item in planned:
        check_protocol(item.config, splits)
    if previous:
        _same_run(run, previous, grid, splits)
    answers = settle(planned, options, previous.resolved if previous else {}, executor, console)
    cells: dict[str, Cell] = {}
    weights: dict[str, Answer] = {}
    for item in planned:
        found = answers[settle_key(item)]
        kind, digest = (found.kind, found.digest) if isinstance(found, Weights) else ("pretrained", "")
        config = item.config.replace(weights=kind)
        cell = Cell(config=config, weights_digest=digest, dataset_digest=splits.digest, device=item.device)
        cells[cell.id], weights[cell.id] = cell, found
    done, damaged = _done(run, cells) if previous else ({}, {})
    return Sweep(
        run=run,
        splits=splits,
        cells=cells,
        weights=weights,
        settled={key: answer for key, answer in answers.items() if isinstance(answer, Weights)},
        done=done,
        damaged=damaged,
        previous=previous,
        keeps_images=kept is not None,
    )


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
            _tidy(sweep.run, options)
        return dict(sweep.done)
    located = locate({cell_id: sweep.weights[cell_id] for cell_id in left}, left, options, executor)
    if left:
        executor.call("bench.execution.worker:get_ready")
    with alone(sweep.run, options, console):
        if (sweep.run.manifest() if sweep.run.exists() else None) != sweep.previous:
            raise UserError(f"{sweep.run.folder}: another command has changed this run meanwhile; try again")
        here = executor.devices() is None
        if left and here and (busy := look()):
            say(console, f"WARNING: {busy}", style="yellow")
        machine = environment()
        _begin(sweep, grid, options, machine, console, here=here)
        records = _done(sweep.run, sweep.cells)[0]
        missing = {cell_id: cell for cell_id, cell in left.items() if cell_id not in records}
        passes = sum(cell.config.passes * cell.config.trainings for cell in missing.values())
        with (
            sweep.run.reserved(len(sweep.splits.train) + len(sweep.splits.val)),
            make_reporter(console, len(missing), passes) as reporter,
            gentle(lambda: say(console, STOPPING, style="yellow")) as asked,
        ):
            events = _Events(sweep, options, reporter, records, located, machine, first_order)
            with held_back():
                executor.run_cells(_work(sweep, options, missing, events), events, asked)
    if asked():
        raise KeyboardInterrupt
    return records


@dataclass
class _Events:
    """Writes a record when a cell has ended, and tells how it goes."""

    sweep: Sweep
    options: Options
    reporter: Reporter
    records: dict[str, Record]
    """Grows."""
    located: dict[str, Answer]
    machine: Environment
    """This one."""
    order: int
    """Of the cell that begins next."""

    def __post_init__(self) -> None:
        self.blocks = sorted({cell.config.seed for cell in self.sweep.cells.values()})
        self.orders: dict[str, int] = {}
        self.ran_out: dict[str, int] = {}
        """What cells have in common but for seed and batch → the smallest batch that ran out of memory."""
        for record in self.sweep.done.values():  # of seeds that this command ran before
            self._learn(record.cell, record.status)

    def _learn(self, cell: Cell, status: str) -> None:
        if status == "oom":
            key = cell.key("seed", "batch_size")
            self.ran_out[key] = min(cell.config.batch_size, self.ran_out.get(key, cell.config.batch_size))

    def started(self, cell: Cell) -> None:
        self.orders[cell.id] = self.order
        self.order += 1
        with let_through():  # a terminal may be stopped
            self.reporter.started(cell)

    def told(self, cell: Cell, event: EpochResult | str) -> None:
        with let_through():
            if isinstance(event, str):
                self.reporter.stage(cell, event)
            else:
                self.reporter.epoch(cell, event)

    def warned(self, text: str) -> None:
        with let_through():
            self.reporter.warned(text)

    def declined(self, cell: Cell) -> bool:
        answer, smallest = self.located[cell.id], self.ran_out.get(cell.key("seed", "batch_size"), math.inf)
        if isinstance(answer, str):
            self._without_running(cell, "failed", answer)
        elif self.options.skip_larger_after_oom and smallest < cell.config.batch_size:
            reason = f"not tried: batch {smallest} ran out of memory (--skip-larger-after-oom)"
            self._without_running(cell, "skipped", reason)
        else:
            return False
        return True

    def _without_running(self, cell: Cell, status: Literal["failed", "skipped"], reason: str) -> None:
        self.started(cell)
        outcome = Outcome(status=status, reason=reason, wall_seconds=0.0)
        now = datetime.now(UTC)
        self.ended(cell, Ended(outcome=outcome, started=now, environment=self.machine, machine=None, attempts=0))

    def ended(self, cell: Cell, end: Ended) -> None:
        splits, answer, outcome = self.sweep.splits, self.located[cell.id], end.outcome
        self._learn(cell, outcome.status)
        result, allocator = outcome.value if outcome.status == "done" else (None, "")
        record = Record(
            cell_id=cell.id,
            cell=cell,
            dataset=splits.name,
            train_images=images_an_epoch(cell.config, splits),
            stand_in=splits.stand_in,
            weights=answer if isinstance(answer, Weights) else None,
            status=outcome.status,
            reason=outcome.reason,
            traceback=outcome.traceback,
            started=end.started,
            block=self.blocks.index(cell.config.seed),
            order=self.orders[cell.id],
            attempts=end.attempts,
            wall_seconds=outcome.wall_seconds,
            allocator=allocator,
            environment=end.environment,
            machine=end.machine,
            result=result,
        )
        self.records[cell.id] = record
        self.sweep.run.write_record(record)
        with let_through():
            self.reporter.ended(record)
            if self.options.on_record:
                self.options.on_record(self.sweep.run)


def _work(sweep: Sweep, options: Options, missing: dict[str, Cell], events: _Events) -> Iterator[Work]:
    """What is to be run, one after the other."""
    for cell_id, cell in missing.items():
        try:
            sweep.run.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{sweep.run.folder}: can't be written: {error.strerror or error}") from error
        answer = events.located[cell_id]
        if events.declined(cell) or isinstance(answer, str):
            continue
        yield Work(
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
    if options.address is not None and options.executor != "ray":
        raise ConfigError(f"--ray-address {options.address!r}: is for --executor ray, and this is {options.executor!r}")
    if options.timeout is not None and not 0 < options.timeout < math.inf:
        raise ConfigError(f"--timeout {options.timeout:g}: must be a number of seconds above 0")
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


def _kept_images(grid: Grid, options: Options, previous: Manifest | None) -> DatasetIdentity | None:
    """The drawn images that a run has begun with under `auto` and goes on with; None where images are looked for."""
    wanted = options.data or grid.dataset
    return previous.dataset if wanted == "auto" and previous and previous.dataset.stand_in else None


def _dataset(grid: Grid, options: Options, kept: DatasetIdentity | None) -> Splits:
    """The images; those that a run keeps have the reason that it began with."""
    wanted = options.data or grid.dataset
    if kept:
        return replace(load_splits(kept.name), stand_in=kept.stand_in)
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


def _done(run: Run, cells: dict[str, Cell]) -> tuple[dict[str, Record], dict[Path, str]]:
    """Finished records of some cells; and of all records the damaged ones, with the reasons."""
    found, damaged = run.survey()
    done = {cell_id: found[cell_id] for cell_id in cells if cell_id in found and found[cell_id].status == "done"}
    return done, damaged


def _tidy(run: Run, options: Options) -> None:
    """Remove what commands that were killed left behind. Raises `UserError` while another is at work, and `OSError`."""
    if run.leftovers():
        with turn(run.folder, options.command):
            for path in run.leftovers():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(run: Run, options: Options, console: Console) -> Iterator[None]:
    """Keep others out of a run's folder, which is made if need be. Raises `UserError`."""
    try:
        run.folder.mkdir(parents=True, exist_ok=not options.fresh)
    except FileExistsError as error:
        raise UserError(f"{run.folder}: another command has just made it; try again") from error
    with turn(run.folder, options.command, wait=_waiter(options, console)):
        yield


@contextlib.contextmanager
def in_turn(options: Options, console: Console) -> Iterator[None]:
    """With `--wait`: hold the run's folder from here on, so that what is planned is what there is then."""
    check_name("--name", options.name)
    folder = options.results / options.name
    if not options.wait or options.dry_run or options.fresh:
        yield
        return
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)  # two that start at once: one waits for the other here too
    with turn(folder, options.command, wait=_waiter(options, console)):
        yield


def _waiter(options: Options, console: Console) -> Callable[[str], None] | None:
    """What tells for whom a command waits, where it is to wait."""
    return (lambda text: say(console, text, style="yellow")) if options.wait else None


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
