"""A sweep: plan what is missing, run it cell by cell, write each record the moment the cell ends."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench import catalog
from bench.environment import Environment, environment
from bench.executors import EXECUTORS, Executor, Outcome, make_executor
from bench.grid import Grid, expand
from bench.options import Options
from bench.progress import make_reporter
from bench.records import Cell, DatasetIdentity, Invocation, Manifest, Record, Run
from bench.settle import locate, settle, settle_key
from tl.datasets import Splits, load_splits
from tl.errors import ConfigError, UserError, not_one_of
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
    weights: dict[str, Weights | str]
    """By cell; a string says why there are none though pretrained ones were insisted on."""
    settled: dict[str, Weights]
    """By policy and backbone, for the manifest."""
    done: dict[str, Record]
    previous: Manifest | None

    @property
    def missing(self) -> dict[str, Cell]:
        """Cells without a finished record: never run, failed, or timed out."""
        return {cell_id: cell for cell_id, cell in self.cells.items() if cell_id not in self.done}


def run_name(grid: Grid, data: str | None, weights: str, epochs: int | None, batch_size: int | None) -> str:
    """The folder's name where none is given: the grid's, with what the command line changes about the protocol."""
    parts = [grid.name]
    if data and data not in ("auto", grid.dataset, "hymenoptera"):
        parts.append(Path(data).name or "data")
    parts += [f"epochs{epochs}"] if epochs else []
    parts += [f"batch{batch_size}"] if batch_size else []
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
    run = Run(_folder(grid, options))
    previous = run.manifest() if run.exists() and not options.fresh else None
    splits = _dataset(grid, options, previous)
    open_store(splits)
    if previous:
        _same_run(run, previous, grid, splits)
    answers = settle(planned, options, previous.weights if previous else {}, executor, console)
    cells, weights = {}, {}
    for item in planned:
        found = answers[settle_key(item)]
        kind, digest = (found.kind, found.digest) if isinstance(found, Weights) else ("pretrained", "")
        cell = Cell(
            config=item.config.replace(weights=kind),
            weights_digest=digest,
            dataset_digest=splits.digest,
            device=item.device,
        )
        cells[cell.id], weights[cell.id] = cell, found
    finished = {i: record for i, record in (run.records() if previous else {}).items() if record.status == "done"}
    return Sweep(
        run=run,
        splits=splits,
        cells=cells,
        weights=weights,
        settled={key: answer for key, answer in answers.items() if isinstance(answer, Weights)},
        done={cell_id: finished[cell_id] for cell_id in cells if cell_id in finished},
        previous=previous,
    )


def execute(sweep: Sweep, grid: Grid, options: Options, executor: Executor, console: Console) -> dict[str, Record]:
    """Run the missing cells; each record is on disk the moment its cell ends.

    Returns the records of this command's cells, old and new. `KeyboardInterrupt` passes through: what has
    ended is kept, and the same command goes on from there.
    """
    machine = environment()
    _begin(sweep, grid, options, machine, console)
    records = dict(sweep.done)
    missing = sweep.missing
    located = locate({cell_id: sweep.weights[cell_id] for cell_id in missing}, missing, options, executor)
    with make_reporter(console, len(missing), sum(cell.config.epochs for cell in missing.values())) as reporter:
        for cell_id, cell in missing.items():
            reporter.started(cell)
            started = datetime.now(UTC)

            def on_event(row: EpochResult, cell: Cell = cell) -> None:
                reporter.epoch(cell, row)

            answer = located[cell_id]
            weights = answer if isinstance(answer, Weights) else None
            if isinstance(answer, str):
                outcome = Outcome(status="failed", reason=answer, wall_seconds=0.0)
            else:
                arguments = (cell, sweep.splits, answer, usable_cores())
                outcome = executor.call("bench.job:run_cell", *arguments, timeout=options.timeout, on_event=on_event)
            records[cell_id] = _record(sweep, cell, weights, outcome, started, machine)
            sweep.run.write_record(records[cell_id])
            reporter.ended(records[cell_id])
    return records


def check_output(folder: Path) -> None:
    """Raise `UserError` when results can't be written below `folder`. Leaves nothing behind."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{folder}: can't be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: can't be written: no permission for {existing}")


def executor_for(options: Options) -> Executor:
    """The executor that the options ask for. Raises `ConfigError`."""
    if options.executor not in EXECUTORS:
        raise ConfigError(not_one_of("executor", options.executor, EXECUTORS))
    executor = make_executor(options.executor)
    if options.timeout is not None and options.timeout <= 0:
        raise ConfigError(f"--timeout {options.timeout:g}: must be above 0 seconds")
    if options.timeout is not None and not executor.has_timeout:
        raise ConfigError(
            f"--timeout {options.timeout:g}: executor {options.executor!r} can't end a cell; leave it out"
        )
    return executor


def _folder(grid: Grid, options: Options) -> Path:
    name = options.name or grid.name
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name {name!r}: must be a plain folder name")
    folder = options.results / name
    if options.fresh:
        number = 2
        while folder.exists():
            folder = options.results / f"{name}-{number}"
            number += 1
    elif folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists and is not a run (no manifest.json); choose another --name")
    check_output(folder)
    return folder


def _dataset(grid: Grid, options: Options, previous: Manifest | None) -> Splits:
    """The images; a run that has begun under `auto` goes on with those that it began with."""
    wanted = options.data or grid.dataset
    if wanted == "auto" and previous and previous.dataset.stand_in:
        return replace(load_splits(previous.dataset.name), stand_in=previous.dataset.stand_in)
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


def _record(
    sweep: Sweep, cell: Cell, weights: Weights | None, outcome: Outcome, started: datetime, machine: Environment
) -> Record:
    result, allocator = outcome.value if outcome.status == "done" else (None, "")
    return Record(
        cell_id=cell.id,
        cell=cell,
        dataset=sweep.splits.name,
        train_images=len(sweep.splits.train),
        stand_in=sweep.splits.stand_in,
        weights=weights,
        status=outcome.status,
        reason=outcome.reason,
        traceback=outcome.traceback,
        started=started,
        wall_seconds=outcome.wall_seconds,
        allocator=allocator,
        environment=machine,
        result=result,
    )


def _begin(sweep: Sweep, grid: Grid, options: Options, machine: Environment, console: Console) -> None:
    """Write the manifest: what was planned before, and what this command adds. Raises `UserError`."""
    splits, previous = sweep.splits, sweep.previous
    if previous and (changed := machine.differences(previous.invocations[-1].environment)):
        console.print(
            f"note: {', '.join(changed)} changed since this run began: times of old and new cells don't compare",
            style="yellow",
            highlight=False,
        )
    invocation = Invocation(
        command=options.command, started=datetime.now(UTC), environment=machine, cell_ids=tuple(sweep.cells)
    )
    manifest = Manifest(
        name=sweep.run.folder.name,
        grid=grid.model_dump(mode="json"),
        protocol=grid.protocol,
        dataset=DatasetIdentity(
            name=splits.name,
            digest=splits.digest,
            classes=splits.classes,
            train_images=len(splits.train),
            val_files=splits.val.files,
            val_labels=splits.val.labels,
            stand_in=splits.stand_in,
        ),
        weights=(previous.weights if previous else {}) | sweep.settled,
        cells=(previous.cells if previous else {}) | sweep.cells,
        invocations=(*(previous.invocations if previous else ()), invocation),
    )
    try:
        sweep.run.write_manifest(manifest)
    except OSError as error:
        raise UserError(f"{sweep.run.folder}: can't be written: {error.strerror}") from error
